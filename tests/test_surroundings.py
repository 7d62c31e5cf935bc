"""A codec inside a program: copied, pickled, forked, trained on, and under whatever the program has set for itself."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import SMALL, photo

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.errors import ModelMismatchError, SlimError
from slimcodec.files import atomic_write

PICTURE = photo("coffee", 60, 45)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return slimcodec.load(SMALL, dtype="float32")


@pytest.fixture(scope="module")
def data(codec: Codec) -> bytes:
    return codec.encode(PICTURE, 60)


# --- copies


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda codec: pickle.loads(pickle.dumps(codec))]
)
def test_copies_of_a_used_codec_work(codec: Codec, data: bytes, copied: Callable[[Codec], Codec]) -> None:
    expected = codec.decode(data, steps=1).tobytes()
    again = copied(codec)
    assert again.encode(PICTURE, 60) == data
    assert again.decode(data, steps=1).tobytes() == expected
    assert again.bundle.bundle_id == codec.bundle.bundle_id
    assert again.encoder.bundle is again.decoder.bundle is again.bundle


def test_what_a_program_passes_on_can_be_pickled(codec: Codec, data: bytes) -> None:
    for thing in (slimcodec.inspect(data), codec.sampling(), codec.bundle.config):
        assert pickle.loads(pickle.dumps(thing)) == thing
    error = pickle.loads(pickle.dumps(ModelMismatchError("another bundle", "deadbeef")))
    assert error.bundle_id == "deadbeef" and str(error) == "another bundle"
    decompressed = pickle.loads(pickle.dumps(codec.decoder.decompress(data)))
    assert np.array_equal(decompressed.latents, codec.decoder.decompress(data).latents)


# --- training on what a codec gives


def test_tensors_of_a_codec_take_part_in_training(codec: Codec, data: bytes) -> None:
    for latent in (codec.latents(PICTURE), codec.decode_latent(data)):
        layer = torch.nn.Conv2d(len(latent), 2, 1)
        layer(latent[None].float()).square().sum().backward()
        assert layer.weight.grad is not None and bool(layer.weight.grad.abs().sum() > 0)
        latent.clone().requires_grad_(True)
        assert not latent.is_inference() and not latent.requires_grad


# --- sources


def test_open_files_and_what_is_none(codec: Codec, data: bytes, tmp_path: Path) -> None:
    expected = codec.decode(data).tobytes()
    assert codec.decode(io.BytesIO(data)).tobytes() == expected
    (tmp_path / "a.slim").write_bytes(data)
    with open(tmp_path / "a.slim", "rb") as file:
        assert slimcodec.inspect(file).file_bytes == len(data)
    with open(tmp_path / "a.slim", encoding="latin-1") as text, pytest.raises(SlimError, match="'rb'"):
        codec.decode(text)  # type: ignore[arg-type]
    for wrong in (None, 5, [1], np.zeros(3)):
        with pytest.raises(SlimError, match=type(wrong).__name__):
            codec.decode(wrong)  # type: ignore[arg-type]


# --- forks


FORKED = """
import os, sys, threading, torch, slimcodec
from slimcodec.errors import SlimError
from skimage import data
picture = data.coffee()[:200, :200].copy()
codec = slimcodec.load(sys.argv[1], dtype="float32")
torch.set_num_threads(2)
expected = codec.encode(picture)
held = threading.Event()
def hold():
    with codec.bundle.parts.lock:
        held.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    try:
        codec.encode(picture)
    except SlimError as error:
        assert "spawn" in str(error) and "set_num_threads(1)" in str(error)
    else:
        os._exit(3)
    torch.set_num_threads(1)
    os._exit(0 if codec.encode(picture) == slimcodec.load(sys.argv[1], dtype="float32").encode(picture) else 4)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


