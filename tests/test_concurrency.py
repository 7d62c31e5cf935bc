"""One codec in many threads, and many processes on one folder: the same bytes as one alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from support import NAMES, photo

import slimcodec
from slimcodec.cli.batch import Output, Steps, run_batch
from slimcodec.cli.inputs import Job
from slimcodec.codec import Codec
from slimcodec.errors import ImageError

SMALL = Path(__file__).parent / "golden" / "small"
FILES = sorted((SMALL.parent / "small-files").glob("*.slim"))


@pytest.fixture
def codec() -> Codec:
    """A codec whose parts nobody has built yet."""
    return slimcodec.load(SMALL, dtype="float32")


def test_eight_threads_make_the_bytes_of_one(codec: Codec, tmp_path: Path) -> None:
    pictures: list[Path | bytes] = []
    for number in range(24):
        file = io.BytesIO()
        photo(NAMES[number % 4], 33 + 5 * number, 70 - number).save(file, "PNG")
        path = tmp_path / f"{number}.png"
        path.write_bytes(file.getvalue())
        pictures.append(path if number % 2 else file.getvalue())
    alone = slimcodec.load(SMALL, dtype="float32")
    files = [alone.encode(picture, 10 + number) for number, picture in enumerate(pictures)]
    decoded = [alone.decode(data, steps=number % 3).tobytes() for number, data in enumerate(files)]

    def there_and_back(number: int) -> tuple[bytes, bytes]:
        data = codec.encode(pictures[number], 10 + number)
        return data, codec.decode(data, steps=number % 3).tobytes()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(there_and_back, range(24)))
    assert found == list(zip(files, decoded, strict=True))


def test_a_limit_in_one_thread_is_none_in_another(codec: Codec) -> None:
    file = io.BytesIO()
    photo("coffee", 300, 200).save(file, "PNG")
    picture, limit, filters = file.getvalue(), Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    data = codec.encode(picture)

    def attempt(number: int) -> bytes | None:
        try:
            codec.decode_latent(data)
            return codec.encode(picture, max_pixels=59_999 if number % 2 else None)
        except ImageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(attempt, range(40))) == [data, None] * 20
    assert limit == Image.MAX_IMAGE_PIXELS and warnings.filters == filters


@pytest.mark.slow
def test_eight_processes_on_one_folder_make_the_bytes_of_one(codec: Codec, tmp_path: Path) -> None:
    photos, slims = tmp_path / "photos", tmp_path / "slims"
    expected = {}
    for number in range(20):
        path = photos / f"{number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(NAMES[number % 4], 40 + number, 50).save(path)
        expected[f"{number % 3}/{number:02d}.slim"] = codec.encode(path)
    command = [sys.executable, "-m", "slimcodec.cli", "encode", str(photos), "-o", str(slims), "--json"]
    command += ["--model", str(SMALL), "--dtype", "float32"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(8)
    ]
    summaries = [json.loads(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    for summary in summaries:
        assert len(summary["files"]) + len(summary["skipped"]) == 20
    made = {str(path.relative_to(slims)): path.read_bytes() for path in slims.rglob("*") if path.is_file()}
    assert made == expected


def overtaken() -> Steps:
    """Work whose result another process has made when it is done."""

    def work(jobs: list[Job]) -> Iterator[bytes]:
        for job in jobs:
            job.target.write_bytes(b"of another process")
            yield FILES[0].read_bytes()

    return Steps(lambda job: job, work, lambda job, _, data: Output(data, slimcodec.inspect(data), 1))


def test_a_result_that_appeared_meanwhile_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for picture in pictures:
        Path(picture).touch()
    for overwrite, left in ((False, b"of another process"), (True, FILES[0].read_bytes())):
        run_batch(
            overtaken,
            pictures,
            str(tmp_path),
            reads=(),
            writes=(".slim",),
            jobs=1,
            overwrite=overwrite,
            as_json=False,
        )
        assert (tmp_path / "a.slim").read_bytes() == (tmp_path / "b.slim").read_bytes() == left
        for name in ("a.slim", "b.slim"):
            os.unlink(tmp_path / name)
    said = capsys.readouterr()
    assert said.err.count("--overwrite") == 2 and "2 skipped" in said.out
