"""Coverage-guided fuzzing of a harness with atheris (``pip install atheris``), for as long as it is let run.

    python tests/fuzz/run_atheris.py HARNESS CORPUS... [-max_total_time=600] [any option of libFuzzer]

HARNESS is one of tests/fuzz/harnesses.py: container, behind_checksum, caption, entropy, picture. New inputs go to the first
CORPUS folder (seeds in the tree: ``--seeds FOLDER`` writes those of the harness to a folder and ends). A finding is left as a
file ``crash-*`` in the working folder; ``python tests/fuzz/run_atheris.py HARNESS crash-...`` runs it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        import atheris
    except ImportError:
        raise SystemExit("atheris is not installed: pip install atheris") from None
    with atheris.instrument_imports(include=["slimcodec"]):
        from fuzz.harnesses import HARNESSES
    from fuzz.seeds import seeds

    if name not in HARNESSES:
        raise SystemExit(f"{name!r} is no harness: give one of {', '.join(HARNESSES)}")
    if sys.argv[2:3] == ["--seeds"]:
        folder = Path(sys.argv[3])
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds(name)):
            (folder / f"seed-{number:03d}").write_bytes(data)
        return
    harness = HARNESSES[name]

    def test_one(data: bytes) -> None:
        harness(data)

    # inputs that take longer than this many seconds are findings too
    atheris.Setup([sys.argv[0], "-timeout=10", *sys.argv[2:]], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