# a child collects what was garbage in the parent: sessions of ONNX Runtime wait for their threads when they are destroyed
COLLECTED = """
import gc, os, sys, numpy, slimcodec
gc.disable()
codec = slimcodec.load(sys.argv[1], runtime="onnx")
codec.encode(numpy.zeros((64, 64, 3), numpy.uint8))
garbage = [codec]
garbage.append(garbage)
del codec, garbage
child = os.fork()
if child == 0:
    gc.collect()
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("program", "bundle"), [(FORKED, SMALL), (COLLECTED, EMBEDDED_BUNDLE)])
@pytest.mark.slow
def test_a_fork_of_a_process_with_threads_fails_at_once_or_works(program: str, bundle: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(bundle)], start_new_session=True, env=environment
    )
    try:
        assert process.wait(120) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


# --- what others see


def test_random_numbers_of_another_thread_are_neither_drawn_nor_repeated() -> None:
    state = torch.get_rng_state()
    seen: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(torch.get_rng_state().numpy().tobytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        fresh = slimcodec.load(SMALL, dtype="float32")
        fresh.decode(fresh.encode(PICTURE), steps=1)
    finally:
        done.set()
        watcher.join()
    assert seen == {state.numpy().tobytes()}


def test_nothing_of_torch_numpy_or_python_is_changed(codec: Codec, data: bytes) -> None:
    def settings() -> list[Any]:
        return [
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.backends.mkldnn.enabled,
            torch.get_float32_matmul_precision(),
            np.geterr(),
            list(warnings.filters),
            sys.getrecursionlimit(),
            dict(os.environ),
        ]

    before = settings()
    fresh = slimcodec.load(SMALL, dtype="float32")
    fresh.decode(fresh.encode(PICTURE, target_bytes=400), steps=1)
    assert settings() == before


# --- what a program has set


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # of libraries while they are imported or load a tokenizer
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@contextmanager
def closed_streams() -> Iterator[None]:
    closed = io.StringIO()
    closed.close()
    with redirect_stdout(closed), redirect_stderr(closed):
        yield


@contextmanager
def few_files() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 24, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


SETTINGS: dict[str, Callable[[], Any]] = {
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "seterr": lambda: np.errstate(all="raise"),
    "warnings": warnings_as_errors,
    "closed streams": closed_streams,
    "24 file handles": few_files,
}


def there_and_back(codec: Codec) -> tuple[bytes, bytes, bytes, bytes]:
    data = codec.encode(PICTURE, 60)
    (coded,) = codec.quantise_each(PICTURE, [60])
    picture = codec.picture(codec.latents(PICTURE), PICTURE.size)
    return data, codec.decode(data, steps=1).tobytes(), picture.tobytes(), coded.symbols().tobytes()


@pytest.mark.parametrize("names", [*([name] for name in SETTINGS), [*SETTINGS]], ids=", ".join)
def test_a_callers_settings_do_not_matter(codec: Codec, names: list[str]) -> None:
    expected = there_and_back(codec)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SETTINGS[name]())
        found = there_and_back(codec)
        # built under these settings too
        fresh = there_and_back(slimcodec.load(SMALL, dtype="float32"))
    assert found == expected == fresh


@pytest.mark.parametrize(
    "name", ["ä b\u202e.slim", "-o.slim", "a\nb.slim", "x" * 250 + ".slim", " .slim", "%s{}.slim"]
)
def test_file_names_do_not_matter(codec: Codec, data: bytes, tmp_path: Path, name: str) -> None:
    atomic_write(tmp_path / name, data)
    assert codec.decode(tmp_path / name, steps=0).tobytes() == codec.decode(data, steps=0).tobytes()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_an_error_and_keeps_the_old_file(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        atomic_write("/dev/full", data)
    resource = pytest.importorskip("resource")
    atomic_write(tmp_path / "a.slim", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) // 2, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            atomic_write(tmp_path / "a.slim", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "a.slim").read_bytes() == b"old" and os.listdir(tmp_path) == ["a.slim"]


# --- imports that fail


@pytest.mark.slow
def test_an_import_that_fails_is_named(data: bytes, tmp_path: Path) -> None:
    """A library that cannot be imported is neither a damaged bundle nor a foreign error."""
    (tmp_path / "a.slim").write_bytes(data)
    program = (
        "import sys, slimcodec\n"
        "from slimcodec.errors import SlimError\n"
        "codec = slimcodec.load(sys.argv[1], dtype='float32')\n"
        "codec.decode(sys.argv[2], steps=0)\n"
        "try:\n    codec.decode(sys.argv[2], steps=1)\n"
        "except SlimError as error:\n    print(error)\n"
    )
    broken = tmp_path / "broken"
    (broken / "diffusers").mkdir(parents=True)
    (broken / "diffusers" / "__init__.py").write_text("None.missing\n")
    arguments = ["-c", program, str(SMALL), str(tmp_path / "a.slim")]
    path = os.pathsep.join([str(broken), *sys.path])
    # with -OO transformers, which comes first, stumbles over the docstrings that it lacks
    for options, reason in (
        ([], "diffusers cannot be imported (Attr"),
        (["-OO"], "transformers cannot be imported (Val"),
    ):
        done = subprocess.run(
            [sys.executable, *options, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert reason in done.stdout and ("python -OO" in done.stdout) == bool(options)


# --- what is left and sent


def test_nothing_is_kept_in_the_home_folder(tmp_path: Path) -> None:
    """Nor sent: what ONNX Runtime would report to its makers, it keeps there first."""
    home = tmp_path / "home"
    home.mkdir()
    photo("chelsea", 40, 32).save(tmp_path / "a.png")
    # without what switches the reports off elsewhere, such as CI
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "slimcodec.cli", "encode", "--runtime", "onnx", "a.png", "-o", "a.slim"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a.slim").exists() and not list(home.rglob("*"))
