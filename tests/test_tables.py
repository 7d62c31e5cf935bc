"""Hugging Face datasets and WebDataset: columns and members that are .slim files, and shards through the command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Slim
from hub_server import REPO, hub_server
from PIL import Image
from support import SMALL, SMALL_OPTIONS, photo, slim_process

import slimcodec
from slimcodec.codec import Codec, default_codec
from slimcodec.container import is_slim
from slimcodec.errors import ImageError, SlimError
from slimcodec.files import as_path
from slimcodec.integrations.shards import CellEncoder, encode_shard

datasets = pytest.importorskip("datasets")
wds = pytest.importorskip("webdataset")
slim_datasets = pytest.importorskip("slimcodec.integrations.datasets")
slim_webdataset = pytest.importorskip("slimcodec.integrations.webdataset")
parquet = pytest.importorskip("pyarrow.parquet")

PLAIN = ("--caption", "none", *SMALL_OPTIONS)
NAMES, SIZES = ("coffee", "chelsea", "rocket"), ((40, 30), (16, 16), (33, 17))
PHOTOS = [photo(name, *size) for name, size in zip(NAMES, SIZES, strict=True)]
FEATURE = {"model": str(SMALL)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def table() -> Any:
    """Three coded photos in a column ``image``, a label and a text beside each."""
    feature = slim_datasets.SlimImage(quality=40, **FEATURE)
    features = datasets.Features(image=feature, label=datasets.Value("int64"), text=datasets.Value("string"))
    rows = {"image": PHOTOS, "label": [5, 6, 7], "text": list(NAMES)}
    return datasets.Dataset.from_dict(rows, features=features)


def stored(table: Any) -> list[bytes]:
    """The bytes of the column, undecoded."""
    return [
        row["image"]["bytes"] for row in table.cast_column("image", slim_datasets.SlimImage(decode=False))
    ]


# --- datasets


def test_pictures_that_are_put_in_are_encoded(table: Any, tmp_path: Path) -> None:
    codec = default_codec(str(SMALL))
    expected = [codec.encode(image, 40) for image in PHOTOS]
    assert stored(table) == expected
    feature = slim_datasets.SlimImage(quality=40, **FEATURE)
    PHOTOS[0].save(tmp_path / "a.png")
    for value in (np.asarray(PHOTOS[0]), np.asarray(PHOTOS[0]).tolist(), str(tmp_path / "a.png")):
        assert feature.encode_example(value)["bytes"] == expected[0]
    assert feature.encode_example(expected[0]) == {"bytes": expected[0], "path": None}
    for value in ([[0.25, 0.5]], [[300, 0]], [[-1, 0]]):
        with pytest.raises(ImageError):
            feature.encode_example(value)
    with pytest.raises(SlimError):
        feature.encode_example(str(tmp_path / "missing.png"))


@pytest.mark.parametrize("output", ["pil", "numpy", "tensor", "latent"])
def test_a_row_is_read_as_the_feature_says(table: Any, output: str) -> None:
    codec = default_codec(str(SMALL))
    cast = table.cast_column("image", slim_datasets.SlimImage(output=output, **FEATURE))
    assert cast[1]["label"] == 6
    for rows in (cast, cast.to_iterable_dataset()):
        for row, data in zip(rows, stored(table), strict=True):
            picture = np.asarray(codec.decode(data, steps=0))
            if output == "latent":
                torch.testing.assert_close(row["image"], codec.decode_latent(data), rtol=0, atol=0)
            else:
                value = row["image"].permute(1, 2, 0) if output == "tensor" else row["image"]
                np.testing.assert_array_equal(np.asarray(value), picture)


def test_bytes_survive_every_round_trip(table: Any, tmp_path: Path) -> None:
    before = stored(table)
    table.save_to_disk(tmp_path / "disk")
    table.to_parquet(tmp_path / "a.parquet")
    files = str(tmp_path / "a.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    for again in (datasets.load_from_disk(tmp_path / "disk"), loaded):
        assert again.features == table.features and stored(again) == before
    streamed = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert [row["image"].size for row in streamed] == list(SIZES)
    # what push_to_hub does to each of its shards
    embedded = table.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    assert stored(embedded.with_format(None)) == before


def test_a_cast_encodes_nothing(tmp_path: Path) -> None:
    files = [jpeg(PHOTOS[0]), default_codec(str(SMALL)).encode(PHOTOS[1])]
    raw = datasets.Dataset.from_dict({"image": files})
    cast = raw.cast_column("image", slim_datasets.SlimImage(output="numpy", **FEATURE))
    assert stored(cast) == files
    np.testing.assert_array_equal(cast[0]["image"], np.asarray(Image.open(io.BytesIO(files[0]))))
    assert cast[1]["image"].shape == (16, 16, 3)
    with pytest.raises(slimcodec.SlimError, match="output"):
        slim_datasets.SlimImage(output="jpeg")


# --- WebDataset


def shard(path: Path, broken: bool = False) -> Path:
    """A shard of three photos with their labels, members that are no pictures, and perhaps a broken picture."""
    with wds.TarWriter(str(path), mtime=0) as writer:
        for number, image in enumerate(PHOTOS):
            writer.write(
                {"__key__": f"set/{number}", "jpg": jpeg(image), "cls": number, "json": {"n": number}}
            )
        writer.write({"__key__": "both", "jpg": jpeg(PHOTOS[0]), "seg.png": PHOTOS[1], "png": PHOTOS[2]})
        if broken:
            writer.write({"__key__": "broken", "jpg": b"\xff\xd8\xff no picture"})
    return path


def members(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {
            member["fname"]: member["data"]
            for member in wds.tariterators.tar_file_iterator(file, skip_meta=None)
        }


def test_handlers_and_encoder(tmp_path: Path) -> None:
    path, codec = tmp_path / "a.tar", default_codec()
    encoder = slim_webdataset.slimcodec_encoder(quality=30)
    done = codec.encode(PHOTOS[1])
    PHOTOS[2].save(tmp_path / "a.png")
    with wds.TarWriter(str(path), encoder=encoder) as writer:
        writer.write({"__key__": "0", "slim": PHOTOS[0], "seg.slim": np.asarray(PHOTOS[2]), "cls": 3})
        writer.write(
            {"__key__": "1", "slim": done, "seg.slim": str(tmp_path / "a.png"), "txt": "a", "cls": 4}
        )
    assert members(path)["1.seg.slim"] == members(path)["0.seg.slim"] and members(path)["1.txt"] == b"a"
    assert members(path)["0.slim"] == codec.encode(PHOTOS[0], quality=30)
    assert members(path)["1.slim"] == done
    first, second = wds.WebDataset(str(path), shardshuffle=False).decode(slim_webdataset.slimcodec_handler)
    assert (first["cls"], second["cls"]) == (3, 4)
    np.testing.assert_array_equal(first["slim"], codec.decode(members(path)["0.slim"], steps=0))
    assert first["seg.slim"].size == SIZES[2] and second["slim"].size == SIZES[1]
    latents = wds.WebDataset(str(path), shardshuffle=False).decode(slim_webdataset.handler(output="latent"))
    for sample, data in zip(latents, (members(path)["0.slim"], done), strict=True):
        torch.testing.assert_close(sample["slim"], codec.decode_latent(data), rtol=0, atol=0)


@pytest.mark.slow
def test_the_workers_of_a_loader_decode(tmp_path: Path, small: Codec) -> None:
    path = tmp_path / "a.tar"
    encode_shard(shard(tmp_path / "in.tar"), path, CellEncoder(small))
    reading = slim_webdataset.handler(output="tensor", model=str(SMALL))
    samples = wds.WebDataset(str(path), shardshuffle=False).decode(reading)
    loader = torch.utils.data.DataLoader(
        samples, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert [tuple(sample["slim"].shape[:0:-1]) for sample in loader][:3] == list(SIZES)


# --- shards


def test_a_tar_keeps_all_but_its_pictures(tmp_path: Path, small: Codec) -> None:
    source = shard(tmp_path / "in.tar", broken=True)
    encode = CellEncoder(small, {"quality": 30})
    encode_shard(source, tmp_path / "out.tar", encode)
    before, after = members(source), members(tmp_path / "out.tar")
    names = [name.replace(".jpg", ".slim") if "broken" not in name else name for name in before]
    names[names.index("both.png")] = "both.slim"
    names[names.index("both.slim")] = "both.slim"
    renamed = {"both.seg.png": "both.seg.slim", "both.png": "both.png.slim", "broken.jpg": "broken.jpg"}
    for name, data in before.items():
        new = renamed.get(name, name.replace(".jpg", ".slim"))
        if new.endswith(".slim"):
            assert after[new] == small.encode(data, quality=30)
        else:
            assert after[new] == data
    assert len(after) == len(before)
    assert encode.pictures == 6 and [place for place, _ in encode.kept] == ["broken.jpg"]
    # what is coded already stays
    encode_shard(tmp_path / "out.tar", tmp_path / "again.tar", CellEncoder(small))
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "out.tar").read_bytes()


@pytest.mark.parametrize("binary", [True, False])
def test_a_parquet_file_keeps_all_but_its_pictures(tmp_path: Path, small: Codec, binary: bool) -> None:
    rows: dict[str, list[Any]] = {
        "id": [1, None, 3, 4],
        "image": [*map(jpeg, PHOTOS), b"no picture"],
        "list": [[1], [], [2, 3], None],
    }
    table = datasets.Dataset.from_dict(rows)
    if not binary:
        rows["image"].append(None)
        rows["id"].append(9)
        rows["list"].append([4])
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    table.to_parquet(tmp_path / "in.parquet", batch_size=2)
    encode = CellEncoder(small, {"quality": 30})
    encode_shard(tmp_path / "in.parquet", tmp_path / "out.parquet", encode)
    before, after = (parquet.ParquetFile(tmp_path / name) for name in ("in.parquet", "out.parquet"))
    assert after.schema_arrow.equals(before.schema_arrow)
    assert after.metadata.num_row_groups == before.metadata.num_row_groups > 1
    old, new = before.read().to_pydict(), after.read().to_pydict()
    assert (old["id"], old["list"]) == (new["id"], new["list"])
    expected: list[Any] = [small.encode(data, quality=30) for data in rows["image"][:3]] + [b"no picture"]
    if not binary:
        expected = [{"bytes": data, "path": None} for data in expected] + [None]
    assert new["image"] == expected
    assert [place for place, _ in encode.kept] == ["row 3"]
    feature = json.loads(after.schema_arrow.metadata[b"huggingface"])["info"]["features"]["image"]
    assert feature["_type"] == ("Value" if binary else "SlimImage")


def test_shards_that_cannot_be_read(tmp_path: Path, small: Codec) -> None:
    whole = shard(tmp_path / "in.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (tmp_path / "no.parquet").write_bytes(b"no parquet file")
    datasets.Dataset.from_dict({"picture": [b""]}).to_parquet(tmp_path / "other.parquet")
    for name, message in (("cut.tar", "shard"), ("no.parquet", "shard"), ("other.parquet", "--column")):
        out = tmp_path / "out" / name
        out.parent.mkdir(exist_ok=True)
        with pytest.raises(slimcodec.SlimError, match=message):
            encode_shard(tmp_path / name, out, CellEncoder(small))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_encodes_shards_and_resumes(slim: Slim, tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"s-{number:03}.tar", broken=number == 2)
    out = tmp_path / "out"
    first = slim("encode", tmp_path / "s-{000..001}.tar", "-o", out, *PLAIN)
    assert first.status == 0 and first.out.startswith("2 files of 12 pictures: "), first
    result = slim("encode", tmp_path, "-o", out, "--json", *PLAIN)  # out lies in what is searched
    assert result.status == 1
    assert f"slim: {tmp_path}/s-002.tar: broken.jpg: kept as it is: " in result.err
    summary = json.loads(result.out)
    assert len(summary["skipped"]) == 2 and [row["pictures"] for row in summary["files"]] == [6]
    assert members(out / "s-002.tar")["set/1.cls"] == b"1"
    assert sorted(path.name for path in out.rglob("*")) == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert slim("encode", tmp_path / "s-000.tar", *PLAIN).status == 2  # it would replace its source
    assert slim("encode", tmp_path / "s-000.tar", "-o", out, "--delete-source", *PLAIN).status == 2


def test_the_command_encodes_parquet_anywhere(slim: Slim, tmp_path: Path) -> None:
    rows = {"photo": list(map(jpeg, PHOTOS)), "n": [1, 2, 3]}
    for name in ("a", "b"):
        as_path(f"memory://tables/{name}").parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
        as_path(f"memory://tables/{name}.parquet").write_bytes((tmp_path / f"{name}.parquet").read_bytes())
    result = slim("encode", "memory://tables", "-o", "memory://coded", "--column", "photo", *PLAIN)
    assert result.status == 0, result.err
    data = as_path("memory://coded/b.parquet").read_bytes()
    table = parquet.read_table(io.BytesIO(data)).to_pydict()
    assert table["n"] == [1, 2, 3] and all(map(is_slim, table["photo"]))


@pytest.mark.slow
def test_processes_give_the_files_of_one_thread(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / f"s-{number:03}.tar")
    done = slim_process("encode", tmp_path / "s-*.tar", "-o", tmp_path / "out", "--jobs", 2, *PLAIN)
    assert done.status == 0, done.err
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encode = CellEncoder(slimcodec.load(SMALL, dtype="float32"), {"caption": None, "batch_size": 1})
    encode_shard(tmp_path / "s-000.tar", tmp_path / "here.tar", encode)
    torch.set_num_threads(threads)
    for name in ("s-000.tar", "s-001.tar"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "here.tar").read_bytes()


@pytest.mark.slow
def test_the_hub_keeps_the_bytes_and_the_command_reads_it(tmp_path: Path) -> None:
    with hub_server() as hub:
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "none",
        }
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        script = f"""
import datasets
from pathlib import Path
from slimcodec.integrations.datasets import SlimImage

