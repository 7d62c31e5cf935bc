"""slimcodec inside Pillow and torch (all but the header tests need the embedded bundle)."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from skimage import data
from torch.utils.data import DataLoader

import slimcodec
import slimcodec.integrations.pillow
from slimcodec.container import Container, pack
from slimcodec.integrations.torch_dataset import SlimFolder

FOREIGN = pack(Container(31, 21, 37, b"\xde\xad\xbe\xef", b"", b"payload"))


def photo(name: str = "coffee", size: tuple[int, int] = (70, 45)) -> Image.Image:
    return Image.fromarray(np.asarray(getattr(data, name)())).resize(size)


# --- Pillow


def test_open_reads_only_the_header(tmp_path: Path) -> None:
    file = tmp_path / "a.slim"
    file.write_bytes(FOREIGN)
    with Image.open(file) as image:
        assert (image.format, image.mode, image.size) == ("SLIM", "RGB", (31, 21))
        assert image.get_format_mimetype() == "image/x-slim"
        assert image.info == {"quality": 37, "caption": None, "bundle_id": "deadbeef"}


def test_open_does_not_import_torch(tmp_path: Path) -> None:
    file = tmp_path / "a.slim"
    file.write_bytes(FOREIGN)
    code = (
        "import sys; from PIL import Image; import slimcodec.integrations.pillow;"
        "assert Image.open(sys.argv[1]).size == (31, 21); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, file], check=True)


def test_load_of_another_bundles_file_names_the_bundle() -> None:
    with pytest.raises(slimcodec.ModelMismatchError, match="deadbeef"):
        Image.open(io.BytesIO(FOREIGN)).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [(FOREIGN[:-1] + b"?", "checksum"), (FOREIGN[:9], "truncated"), (b"\xf6" + FOREIGN[1:], "version 2")],
)
def test_a_bad_file_is_no_image_and_the_reason_is_said(content: bytes, message: str) -> None:
    with pytest.raises(UnidentifiedImageError, match=message):
        Image.open(io.BytesIO(content))


def test_other_formats_are_left_to_pillow() -> None:
    file = io.BytesIO()
    photo().save(file, "PNG")
    assert Image.open(file).format == "PNG"


def test_save_and_load_are_encode_and_decode(tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "photo.slim"
    image.save(path)
    assert path.read_bytes() == slimcodec.encode(image)
    image.save(path, quality=20, caption="a cup")
    assert path.read_bytes() == slimcodec.encode(image, quality=20, caption="a cup")
    size = len(slimcodec.encode(image, quality=40, caption=None))
    image.save(path, target_bytes=size, caption=None)
    assert path.read_bytes() == slimcodec.encode(image, target_bytes=size, caption=None)
    assert path.stat().st_size <= size
    image.convert("RGBA").save(path, "SLIM")
    assert path.read_bytes() == slimcodec.encode(image)
    expected = np.asarray(slimcodec.decode(path))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(opened), expected)
        np.testing.assert_array_equal(np.asarray(opened.copy()), expected)
    memory = io.BytesIO(path.read_bytes())
    np.testing.assert_array_equal(np.asarray(Image.open(memory).crop((3, 2, 50, 40))), expected[2:40, 3:50])


def test_a_slim_file_is_a_picture_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "photo.slim"
    photo().save(path)
    assert slimcodec.encode(path) == slimcodec.encode(slimcodec.decode(path))


# --- torch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three files; a nested one, and a file that is no .slim."""
    for name, place in (("chelsea", "cat/1.slim"), ("coffee", "cup/deep/2.SLIM"), ("coffee", "cup/3.slim")):
        file = tmp_path / "set" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(slimcodec.encode(photo(name), quality=30))
    (tmp_path / "set" / "cup" / "readme.txt").touch()
    return tmp_path / "set"


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_class_folders(folder: Path) -> None:
    dataset = SlimFolder(folder)
    assert dataset.classes == ["cat", "cup"] and dataset.class_to_idx == {"cat": 0, "cup": 1}
    assert [file.name for file in dataset.files] == ["1.slim", "3.slim", "2.SLIM"]
    assert len(dataset) == 3 and dataset.targets == [0, 1, 1]
    for index, file in enumerate(dataset.files):
        image, label = dataset[index]
        assert label == dataset.targets[index]
        np.testing.assert_array_equal(np.asarray(image), np.asarray(slimcodec.decode(file, steps=0)))


def test_without_classes_an_item_is_the_image(folder: Path) -> None:
    files: list[Path | str] = [folder / "cup" / "3.slim", str(folder / "cat" / "1.slim")]
    listed = SlimFolder(files)
    assert listed.classes == [] and [str(file) for file in listed.files] == [str(file) for file in files]
    flat = SlimFolder(folder / "cat")
    assert len(flat) == 1 and flat[0].size == (70, 45)
    np.testing.assert_array_equal(np.asarray(listed[1]), np.asarray(flat[0]))


def test_steps_transform_and_latent(folder: Path) -> None:
    file = folder / "cat" / "1.slim"
    enhanced = SlimFolder([file], steps=1, transform=to_tensor)[0]
    np.testing.assert_array_equal(enhanced, to_tensor(slimcodec.decode(file, steps=1)))
    latent = SlimFolder([file], return_latent=True)[0]
    assert latent.shape[1:] == (3, 5) and latent.dtype == torch.float32
    torch.testing.assert_close(latent, slimcodec.load().decode_latent(file), rtol=0, atol=0)
    assert SlimFolder([file], return_latent=True, transform=torch.numel)[0] == latent.numel()


def test_folders_that_cannot_be_a_data_set(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        SlimFolder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no .slim file"):
        SlimFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no .slim file"):
        SlimFolder([])
    (folder / "lone.slim").write_bytes(FOREIGN)
    with pytest.raises(ValueError, match="lone.slim"):
        SlimFolder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_decode_alike(folder: Path, start: str) -> None:
    if start == "fork" and sys.platform != "linux":
        pytest.skip("fork is safe on Linux only")
    dataset = SlimFolder(folder, transform=to_tensor)
    here = [dataset[index] for index in range(3)]  # the codec is loaded here, and must not be taken along
    loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context=start)
    for (image, label), (expected, target) in zip(loader, here, strict=True):
        assert int(label) == target
        torch.testing.assert_close(image[0], expected, rtol=0, atol=0)


def test_pickle_leaves_the_codec_behind(folder: Path) -> None:
    dataset = SlimFolder(folder)
    fresh = len(pickle.dumps(dataset))
    image, label = dataset[2]
    assert len(pickle.dumps(dataset)) < fresh + 100
    again, same = pickle.loads(pickle.dumps(dataset))[2]
    assert label == same
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


# --- libraries that are missing

WITHOUT = """
import importlib, sys
for library in ("torch", "datasets", "webdataset", "ray", "pyarrow"):
    sys.modules[library] = None
import slimcodec
data = slimcodec.encode(sys.argv[1], effort=0)
def integration(name):
    return lambda: importlib.import_module("slimcodec.integrations." + name)
calls = [integration(name) for name in ("datasets", "webdataset", "ray", "torch_dataset")]
for call in [*calls, lambda: slimcodec.decode_image(data)]:
    try:
        call()
    except slimcodec.SlimError as error:
        print(error)
"""


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "a.png")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    extras = ("datasets", "webdataset", "ray", "torch", "torch")
    for line, extra in zip(done.stdout.splitlines(), extras, strict=True):
        assert "needs" in line and line.endswith(f"pip install 'slimcodec[{extra}]'")
