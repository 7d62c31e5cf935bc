"""Licences and vulnerabilities of what is installed: what the checks in tools/ let pass, and what they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import audit
import licences
import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("Apache Software License", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("BSD-3-Clause AND GPL-2.0-only", False),
        ("GNU Affero General Public License v3", False),
        ("Limited use only", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_or_not(licence: str, allowed: bool) -> None:
    assert (licences.problem_of("a-package", licence) == "") is allowed


def test_packages_that_are_named_are_let_pass() -> None:
    assert licences.problem_of("nvidia-cudnn-cu12", "LicenseRef-NVIDIA-Proprietary") == ""


def test_everything_that_slimcodec_needs_is_listed_and_allowed() -> None:
    entries = {entry.name: entry for entry in licences.licences()}
    assert {"slimcodec", "torch", "numpy", "pillow", "safetensors", "mpmath"} <= set(
        entries
    )  # needs of needs too
    assert not [entry for entry in entries.values() if entry.problem]
    assert set(entries) < {entry.name for entry in licences.licences("dev,eval")}


def test_a_licence_that_is_not_allowed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "licence_of", lambda _: "GPL-3.0-only")
    monkeypatch.setattr(sys, "argv", ["licences.py"])
    with pytest.raises(SystemExit, match=r"torch: GPL-3.0-only: not on the list"):
        licences.main()


#: as pip-audit 2.10 writes it
REPORT: dict[str, Any] = {
    "dependencies": [
        {"name": "pillow", "version": "9.0.0", "vulns": []},
        {
            "name": "jinja2",
            "version": "2.4.1",
            "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": ["CVE-2019-10906"]}],
        },
        {
            "name": "torch",
            "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0+cpu)",
        },
    ],
    "fixes": [],
}


def test_a_known_vulnerability_fails_unless_it_is_accepted_with_a_reason(tmp_path: Path) -> None:
    problems, remarks = audit.judge(REPORT, {})
    assert problems == ["jinja2 2.4.1: PYSEC-2019-217, CVE-2019-10906, fixed in 2.10.1"]
    assert "not audited: torch" in remarks
    problems, remarks = audit.judge(REPORT, {"CVE-2019-10906": "no template of a stranger's"})
    assert not problems and any("accepted: no template" in line for line in remarks)
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    done = subprocess.run(
        [sys.executable, TOOLS / "audit.py", tmp_path / "report.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "PYSEC-2019-217" in done.stderr


def test_without_the_service_it_is_said_and_passes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    problems, remarks = audit.judge({"dependencies": REPORT["dependencies"][2:]}, {})
    assert not problems and remarks[0].startswith("NOT AUDITED")

    def silent(*_: object, **__: object) -> Any:
        raise subprocess.TimeoutExpired("pip-audit", audit.ALL)

    monkeypatch.setattr(subprocess, "run", silent)
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    audit.main()
    assert "NOT AUDITED: no answer within 60 seconds" in capsys.readouterr().out
