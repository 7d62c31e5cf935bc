"""What a file claims costs nothing until it is checked: time and memory of refusals, in a fresh process."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import slimcodec
from slimcodec.container import Container, pack
from slimcodec.entropy.caption import write_varint

SMALL = Path(__file__).parent / "golden" / "small"
FILE = SMALL.parent / "small-files" / "chelsea-97x41-q20.slim"
SECONDS, BYTES = 0.05, 20_000_000

# Measures refusals with everything loaded: of each, the best processor time of five, which other work does not add to, and the peak of memory above what was held before.
MEASURE = """
import gc, json, pathlib, re, sys, time
import torch
import slimcodec
from slimcodec.cli import main
from slimcodec.cli.decode import decoder
from slimcodec.cli.encode import encoder
from slimcodec.cli.info import checker
from slimcodec.cli.inputs import Job

torch.set_num_threads(1)
small, good, folder = sys.argv[1:]
codec = slimcodec.load(small, dtype="float32")
loading = {"source": small, "dtype": "float32"}
decode = decoder(loading, {"steps": 0}, {})
encode = encoder(loading, {"caption": None}, "auto", None, False)
verify = checker(small, None)

def run(steps, path, target):
    job = Job(path, pathlib.Path(target))
    read = steps.read(job)
    (result,) = steps.work([read])
    if isinstance(result, Exception):
        raise result
    steps.output(job, read, result)

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def info(path):
    sys.stdout = sys.stderr
    try:
        main(["info", str(path)])
    except SystemExit as ended:
        if ended.code:
            raise slimcodec.SlimError("status 1")
    finally:
        sys.stdout = sys.__stdout__

operations = {
    "decode": codec.decode,
    "decode_latent": codec.decode_latent,
    "inspect": slimcodec.inspect,
    "slim decode": lambda path: run(decode, path, "x.png"),
    "slim verify": verify,
    "slim info": info,
}
pictures = {"encode": codec.encode, "slim encode": lambda path: run(encode, path, "x.slim")}
for operation in operations.values():
    operation(pathlib.Path(good))
codec.encode(codec.decode(good, steps=0))
found = []
for path in sorted(pathlib.Path(folder).iterdir()):
    for name, operation in (operations if path.suffix == ".slim" else pictures).items():
        open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
        before, times, error = status("VmRSS"), [], None
        for _ in range(5):
            gc.collect()  # errors kept by batches hold their frames until then: one refusal is measured
            start = time.process_time()
            try:
                operation(path)
            except slimcodec.SlimError as refused:
                error = type(refused).__name__
            times.append(time.process_time() - start)
        found.append([path.stem, name, error, min(times), status("VmHWM") - before])
print(json.dumps(found))
"""


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "big")


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims a size, all its checksums right."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def claims() -> dict[str, bytes]:
    """Files that claim more than they are, by name."""
    bundle = bytes.fromhex(slimcodec.inspect(FILE).bundle_id)
    start = b"\xf5" + bundle

    def picture(width: int, height: int, payload: bytes = b"") -> bytes:
        return pack(Container(width, height, 50, bundle, b"", payload))

    def caption(section: bytes) -> bytes:
        return sealed(start + write_varint(8) * 2 + bytes([0x80 | 50]) + section)

    deflater = zlib.compressobj(9, wbits=-15)
    bomb = deflater.compress(bytes(500_000)) + deflater.flush()
    assert len(bomb) < 1000
    return {
        "60000x60000.slim": picture(60000, 60000),
        "4-gigapixels.slim": picture(1 << 16, 1 << 16),
        "longest-sides.slim": picture(1 << 24, 1 << 24),
        "one-row.slim": picture(1 << 24, 1),
        "side-of-4-gigabytes.slim": sealed(start + b"\xff\xff\xff\xff\x0f" * 2 + bytes([50])),
        "caption-of-256-megabytes.slim": caption(b"\xff\xff\xff\x7f" + b"\0text"),
        "caption-that-inflates.slim": caption(write_varint(2 * (1 + len(bomb)) + 1) + b"\1" + bomb),
        "payload-of-4-megabytes.slim": picture(16, 16, b"\1" * (1 << 22)),
        "60000x60000.png": png(60000, 60000),
    }


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it"
)
def test_a_claim_is_refused_at_once_and_without_memory(tmp_path: Path) -> None:
    for name, data in claims().items():
        (tmp_path / name).write_bytes(data)
    start = claims()["60000x60000.slim"][:12]
    with open(tmp_path / "file-of-4-gigabytes.slim", "wb") as sparse:
        sparse.write(start)
        os.truncate(sparse.fileno(), 1 << 32)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(SMALL), str(FILE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 9 * 6 + 2
    # a size alone is no reason for what only reads a header to refuse, and it allocates nothing for it
    told = {"inspect", "slim info"}
    honest = {"60000x60000", "4-gigapixels", "longest-sides", "one-row", "payload-of-4-megabytes"}
    for name, operation, error, seconds, extra in found:
        case = f"{operation} of {name}: {error}, {seconds * 1000:.1f} ms, {extra} bytes"
        assert (error is None) == (operation in told and name in honest), case
        assert seconds < SECONDS and extra < BYTES, case


def test_the_command_says_so_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "large.slim"
    file.write_bytes(claims()["60000x60000.slim"])
    command = [sys.executable, "-m", "slimcodec.cli", "decode", str(file), "--model", str(SMALL)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "60000x60000" in done.stderr and "max_pixels" in done.stderr
    assert os.listdir(tmp_path) == ["large.slim"]
