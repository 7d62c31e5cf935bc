"""URLs wherever a path goes: fsspec's memory, a real S3 server, a web server; and a run that is killed half way."""

from __future__ import annotations

import functools
import http.server
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import Slim
from remote import s3_server
from support import SLIM, SMALL_OPTIONS, photo, slim_process

import slimcodec
from slimcodec.codec import Codec
from slimcodec.files import as_path, atomic_open, is_file, is_folder

PLAIN = ("--caption", "none", *SMALL_OPTIONS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos in a tree, a hidden one and a text."""
    root = tmp_path_factory.mktemp("photos")
    (root / "pets").mkdir()
    photo("coffee", 40, 30).save(root / "coffee.jpg")
    photo("chelsea", 33, 20).save(root / "pets" / "cat.PNG")
    photo("rocket", 16, 16).save(root / "pets" / "rocket.webp")
    photo("rocket", 16, 16).save(root / ".hidden.png")
    (root / "notes.txt").write_text("no photo")
    return root


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in this process's memory, emptied."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that sees an S3 server with the bucket ``bucket``, which holds the photos."""
    pytest.importorskip("s3fs")
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "bucket").mkdir()
    with s3_server(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.put(str(photos), "bucket/photos", recursive=True)
        yield {**os.environ, **environment}
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_url_is_a_path_of_the_api(memory: fsspec.AbstractFileSystem, small: Codec, photos: Path) -> None:
    memory.put(str(photos / "coffee.jpg"), "/in/coffee.jpg")
    data = small.encode("memory://in/coffee.jpg")
    assert data == small.encode(photos / "coffee.jpg")
    with fsspec.open("memory://out/coffee.slim", "wb") as file:
        file.write(data)
    url = "memory://out/coffee.slim"
    assert slimcodec.inspect(url).width == 40 and is_file(url) and is_folder("memory://out")
    pictures = [small.decode(source) for source in (url, as_path(url), io.BytesIO(data), data)]
    for picture in pictures:
        np.testing.assert_array_equal(picture, pictures[0])


def test_a_remote_file_appears_whole_or_not_at_all(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(RuntimeError), atomic_open("memory://a/file") as file:
        file.write(b"half")
        raise RuntimeError
    assert not is_file("memory://a/file")
    with atomic_open("memory://a/file") as file:
        file.write(b"whole")
        assert not is_file("memory://a/file")
    assert memory.cat("/a/file") == b"whole"


@pytest.mark.parametrize(("url", "message"), [("nope://a/b", "nope"), ("gs://a/b", "gcsfs")])
def test_a_url_that_nothing_opens_is_said(url: str, message: str) -> None:
    with pytest.raises(slimcodec.SlimError, match=message):
        slimcodec.inspect(url)


def test_the_command_takes_urls(slim: Slim, memory: fsspec.AbstractFileSystem, photos: Path) -> None:
    memory.put(str(photos), "/in", recursive=True)
    result = slim("encode", "memory://in", "-o", "memory://out", *PLAIN)
    assert result.status == 0, result.err
    assert memory.find("/out") == ["/out/coffee.slim", "/out/pets/cat.slim", "/out/pets/rocket.slim"]
    again = slim("encode", "memory://in", "-o", "memory://out", *PLAIN)
    assert again.status == 0 and "3 skipped" in again.out
    assert slim("encode", "memory://in/**/*.webp", "-o", "memory://glob/", *PLAIN).status == 0
    assert memory.find("/glob") == ["/glob/pets/rocket.slim"]
    assert slim("encode", "memory://in/coffee.jpg", *PLAIN).status == 0
    assert memory.exists("/in/coffee.slim")
    assert (
        slim("decode", "memory://out/pets", "-o", photos / "back", "--steps", 0, *SMALL_OPTIONS).status == 0
    )
    assert sorted(path.name for path in (photos / "back").iterdir()) == ["cat.png", "rocket.png"]


def test_a_store_that_does_not_answer_is_no_internal_error(
    slim: Slim, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> bool:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(memory, "isdir", away)
    result = slim("encode", "memory://in", *PLAIN)
    assert result.status == 1 and "no credentials" in result.err and "internal" not in result.err


def test_what_the_command_refuses(slim: Slim, memory: fsspec.AbstractFileSystem) -> None:
    missing = slim("encode", "memory://missing/a.jpg", *PLAIN)
    assert missing.status == 1 and "memory://missing/a.jpg" in missing.err
    assert slim("encode", "memory://in/a.jpg", "--delete-source", *PLAIN).status == 2
    assert slim("encode", "nope://a/b.jpg", *PLAIN).status == 1


def test_a_web_server_is_read(slim: Slim, photos: Path, tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(photos))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/coffee.jpg"
        assert slim("encode", url, "-o", tmp_path / "a.slim", *PLAIN).status == 0
        server.shutdown()
    assert slim("encode", photos / "coffee.jpg", "-o", tmp_path / "b.slim", *PLAIN).status == 0
    assert (tmp_path / "a.slim").read_bytes() == (tmp_path / "b.slim").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bucket_is_read_and_written(
    bucket: dict[str, str], jobs: int, photos: Path, tmp_path: Path
) -> None:
    out = f"s3://bucket/jobs-{jobs}"
    done = slim_process("encode", "s3://bucket/photos", "-o", out, "--jobs", jobs, *PLAIN, env=bucket)
    assert done.status == 0, done.err
    assert slim_process("encode", photos, "-o", tmp_path, "--jobs", jobs, *PLAIN).status == 0
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.slim"))
    assert [name.removeprefix(f"bucket/jobs-{jobs}/") for name in store.find(out)] == names
    for name in names:
        assert store.cat(f"{out}/{name}") == (tmp_path / name).read_bytes()


@pytest.mark.slow
def test_a_run_into_a_bucket_is_killed_and_taken_up(bucket: dict[str, str], tmp_path: Path) -> None:
    for number in range(40):
        photo("astronaut", 64, 64 + number).save(tmp_path / f"{number:02}.jpg")
    out = "s3://bucket/killed"
    command = [*SLIM, "encode", str(tmp_path), "-o", out, *PLAIN]
    store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    with subprocess.Popen(command, env=bucket, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not store.find(out) and process.poll() is None:
            assert time.monotonic() < deadline, "no file was written"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = {name: store.cat(name) for name in store.find(out)}
    assert 0 < len(before) < 40
    again = slim_process("encode", tmp_path, "-o", out, *PLAIN, env=bucket)
    assert again.status == 0 and again.out.startswith(f"{40 - len(before)} files: ".encode())
    after = {name: store.cat(name) for name in store.find(out)}
    assert len(after) == 40 and after.items() >= before.items()
    codec = slimcodec.load(SMALL_OPTIONS[1], dtype="float32")
    for data in after.values():
        codec.read(data)


def test_an_upload_in_parts_shows_nothing_until_it_ends(bucket: dict[str, str]) -> None:
    store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    part = bytes(6 << 20)
    url = as_path("s3://bucket/parts/big")
    url.fs.default_block_size = 5 << 20  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError), atomic_open(url) as file:
        file.write(part)
        file.write(part)
        raise RuntimeError
    assert not store.exists("bucket/parts/big")
    with atomic_open(url) as file:
        file.write(part)
        file.write(part)
        assert not store.exists("bucket/parts/big")
    assert store.size("bucket/parts/big") == 2 * len(part)