coded = SlimImage(model={str(SMALL)!r})
features = datasets.Features(image=coded, n=datasets.Value("int64"))
table = datasets.Dataset.from_dict({{"image": [{str(tmp_path / "a.png")!r}] * 2, "n": [1, 2]}}, features=features)
table.push_to_hub({REPO!r})
again = datasets.load_dataset({REPO!r}, split="train")
assert again.features == features and again[1]["image"].size == (40, 30)
raw = [t.cast_column("image", SlimImage(decode=False))["image"][:] for t in (table, again)]
assert raw[0] == raw[1]
datasets.Dataset.from_dict({{"image": [Path({str(tmp_path / "a.png")!r}).read_bytes()]}}).to_parquet({str(tmp_path / "b.parquet")!r})
"""
        PHOTOS[0].save(tmp_path / "a.png")
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert any(name.endswith(".parquet") for name in hub.files)
        hub.files = {"data/train.parquet": (tmp_path / "b.parquet").read_bytes(), "README.md": b""}
        url = f"hf://datasets/{REPO}"
        command = slim_process("encode", url, "-o", tmp_path / "out", *PLAIN, env={**os.environ, **env})
        assert command.status == 0, command.err
        script = (
            f"from slimcodec.data.sources import open_table; assert len(open_table({REPO!r}, 'train')) == 1"
        )
        fresh = {**env, "HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "fresh")}
        subprocess.run([sys.executable, "-c", script], env={**os.environ, **fresh}, check=True)
    made = parquet.read_table(tmp_path / "out" / "data" / "train.parquet").to_pydict()
    assert len(made["image"]) == 1 and is_slim(made["image"][0])
