"""Class folders as other programs leave them: indices are those of torchvision's ImageFolder, and nothing goes unsaid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from slimcodec.container import Container, pack
from slimcodec.data.sources import open_labelled
from slimcodec.integrations.torch_dataset import SlimFolder

FILE = pack(Container(3, 2, 50, b"\xde\xad\xbe\xef", b"", b"payload"))


def tree(root: Path, *places: str) -> Path:
    """A folder with a file at each place; one that ends in a slash is an empty folder."""
    for place in places:
        path = root / place
        (path if place.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not place.endswith("/"):
            path.write_bytes(FILE)
    return root


def test_an_empty_class_keeps_its_index(tmp_path: Path) -> None:
    train = SlimFolder(tree(tmp_path / "train", "ant/1.slim", "bee/1.slim", "cat/1.slim"))
    split = tree(tmp_path / "val", "ant/1.slim", "bee/", "cat/1.slim")
    with pytest.raises(FileNotFoundError, match=r"class bee of .*allow_empty"):
        SlimFolder(split)
    val = SlimFolder(split, allow_empty=True)
    assert val.class_to_idx == train.class_to_idx == {"ant": 0, "bee": 1, "cat": 2}
    assert val.targets == [0, 2] and train.targets == [0, 1, 2]
    assert val.samples == [(str(split / "ant" / "1.slim"), 0), (str(split / "cat" / "1.slim"), 2)]


def test_hidden_names_are_neither_classes_nor_items(tmp_path: Path) -> None:
    hidden = (".ipynb_checkpoints/a.slim", "ant/._a.slim", "ant/.ipynb_checkpoints/a.slim", "._x.slim")
    dataset = SlimFolder(tree(tmp_path, "ant/a.slim", "bee/b.slim", *hidden))
    assert dataset.classes == ["ant", "bee"]
    assert [file.name for file in dataset.files] == ["a.slim", "b.slim"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_links_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", "b1.slim", "deep/b2.slim")
    root = tree(tmp_path / "set", "ant/a.slim")
    (root / "bee").symlink_to(elsewhere)
    (elsewhere / "deep" / "up").symlink_to(root / "bee")
    (root / "ant" / "linked.slim").symlink_to(elsewhere / "b1.slim")
    dataset = SlimFolder(root)
    assert dataset.class_to_idx == {"ant": 0, "bee": 1} and dataset.targets == [0, 0, 1, 1]
    assert [file.name for file in dataset.files] == ["a.slim", "linked.slim", "b1.slim", "b2.slim"]


def test_samples_are_in_the_order_of_image_folder(tmp_path: Path) -> None:
    places = ("b/z.slim", "b/a/x.slim", "b/a-1/y.slim", "b-1/w.slim", "B/v.slim", "b/A.SLIM")
    dataset = SlimFolder(tree(tmp_path, *places))
    # classes by name; in each, folders by path, then files by name
    assert dataset.classes == ["B", "b", "b-1"]
    found = [file.relative_to(tmp_path).as_posix() for file in dataset.files]
    assert found == ["B/v.slim", "b/A.SLIM", "b/z.slim", "b/a/x.slim", "b/a-1/y.slim", "b-1/w.slim"]


def test_find_classes_may_be_overridden(tmp_path: Path) -> None:
    class Animals(SlimFolder):
        def find_classes(self, directory: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
            return ["cat", "ant"], {"cat": 0, "ant": 7}

    dataset = Animals(tree(tmp_path, "ant/1.slim", "car/1.slim", "cat/1.slim"))
    assert dataset.classes == ["cat", "ant"] and dataset.targets == [7, 0]
    assert [file.parent.name for file in dataset.files] == ["ant", "cat"]


def test_an_empty_folder_beside_files_makes_no_classes(tmp_path: Path) -> None:
    dataset = SlimFolder(tree(tmp_path, "1.slim", "2.slim", "empty/"))
    assert dataset.classes == [] == dataset.targets and len(dataset) == 2


def test_labelled_photos_skip_hidden_folders_and_follow_links(tmp_path: Path) -> None:
    for place in ("set/0/a.png", "set/0/.ipynb_checkpoints/a.png", "set/.trash/b.png", "elsewhere/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(place), 0, 0)).save(tmp_path / place)
    (tmp_path / "set" / "1").symlink_to(tmp_path / "elsewhere")
    assert open_labelled(str(tmp_path / "set")).labels == (0, 1)
