"""RoI masks from annotations: what files of every layout say, and what their outlines cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from slimcodec import SlimError
from slimcodec.data.masks import Annotation, Region, mask_from_polygons, read_annotations, read_coco, read_voc


def runs_of(mask: NDArray[Any]) -> list[int]:
    """COCO's run lengths of a mask, down its columns, the first run one of zeros."""
    values = mask.astype(bool).T.ravel()
    ends = [*(np.flatnonzero(values[1:] != values[:-1]) + 1), len(values)]
    counts = np.diff([0, *ends]).tolist()
    return [0, *counts] if values[0] else counts


def compressed(counts: list[int]) -> str:
    """COCO's compressed string of run lengths, as its C library writes it."""
    text = ""
    for number, count in enumerate(counts):
        value = count - (counts[number - 2] if number > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(48 + bits + 32 * more)
    return text


def coco_file(path: Path, **changes: Any) -> Path:
    """A COCO file of two photos, 40 x 30 and 64 x 48, with every kind of segmentation and captions."""
    disc = np.hypot(*np.mgrid[-15:15, -20:20]) < 8
    content: dict[str, Any] = {
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "images": [
            {"id": 7, "file_name": "a/dogs.jpg", "width": 40, "height": 30},
            {"id": 9, "file_name": "empty.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [30, 20, 10, 10]},
            {
                "image_id": 7,
                "category_id": 1,
                "bbox": [12, 7, 16, 16],
                "segmentation": {"size": [30, 40], "counts": runs_of(disc)},
                "iscrowd": 1,
            },
            {
                "image_id": 7,
                "category_id": 18,
                "bbox": [0, 0, 8, 6],
                "segmentation": [[0, 0, 8, 0, 8, 3, 0, 3], [0, 5, 4, 5, 4, 6, 0, 6], [1, 1, 2, 2]],
            },
            {"image_id": 9, "caption": " Nothing at all.\n"},
        ],
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_coco_objects_captions_and_sizes(tmp_path: Path) -> None:
    found = read_annotations(coco_file(tmp_path / "instances.json"))
    assert list(found) == ["a/dogs.jpg", "empty.jpg"]
    dogs, empty = found["a/dogs.jpg"], found["empty.jpg"]
    assert (
        dogs.size == (40, 30)
        and [region.label for region in dogs.regions] == ["dog", "person", "dog"]
        and dogs.label == "person"
    )
    assert dogs.regions[0].box == (30, 20, 40, 30)
    assert empty.captions == ("Nothing at all.",) and empty.mask((64, 48)) is None and empty.label is None

    # the object with a box only is its box, the others are their outlines and not their boxes
    wanted = (np.hypot(*np.mgrid[-15:15, -20:20]) < 8).astype(np.float32)
    wanted[20:30, 30:40] = 1
    wanted[0:3, 0:8] = 1
    wanted[5:6, 0:4] = 1
    mask = dogs.mask((40, 30))
    assert mask is not None and mask.dtype == np.float32
    assert np.array_equal(mask, wanted)
    # resized together with the photo, whatever the kind of outline
    double = dogs.mask((80, 60))
    assert double is not None and double.shape == (60, 80)
    assert np.array_equal(double, np.kron(wanted, np.ones((2, 2), np.float32)))
    half = dogs.mask((20, 15))
    assert half is not None and abs(half - wanted.reshape(15, 2, 20, 2).mean((1, 3))).max() <= 0.5
    assert abs(float(half.mean() - wanted.mean())) < 0.01


def test_compressed_coco_runs_give_the_same_mask(tmp_path: Path) -> None:
    plain = read_coco(coco_file(tmp_path / "plain.json"))["a/dogs.jpg"]
    content = json.loads((tmp_path / "plain.json").read_text())
    segmentation = content["annotations"][1]["segmentation"]
    segmentation["counts"] = compressed(segmentation["counts"])
    other = read_coco(coco_file(tmp_path / "packed.json", annotations=content["annotations"]))["a/dogs.jpg"]
    assert np.array_equal(plain.mask((40, 30)), other.mask((40, 30)))  # type: ignore[arg-type]


def test_polygons_cover_what_an_independent_rasteriser_covers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii = rng.uniform(10, 40, 9)
        points = np.stack([50 + radii * np.cos(angles), 45 + radii * np.sin(angles)], 1).astype(np.float32)
        ours = mask_from_polygons([points], (100, 90))
        theirs = polygon2mask((90, 100), points[:, ::-1] - 0.5)
        assert abs(float(ours.sum()) / theirs.sum() - 1) < 0.02
        assert ((ours >= 0.5) != theirs).mean() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 7, "category_id": 18}]}, r"annotations\[0\] has no 'bbox'"),
        ({"annotations": [{"image_id": 3, "caption": "?"}]}, "image_id 3 is not among the images"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "width": 40}]}, r"images\[0\] has no 'height'"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "width": 0, "height": 5}]}, "width and height"),
        ({"categories": []}, "category_id 18 is not among the categories"),
        ({"annotations": 5}, "its top level is not as in COCO"),
        ({"images": {"id": 7}}, r"images\[0\] is not as in COCO"),
    ],
)
def test_a_wrong_coco_file_is_an_error_with_its_place(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SlimError, match=rf"wrong\.json: .*{message}"):
        read_coco(coco_file(tmp_path / "wrong.json", **changes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bbox", [1, 2, 3], "bbox"),
        ("bbox", [1, 2, -3, 4], "bbox"),
        ("bbox", [1, 2, "wide", 4], "wide"),
        ("segmentation", [[1, 2, 3, 4, 5]], "polygon"),
        ("segmentation", {"size": [40, 30], "counts": [1200]}, r"size \[40, 30\]"),
        ("segmentation", {"size": [30, 40], "counts": [1199]}, "add up"),
        ("segmentation", {"size": [30, 40], "counts": [-1, 1201]}, "add up"),
        ("segmentation", {"size": [30, 40], "counts": "é"}, "é"),
        ("segmentation", {"size": [30, 40], "counts": "P"}, "'P'"),
    ],
)
def test_a_wrong_coco_object_is_an_error_with_its_place(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    entry = {"image_id": 7, "category_id": 18, "bbox": [0, 0, 1, 1], key: value}
    with pytest.raises(SlimError, match=rf"annotations\[0\] .*{message}"):
        read_coco(coco_file(tmp_path / "wrong.json", annotations=[entry]))


VOC = """<annotation>
  <folder>VOC2012</folder>{filename}
  <size><width>40</width><height>30</height><depth>3</depth></size>
  <object><name>dog</name><difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10.0</xmax><ymax>5</ymax></bndbox></object>
  <object><part><name>head</name><bndbox><xmin>30</xmin><ymin>1</ymin><xmax>40</xmax><ymax>9</ymax></bndbox></part>
    <bndbox><ymin>11</ymin><xmin>21</xmin><ymax>30</ymax><xmax>40</xmax></bndbox><name>person</name></object>
</annotation>"""


def test_voc_boxes_are_one_based_with_both_ends_inside(tmp_path: Path) -> None:
    folder = tmp_path / "Annotations"
    folder.mkdir()
    (folder / "000001.xml").write_text(VOC.format(filename="<filename>dogs.jpg</filename>"))
    (folder / "000002.xml").write_text(VOC.format(filename=""))
    for place in (folder, tmp_path):
        found = read_annotations(place)
        assert list(found) == ["dogs.jpg", "000002"]
    dogs = found["dogs.jpg"]
    assert [region.box for region in dogs.regions] == [(0, 0, 10, 5), (20, 10, 40, 30)]
    assert (
        [region.label for region in dogs.regions] == ["dog", "person"]
        and dogs.label == "person"
        and dogs.size == (40, 30)
    )
    wanted = np.zeros((30, 40), np.float32)
    wanted[0:5, 0:10] = 1
    wanted[10:30, 20:40] = 1
    assert np.array_equal(dogs.mask((40, 30)), wanted)  # type: ignore[arg-type]
    assert np.array_equal(dogs.mask((20, 60)), np.kron(wanted[:, ::2], np.ones((2, 1))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>10.0</xmax>", "<xmax>wide</xmax>", r"object\[0\].*bndbox/xmax is 'wide'"),
        ("<xmax>10.0</xmax>", "", r"object\[0\].*bndbox/xmax is missing"),
        ("<xmax>10.0</xmax>", "<xmax>0</xmax>", "ends before it begins"),
        ("<name>person</name>", "", r"object\[1\].*name is missing"),
        ("<width>40</width>", "<width>0</width>", "width and height"),
        ("</annotation>", "", "not an XML file"),
    ],
)
def test_a_wrong_voc_file_is_an_error_with_its_place(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "dogs.xml").write_text(VOC.format(filename="").replace(old, new))
    with pytest.raises(SlimError, match=rf"dogs\.xml: .*{message}"):
        read_voc(tmp_path)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY a "dog"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    (tmp_path / "bomb.xml").write_text(bomb + VOC.format(filename="<filename>&b;</filename>"))
    with pytest.raises(SlimError, match=r"bomb\.xml.*DTDForbidden"):
        read_voc(tmp_path)


def test_unclear_sources_of_annotations_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="COCO .json file or a folder"):
        read_annotations(tmp_path / "nothing.json")
    with pytest.raises(SlimError, match="no .xml file"):
        read_annotations(tmp_path)
    (tmp_path / "broken.json").write_text('{"images": ')
    with pytest.raises(SlimError, match="broken.json: not a JSON"):
        read_annotations(tmp_path / "broken.json")
    for name in "ab":
        (tmp_path / f"{name}.xml").write_text(VOC.format(filename="<filename>same.jpg</filename>"))
    with pytest.raises(SlimError, match=r"b\.xml: filename is 'same.jpg'"):
        read_voc(tmp_path)


def test_an_annotation_outside_the_photo_is_cut_at_its_edge() -> None:
    corners = np.array([[-10, -10], [50, -10], [50, 15], [-10, 15]], np.float32)
    for region in (Region((-10, -10, 50, 15), "sky"), Region((0, 0, 1, 1), "sky", (corners,))):
        mask = Annotation((40, 30), (region,)).mask((40, 30))
        assert mask is not None and mask[:15].min() == 1 and mask[15:].max() == 0
