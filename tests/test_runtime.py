"""Both runtimes: the same symbols, pictures that agree, files of either for the other, and no torch where none is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import small_bundle
from support import NAMES, SMALL, photo

import slimcodec
from slimcodec import ModelMismatchError, SlimError
from slimcodec.codec import Codec
from slimcodec.container import EMBEDDED_BUNDLE, Container, unpack
from slimcodec.models.bundle import Bundle
from slimcodec.models.graphs import FOLDER, INDEX, export
from slimcodec.models.networks import networks

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=["slim-tiny", "small"])
def pair(request: pytest.FixtureRequest) -> tuple[Codec, Codec]:
    """Codecs of a bundle with its graphs, and of one whose graphs are made when they are needed: ONNX Runtime and torch."""
    source = None if request.param == "slim-tiny" else SMALL
    return slimcodec.load(source, runtime="onnx"), slimcodec.load(source, dtype="float32", runtime="torch")


def without_payload(file: Container) -> Container:
    """What a file says apart from its symbols."""
    return Container(file.width, file.height, file.quality, file.bundle_id, file.caption, b"")


@pytest.mark.parametrize("name", NAMES)
def test_files_and_pictures_of_both_agree(pair: tuple[Codec, Codec], name: str) -> None:
    image = photo(name, 150, 110)
    for quality in (10, 70):
        files = [codec.encode(image, quality) for codec in pair]
        # at the encoder a symbol may round the other way
        assert abs(len(files[0]) - len(files[1])) <= 0.02 * len(files[1]) + 2
        assert without_payload(unpack(files[0])) == without_payload(unpack(files[1]))
        for data in files:
            read = [codec.read(data)[1] for codec in pair]
            assert np.array_equal(read[0].symbols(), read[1].symbols())
            assert np.array_equal(read[0].values, read[1].values)
            pictures = [np.asarray(codec.decode(data, 0), np.int16) for codec in pair]
            assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_the_exact_stage_writes_the_same_bytes(pair: tuple[Codec, Codec]) -> None:
    onnx, torch = pair
    (latent,) = torch.encoder.latents([np.asarray(photo("coffee", 170, 65))])
    for quality in (1, 33, 100):
        coded = torch.encoder.quantise(latent, quality)
        level = np.array([quality])
        values = torch.runtime.run("analyse", latent, level, np.ones_like(latent[:, :1]))[0]
        (hyper,) = torch.runtime.run("hyper_analyse", values, level)
        again = onnx.coder.quantise(values, hyper, quality)
        assert onnx.coder.write(again) == torch.coder.write(coded)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 300)])
def test_odd_sizes_and_tiles(pair: tuple[Codec, Codec], size: tuple[int, int]) -> None:
    onnx, torch = pair
    pieces = Codec(onnx.bundle, 6, onnx.runtime)
    data = onnx.encode(photo("rocket", *size), 40)
    picture = np.asarray(onnx.decode(data, 0), np.int16)
    assert picture.shape[:2] == size[::-1]
    for other in (torch, pieces):
        assert np.abs(picture - np.asarray(other.decode(data, 0), np.int16)).max() <= 2


def test_guidance_is_the_same_from_the_same_pixels(pair: tuple[Codec, Codec]) -> None:
    if not pair[0].bundle.config.captioners:
        pytest.skip("no captioner")
    data = pair[1].encode(photo("chelsea", 128, 96), 20, "egyptian cat")
    sampling = pair[0].sampling(0, 0.5, "machine")
    files = [codec.decoder.decompress(data) for codec in pair]
    pixels = pair[1].decoder.pixels(files[1].latents)
    # its steps follow a gradient that a level of one pixel turns: decoded pixels that differ are guided differently
    guided = [codec.decoder.guide(file, pixels, sampling) for codec, file in zip(pair, files, strict=True)]
    assert np.array_equal(guided[0], guided[1])
    assert not np.array_equal(guided[0], pixels)


def test_denoising_is_torchs_in_both(pair: tuple[Codec, Codec]) -> None:
    data = pair[1].encode(photo("chelsea", 64, 64), 20)
    pictures = [np.asarray(codec.decode(data, 1), np.int16) for codec in pair]
    assert np.abs(pictures[0] - pictures[1]).max() <= 3


def test_latents_are_arrays_or_tensors(pair: tuple[Codec, Codec]) -> None:
    data = pair[0].encode(photo("coffee", 40, 40), 30)
    array, tensor = (codec.decode_latent(data) for codec in pair)
    assert isinstance(array, np.ndarray) and np.allclose(array, tensor.numpy(), atol=1e-4)
    assert pair[0].picture(array, (40, 40)).size == (40, 40)


# ---- which runtime, and what is missing ------------------------------------------------------------------------

SCRIPT = """
import sys
import slimcodec
from slimcodec.cli import main
codec = slimcodec.load()
data = codec.encode(sys.argv[1])
codec.decode(data, steps=0)
codec.decode(data, steps=0, preset="machine")
codec.bit_map(sys.argv[1])
for words in (["encode", sys.argv[1]], ["decode", sys.argv[2], "--steps", "0", "--overwrite"], ["verify", sys.argv[2]]):
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code, words
print(codec.runtime.name, [name for name in ("torch", "diffusers", "onnx", "transformers") if name in sys.modules])
"""


def test_a_process_without_torch_imports_none(tmp_path: Path) -> None:
    photo("coffee", 80, 64).save(tmp_path / "a.png")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.png"), str(tmp_path / "a.slim")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "onnx []"


def test_auto_takes_torch_where_something_asks_for_it() -> None:
    # imported already, as in every test
    assert slimcodec.load().runtime.name == "torch"
    assert slimcodec.load(dtype="bfloat16").runtime.dtype == "bfloat16"
    assert slimcodec.load(runtime="onnx").runtime.dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "jax"}, "auto, onnx, torch"),
        ({"runtime": "onnx", "device": "cuda"}, "on the processor in float32"),
        ({"runtime": "onnx", "dtype": "bfloat16"}, "on the processor in float32"),
        ({"runtime": "onnx", "offload": True}, "leave out device, dtype and offload"),
    ],
)
def test_what_a_runtime_cannot_do_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SlimError, match=message):
        slimcodec.load(**arguments)


# ---- graphs --------------------------------------------------------------------------------------------------------


def test_graphs_are_checked_when_they_are_read(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_BUNDLE, tmp_path / "copy")
    index = tmp_path / "copy" / FOLDER / INDEX
    graph = tmp_path / "copy" / FOLDER / "encoder" / "encode.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(SlimError, match="not as it was saved"):
        slimcodec.load(tmp_path / "copy", runtime="onnx").encode(photo("coffee", 32, 32))
    listed = json.loads(index.read_text())
    listed["graphs"]["encode"]["file"] = "../config.json"
    index.write_text(json.dumps(listed))
    with pytest.raises(SlimError, match="no path inside"):
        slimcodec.load(tmp_path / "copy", runtime="onnx").encode(photo("coffee", 32, 32))
    index.write_text(json.dumps(listed | {"weights_sha256": "0" * 64}))
    with pytest.raises(ModelMismatchError, match="slim bundle export"):
        slimcodec.load(tmp_path / "copy", runtime="onnx").encode(photo("coffee", 32, 32))
    index.write_text("[]")
    with pytest.raises(SlimError, match="damaged"):
        slimcodec.load(tmp_path / "copy", runtime="onnx").encode(photo("coffee", 32, 32))


def test_the_embedded_bundle_holds_a_graph_of_every_network() -> None:
    bundle = slimcodec.load(runtime="onnx").bundle
    # else a process without torch stops at the first photo that needs it
    assert set(bundle.graphs) == set(networks(bundle.config))


def test_graphs_belong_to_the_bundle(tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "small")
    export(Bundle.from_pretrained(SMALL), tmp_path / "small" / FOLDER, weights=False)
    codec = slimcodec.load(tmp_path / "small", runtime="onnx")
    assert set(codec.bundle.graphs) >= {"encode", "decode", "second_pass"}
    image = photo("coffee", 50, 40)
    assert codec.encode(image, 40) == slimcodec.load(SMALL, runtime="onnx").encode(image, 40)
    listed = {entry["file"] for entry in codec.bundle.graphs.values()}
    folder = EMBEDDED_BUNDLE / FOLDER
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")} >= listed
    # no weights twice
    assert sum(path.stat().st_size for path in (tmp_path / "small" / FOLDER).rglob("*.onnx")) < 600_000


def test_a_tagger_that_tells_no_region_has_a_graph_too(tmp_path: Path) -> None:
    bundle = small_bundle()
    assert not bundle.config.captioners[0].roi
    bundle.save_pretrained(tmp_path)
    export(bundle, tmp_path / FOLDER, weights=False)
    assert json.loads((tmp_path / FOLDER / INDEX).read_text())["graphs"]["tag"]["outputs"] == ["logits"]
    onnx, torch = (slimcodec.load(tmp_path, runtime=runtime) for runtime in ("onnx", "torch"))
    pixels = np.asarray(photo("coffee", 50, 40))
    (ours,), (theirs,) = onnx.encoder.tag(pixels), torch.encoder.tag(pixels)
    assert np.allclose(ours, theirs, atol=0.05)


# ---- other programs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["small", pytest.param("slim-tiny", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Codec, Path]:
    """A codec, and its networks as ``slim bundle export`` writes them."""
    codec = slimcodec.load(None if request.param == "slim-tiny" else SMALL, dtype="float32")
    folder = tmp_path_factory.mktemp("exported")
    export(codec.bundle, folder)
    return codec, folder


def test_the_decoder_of_the_documentation_decodes(exported: tuple[Codec, Path], tmp_path: Path) -> None:
    codec, folder = exported
    page = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) <= 150
    imported = {
        line.split()[1].split(".")[0]
        for line in program.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported <= {"json", "sys", "zlib", "pathlib", "constriction", "numpy", "onnxruntime"}
    (tmp_path / "decode.py").write_text(program, encoding="utf-8")
    cases = [
        ("chelsea", (150, 110), 70, "a cat"),
        ("coffee", (16, 9), 100, None),
        ("rocket", (97, 260), 5, "auto"),
    ]
    for name, size, quality, caption in cases:
        data = codec.encode(photo(name, *size), quality, caption)
        (tmp_path / "a.slim").write_bytes(data)
        command = [
            sys.executable,
            str(tmp_path / "decode.py"),
            str(folder),
            str(tmp_path / "a.slim"),
            str(tmp_path / "a.ppm"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "a.ppm") as picture:
            ours = np.asarray(picture, np.int16)
        assert np.abs(ours - np.asarray(codec.decode(data, 0), np.int16)).max() <= 1


def test_exported_folders_name_every_network(exported: tuple[Codec, Path]) -> None:
    codec, folder = exported
    about = json.loads((folder / INDEX).read_text())
    assert about["bundle_id"] == codec.bundle.bundle_id
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")}
    assert files == {entry["file"] for entry in about["graphs"].values()}
    encoder = {name for name, entry in about["graphs"].items() if entry["file"].startswith("encoder/")}
    tagger = {"tag"} if codec.bundle.config.captioners else set()
    assert encoder == {"encode", "analyse", "analyse_linearly", "hyper_analyse"} | tagger
