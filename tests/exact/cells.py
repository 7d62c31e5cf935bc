"""What the cells of the exactness matrix do: files read, and written anew, under other configurations and by other programs.

Nothing here knows what a payload holds or what the networks look like: whatever the codec does when it reads a file is done
again. A cell's result is the number of files that came out differently.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import unpack
from slimcodec.models.latent_codec import CodedLatent

sys.path.append(str(Path(__file__).parent.parent))

QUALITIES = (5, 25, 50, 75, 95)
FACTS = "facts.json"
#: file name to the hash of its symbols and decoded values
Facts = dict[str, str]


@dataclass(frozen=True)
class Configuration:
    """How torch is set up, and in which type and memory layout the bundle is loaded."""

    name: str
    threads: int = 1
    dtype: str = "float32"
    #: "channels-last"; "contiguous"; or "strided": weights and inputs with gaps between their values
    layout: str = "channels-last"
    onednn: bool = True
    deterministic: bool = False
    #: type of an autocast region around everything, "" = none
    autocast: str = ""
    device: str = "cpu"
    #: environment variables of its process, which libraries read when they start
    environment: Mapping[str, str] = field(default_factory=dict)
    #: whether its own encoder is run too; floating point may give it other symbols, which must be read alike everywhere
    encodes: bool = False
    runtime: str = "torch"


REFERENCE = Configuration("reference")
_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
_SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
CONFIGURATIONS = (
    REFERENCE,
    Configuration("2 threads", threads=2),
    Configuration("4 threads", threads=4),
    Configuration("bfloat16", dtype="bfloat16", encodes=True),
    Configuration("float16", dtype="float16", encodes=True),
    Configuration("bfloat16 autocast", autocast="bfloat16"),
    Configuration("contiguous", layout="contiguous"),
    Configuration("strided", layout="strided"),
    Configuration("oneDNN off", onednn=False, encodes=True),
    Configuration("deterministic algorithms", deterministic=True),
    Configuration("instructions up to AVX2", environment=_AVX2),
    Configuration("instructions up to SSE4", environment=_SSE),
    Configuration("all at once", 3, "bfloat16", "strided", False, True, "bfloat16", environment=_AVX2),
    Configuration("ONNX Runtime", runtime="onnx", encodes=True),
    Configuration("ONNX Runtime, 3 threads", threads=3, runtime="onnx"),
    Configuration("CUDA", device="cuda", encodes=True),
)


@contextmanager
def configured(configuration: Configuration) -> Iterator[None]:
    """Torch as a configuration wants it, and afterwards as it was; environment variables are up to who starts the process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.use_deterministic_algorithms, deterministic)
        torch.set_num_threads(configuration.threads)
        torch.use_deterministic_algorithms(configuration.deterministic)
        stack.enter_context(torch.backends.mkldnn.flags(enabled=configuration.onednn))
        if configuration.autocast:
            dtype = getattr(torch, configuration.autocast)
            stack.enter_context(torch.autocast(configuration.device, dtype=dtype))
        yield


def load(configuration: Configuration, bundle: str | None = None) -> Codec:
    """A codec of a bundle (default: the embedded one) in a configuration's type and layout."""
    device, dtype = configuration.device, configuration.dtype
    codec = slimcodec.load(bundle, device, dtype, runtime=configuration.runtime)
    if configuration.runtime == "onnx":
        return codec
    networks: list[nn.Module] = [codec.bundle.latent_model.autoencoder, codec.bundle.compressor]
    if configuration.layout == "contiguous":
        for network in networks:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    elif configuration.layout == "strided":
        for network in (*networks, codec.bundle.module("prior")):
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.data = strided(tensor.data)
    return codec


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between them in memory."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def fingerprint(coded: CodedLatent) -> str:
    """Hash of all symbols in coding order and of the decoded values."""
    digest = hashlib.sha256(coded.symbols().astype("<i4").tobytes())
    digest.update(coded.values.astype("<f4").tobytes())
    return digest.hexdigest()


# ---- calls that are seen, and made again ------------------------------------------------------------------------


@dataclass
class Spy:
    """A function that remembers its calls."""

    function: Callable[..., Any]
    calls: list[tuple[tuple[Any, ...], Any]] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Any:
        result = self.function(*arguments)
        self.calls.append((arguments, result))
        return result


def strided_run(run: Any) -> Any:
    """A runtime's ``run`` that gets its inputs with gaps in memory."""
    return lambda name, *arrays: run(name, *(np.stack([x, x], -1)[..., 0] for x in arrays))


# ---- cells -------------------------------------------------------------------------------------------------------


