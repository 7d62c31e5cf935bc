"""Hostile ``.slim`` files by the million: what comes out of them besides pictures and ``SlimError``.

    python benchmarks/fuzz.py --inputs 1000000 --decodes 50000 --seed 0 -o results/fuzz.json

Each input, half of them any bytes and half structured with a fitting checksum (tests/fuzz/mutator.py), goes through
``slimcodec.inspect``; the first ``--decodes`` of them through a full decode of the miniature bundle too. They run in chunks, each
in a process of its own, so that a crash costs a chunk and is counted. Exit status 1 if anything was found.

- crashes: chunks whose process ended by a signal or with an unforeseen status, or stopped moving (one input over a minute).
- hangs: inputs that took more than 2 s of processor time, which other work on the machine does not add to.
- foreign: inputs that raised anything but ``SlimError``.
- changed: files that differ from the original, without their checksum made to fit, and gave a header or a picture all the same.

An input is told by (seed, number): ``mutator.fuzzed(golden_files(), seed, number)``.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "fuzz")]

HANG_SECONDS = 2.0
STUCK_SECONDS = 60
CHUNK = 10_000
TOLD = 20  # findings that are spelt out; all are counted


def run_chunk(seed: int, first: int, count: int, decodes: int) -> dict[str, Any]:
    """What inputs ``first`` .. ``first + count - 1`` gave; those below ``decodes`` are decoded too."""
    import torch
    from mutator import GOLDEN, MAX_PIXELS, fuzzed, golden_files

    import slimcodec

    torch.set_num_threads(1)
    codec = slimcodec.load(GOLDEN / "small", dtype="float32") if first < decodes else None
    files = golden_files()
    counts: collections.Counter[str] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()
    findings: list[dict[str, Any]] = []
    slowest = {"inspect": 0.0, "decode": 0.0}

    def find(kind: str, number: int, step: str, text: str) -> None:
        counts[kind] += 1
        findings.append({"kind": kind, "number": number, "step": step, "error": text})

    def attempt(step: str, number: int, made: Any) -> None:
        counts[step] += 1
        # a stuck native call can't be interrupted otherwise
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        start = time.process_time()
        try:
            if step == "inspect":
                slimcodec.inspect(made.data)
            elif codec is not None:
                codec.decode(made.data, steps=0, max_pixels=MAX_PIXELS)
            accepted = True
        except slimcodec.SlimError as error:
            errors[f"{step} {type(error).__name__}"] += 1
            accepted = False
        except Exception as error:  # noqa: BLE001  a foreign exception is what is looked for
            find("foreign", number, step, f"{type(error).__name__}: {error}"[:300])
            accepted = False
        seconds = time.process_time() - start
        faulthandler.cancel_dump_traceback_later()
        slowest[step] = max(slowest[step], seconds)
        if seconds > HANG_SECONDS:
            find("hangs", number, step, f"{seconds:.2f} s")
        counts[f"{step}_accepted"] += accepted
        if accepted and made.changed and not made.sealed:
            find("changed", number, step, "accepted without a fitting checksum")

    for number in range(first, first + count):
        made = fuzzed(files, seed, number)
        counts["structured"] += made.sealed
        attempt("inspect", number, made)
        if number < decodes:
            attempt("decode", number, made)
    return {
        "counts": counts,
        "errors": errors,
        "findings": findings[:TOLD],
        "slowest": slowest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="inputs that are inspected")
    parser.add_argument("--decodes", type=int, default=50_000, help="of them, inputs that are decoded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("results/fuzz.json"))
    parser.add_argument("--chunk", type=int, nargs=2, metavar=("FIRST", "COUNT"), help="one chunk, to stdout")
    given = parser.parse_args()
    decodes = min(given.decodes, given.inputs)
    if given.chunk:
        print(json.dumps(run_chunk(given.seed, *given.chunk, decodes)))
        return

    start = time.perf_counter()
    counts: collections.Counter[str] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()
    findings: list[dict[str, Any]] = []
    slowest = {"inspect": 0.0, "decode": 0.0}
    for first in range(0, given.inputs, CHUNK):
        count = min(CHUNK, given.inputs - first)
        command = [sys.executable, __file__, "--inputs", str(given.inputs), "--decodes", str(decodes)]
        command += ["--seed", str(given.seed), "--chunk", str(first), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            counts["crashes"] += 1
            findings.append({"kind": "crashes", "chunk": [first, count], "status": done.returncode})
            findings[-1]["error"] = done.stderr[-600:]
            continue
        chunk = json.loads(done.stdout)
        counts.update(chunk["counts"])
        errors.update(chunk["errors"])
        findings += chunk["findings"]
        slowest = {step: max(seconds, chunk["slowest"][step]) for step, seconds in slowest.items()}
        print(f"{first + count:,} of {given.inputs:,}: {len(findings)} findings", file=sys.stderr, flush=True)

    result = {
        "command": f"python benchmarks/fuzz.py --inputs {given.inputs} --decodes {given.decodes} --seed {given.seed}",
        "seed": given.seed,
        "inputs": counts["inspect"],
        "structured": counts["structured"],
        "decodes": counts["decode"],
        **{kind: counts[kind] for kind in ("crashes", "hangs", "foreign", "changed")},
        "accepted": {step: counts[f"{step}_accepted"] for step in slowest},
        "refused": dict(sorted(errors.items())),
        "slowest_seconds": {step: round(seconds, 4) for step, seconds in slowest.items()},
        "findings": findings[:TOLD],
        "python": platform.python_version(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    if any(result[kind] for kind in ("crashes", "hangs", "foreign", "changed")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
