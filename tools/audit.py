"""Known vulnerabilities of the installed packages, by pip-audit; without its service it says so and passes.

    python tools/audit.py [REPORT.json]

Fails (exit status 1) for a vulnerability that is not accepted below with a reason. REPORT.json is a report that
``pip-audit -f json`` wrote; without one it is run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

#: seconds for an answer of the service, and for all of them
ANSWER, ALL = 5, 60
#: known vulnerabilities that do not reach slimcodec: id to reason
ACCEPTED: dict[str, str] = {}


def run() -> dict[str, Any] | str:
    """pip-audit's report on this environment, or why there is none."""
    command = [sys.executable, "-m", "pip_audit", "--local", "-f", "json", "--timeout", str(ANSWER)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ALL, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer within {ALL} seconds"
    except ValueError:
        return (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    return report


def judge(report: dict[str, Any], accepted: dict[str, str]) -> tuple[list[str], list[str]]:
    """What a report says, one line each: vulnerabilities that are not accepted, and remarks."""
    problems, remarks, skipped, audited = [], [], [], 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(package["name"])
            continue
        audited += 1
        for entry in package["vulns"]:
            ids = [entry["id"], *entry.get("aliases", [])]
            line = f"{package['name']} {package['version']}: {', '.join(ids)}"
            reason = next((accepted[name] for name in ids if name in accepted), None)
            if reason is None:
                fixed = ", ".join(entry.get("fix_versions", [])) or "no release yet"
                problems.append(f"{line}, fixed in {fixed}")
            else:
                remarks.append(f"{line}, accepted: {reason}")
    if not audited:
        remarks.append("NOT AUDITED: the vulnerability service knew none of the packages")
    elif skipped:
        remarks.append(f"not audited: {', '.join(sorted(skipped))}")
    remarks.append(f"{audited} packages audited, {len(problems)} vulnerabilities that are not accepted")
    return problems, remarks


def main() -> None:
    """Prints what is known; exit status 1 for a vulnerability that is not accepted."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")) if len(sys.argv) > 1 else run()
    if isinstance(report, str):
        print(f"NOT AUDITED: {report}")
        return
    problems, remarks = judge(report, ACCEPTED)
    print("\n".join(remarks))
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