def write(codec: Codec, pictures: Iterable[Image.Image], qualities: Sequence[int], folder: Path) -> Facts:
    """Encodes pictures to files, and keeps beside each what its exact stage was given; the facts are written last."""
    folder.mkdir(parents=True, exist_ok=True)
    coder = codec.coder
    facts: Facts = {}
    latents = Spy(codec.encoder.latents)
    for number, picture in enumerate(pictures):
        latents.calls.clear()
        for quality in qualities:
            spy = Spy(coder.quantise)
            # a picture's latent is the same at every quality, and costs more than all the rest
            again = (lambda _: latents.calls[0][1]) if latents.calls else latents
            with (
                mock.patch.object(coder, "quantise", spy),
                mock.patch.object(codec.encoder, "latents", again),
            ):
                data = codec.encode(picture, quality, caption=None)
            # evidence quantises several times; the last symbols are the file's
            given, coded = spy.calls[-1]
            path = folder / f"{number:04d}-{quality:03d}.slim"
            path.write_bytes(data)
            values, hyper, _ = given
            np.savez(path.with_suffix(".npz"), values=values, hyper=hyper)
            facts[path.name] = fingerprint(coded)
    (folder / FACTS).write_text(json.dumps(facts))
    return facts


def facts_of(folder: Path) -> Facts:
    """What ``write`` found of the files in a folder."""
    facts: Facts = json.loads((folder / FACTS).read_text())
    return facts


def read_differently(codec: Codec, folder: Path) -> int:
    """Files of a folder whose symbols or decoded values are not those that were written; an error counts too."""
    return sum(not _reads(codec, folder / name, wanted) for name, wanted in facts_of(folder).items())


def _reads(codec: Codec, path: Path, wanted: str) -> bool:
    try:
        return fingerprint(codec.read(path)[1]) == wanted
    except slimcodec.SlimError:
        return False


def written_differently(codec: Codec, folder: Path) -> int:
    """Files of a folder whose payload is another one when it is made anew from the same values."""
    wrong = 0
    for name in facts_of(folder):
        container = unpack((folder / name).read_bytes())
        with np.load((folder / name).with_suffix(".npz")) as kept:
            coded = codec.coder.quantise(kept["values"], kept["hyper"], container.quality)
        wrong += codec.coder.write(coded) != container.payload
    return wrong


def row(configuration: Configuration, bundle: str | None, folder: Path) -> dict[str, int]:
    """Files of a folder that a configuration reads differently, and writes differently."""
    with configured(configuration):
        codec = load(configuration, bundle)
        coder = codec.coder
        run = strided_run(coder.run) if configuration.layout == "strided" else coder.run
        with mock.patch.object(coder, "run", run):
            return {
                "read": read_differently(codec, folder),
                "written": written_differently(codec, folder),
            }


def batches(codec: Codec, folder: Path, sizes: Sequence[int]) -> dict[int, int]:
    """Files for which the prior says anything else in a batch with others, by the batch's size.

    All that the prior is asked while files of a quality are read is asked again for several of them at once.
    """
    coder = codec.coder
    wrong: dict[int, set[str]] = {size: set() for size in sizes}
    by_quality: dict[str, list[str]] = {}
    for name in facts_of(folder):
        by_quality.setdefault(name.split("-")[1], []).append(name)
    for names in by_quality.values():
        seen = []
        for name in names:
            spy = Spy(coder.run)
            with mock.patch.object(coder, "run", spy):
                codec.read(folder / name)
            seen.append(spy.calls)
        for size in sizes:
            for start in range(0, len(names), size):
                some = slice(start, start + size)
                wrong[size] |= _batched(coder.run, names[some], seen[some])
    return {size: len(names) for size, names in wrong.items()}


def _batched(run: Any, names: list[str], seen: list[list[Any]]) -> set[str]:
    different: set[str] = set()
    for calls in zip(*seen, strict=True):
        columns = list(zip(*(arguments for arguments, _ in calls), strict=True))
        # grids have a batch axis, qualities and positions are shared
        together = [np.concatenate(column) if np.ndim(column[0]) == 4 else column[0] for column in columns]
        if not any(np.ndim(given) == 4 for given in together):
            continue
        results = run(*together)
        for number, (name, (_, wanted)) in enumerate(zip(names, calls, strict=True)):
            if not all(
                np.array_equal(whole[number], one[0]) for whole, one in zip(results, wanted, strict=True)
            ):
                different.add(name)
    return different


def numpy_reference(codec: Codec, folder: Path) -> int:
    """Files that the reference in numpy's int64 and Python's integers (tests/reference_prior.py) reads differently."""
    import reference_prior

    tensors = codec.bundle.stored["prior"]
    wrong = 0
    for name, wanted in facts_of(folder).items():
        container = unpack((folder / name).read_bytes())
        rows, columns = -(-container.height // codec.cell), -(-container.width // codec.cell)
        symbols, grid = reference_prior.decode(
            tensors, container.payload, rows, columns, container.quality, codec.coder.steps
        )
        digest = hashlib.sha256(np.asarray(symbols, "<i4").tobytes())
        digest.update((grid.transpose(2, 0, 1) / 16).astype("<f4").tobytes())
        wrong += digest.hexdigest() != wanted
    return wrong
