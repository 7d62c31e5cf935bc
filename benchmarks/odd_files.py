"""Folders of odd image files through ``slim encode``, by folder and one by one: what came of each.

    python benchmarks/odd_files.py FOLDER...

Meant for the test suites of image libraries. Files whose first bytes look like text are left out. One by one, each file has
``--limit`` seconds of the processor, and ten times that by the clock, in a process that outlives it; a process that dies or
hangs is counted and replaced. By folder, the command runs on each FOLDER, and on every folder below it without a picture.
Every file must be encoded, refused with a reason, or passed over by suffix. Other options go to the command. Prints a table of outcomes; ``--list`` names the files of some. Exit status 1 after a crash,
a hang, an exception that is no ``SlimError``, or a folder of which nothing came and nothing was said.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

from slimcodec.cli.inputs import find_inputs
from slimcodec.images import picture_suffixes

FAULTS = ("crash", "hang", "foreign exception", "silently empty folder", "file unaccounted for")
#: a reason's words, the first that fits counts
REASONS = {
    "foreign exception": "internal error|Traceback",
    "refused: no picture that Pillow knows": "not an image",
    "refused: not supported by Pillow": "does not support",
    "refused: needs Ghostscript": "Ghostscript",
    "refused: damaged or truncated": "damaged|truncated",
    "refused: too large": "max_pixels|too large",
    "refused: empty": "empty",
    "refused: no known white": "black and white",
    "refused: cannot be read": "No such file|Permission|directory",
}


def serve(pipe: Connection) -> None:
    """Run the command on the arguments that come in; send (status, stdout, stderr, foreign exception)."""
    import slimcodec
    from slimcodec.cli import main

    slimcodec.load = lru_cache(slimcodec.load)  # one bundle for all files
    while arguments := pipe.recv():
        out, err, foreign, status = io.StringIO(), io.StringIO(), "", -1
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(arguments)
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException as error:  # noqa: BLE001  this is what is looked for
                foreign = repr(error)
        pipe.send((status, out.getvalue(), err.getvalue(), foreign))


class Worker:
    """A process that runs the command, replaced when it dies or hangs."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there,), daemon=True)
        self.process.start()
        there.close()
        # loads the bundle and compiles kernels, which no file should be charged for
        self.run(["doctor"], 300)

    def seconds(self) -> float:
        """Seconds that the process has used of the processor; those of a machine's other work do not count."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, arguments: list[str], limit: float) -> tuple[int, str, str, str]:
        """(status, stdout, stderr, fault) of ``slim ARGUMENTS``."""
        self.pipe.send(arguments)
        fault, start, used = "hang", time.monotonic(), self.seconds()
        try:
            while self.seconds() - used < limit and time.monotonic() - start < 10 * limit:
                if self.pipe.poll(0.1):
                    status, out, err, foreign = self.pipe.recv()
                    return status, out, err, foreign and "foreign exception"
        except (EOFError, ConnectionError):
            fault = "crash"
        self.process.kill()
        self.process.join()
        self.start()
        return -1, "", "", fault


def outcome(status: int, text: str, fault: str) -> str:
    """A file's outcome in the words of the table."""
    if fault:
        return fault
    if status == 0:
        return "encoded with a warning" if "warning:" in text else "encoded"
    found = (name for name, words in REASONS.items() if re.search(words, text))
    return next(found, "refused: other")


def files_below(folder: Path) -> list[Path]:
    """Files that are no text, hidden ones left out."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    parts = ((path, path.relative_to(folder).parts) for path in found)
    visible = [path for path, names in parts if not any(name.startswith(".") for name in names)]
    return [path for path in visible if b"\0" in path.read_bytes()[:4096] or not path.stat().st_size]


def check_folder(worker: Worker, folder: Path, options: list[str], limit: float) -> list[str]:
    """Outcomes of ``slim encode FOLDER``: one of each file that is encoded or passed over, and the folder's faults."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    hidden = [path for path in files if any(p.startswith(".") for p in path.relative_to(folder).parts)]
    with tempfile.TemporaryDirectory() as out:
        arguments = ["encode", str(folder), "-o", out, "--keep-suffix", "--json", *options]
        status, stdout, stderr, fault = worker.run(arguments, limit * (1 + len(files)))
        written = len(list(Path(out).rglob("*.slim")))
    if fault:
        return [fault]
    summary = json.loads(stdout)
    failed = [row for row in summary["failed"] if row["source"] != str(folder)]
    results = ["encoded"] * len(summary["files"])
    results += [outcome(1, row["error"], "") for row in failed]
    results += ["passed over, counted by suffix"] * sum(summary["passed_over"].values())
    results += ["file unaccounted for"] * abs(len(files) - len(hidden) - len(results))
    results += ["file unaccounted for"] * abs(written - len(summary["files"]))
    if not written and (status == 0 or str(folder) not in stderr):
        results.append("silently empty folder")
    return results


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=float, default=20, help="processor seconds a file")
    parser.add_argument(
        "--list", default="", metavar="WORDS", help="name files whose outcome has these words"
    )
    arguments, options = parser.parse_known_args()
    worker, alone, together, count = Worker(), Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as place:
        target = str(Path(place, "x.slim"))
        for folder in arguments.folders:
            for path in files_below(folder):
                command = ["encode", str(path), "-o", target, "--overwrite", *options]
                status, _, text, fault = worker.run(command, arguments.limit)
                kind = outcome(status, text, fault)
                alone[kind] += 1
                if kind in FAULTS or kind == "refused: other" or (arguments.list and arguments.list in kind):
                    print(f"{kind}: {path}: {text.strip()}", file=sys.stderr, flush=True)
    for folder in arguments.folders:
        empty = [path for path in sorted(folder.rglob("*")) if path.is_dir() and ".git" not in path.parts]
        empty = [path for path in empty if not find_inputs([str(path)], picture_suffixes()).inputs]
        for one in (folder, *empty):
            found = check_folder(worker, one, options, arguments.limit)
            count += 1
            together.update(found if one == folder else [kind for kind in found if kind in FAULTS])
            for fault in set(found) & set(FAULTS):
                print(f"{fault}: {one}", file=sys.stderr, flush=True)
    print(f"| outcome | one by one | by folder ({count} folders) |\n|---|---|---|")
    for kind in sorted({*alone, *together}) + [kind for kind in FAULTS if kind not in alone + together]:
        print(f"| {kind} | {alone[kind]:,} | {together[kind]:,} |")
    print(f"| all | {alone.total():,} | {together.total():,} |")
    worker.process.kill()
    raise SystemExit(any((alone + together)[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
