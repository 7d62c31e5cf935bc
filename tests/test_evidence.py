"""Evidence: rounding keeps what the tagger knows a picture by, at no cost of fidelity; the format knows nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Slim
from numpy.typing import NDArray
from small import bundle_with_steps
from support import photo

import slimcodec
from slimcodec import SlimError
from slimcodec.codec import Codec
from slimcodec.data.classifiers import load_classifier
from slimcodec.encoder import EFFORT, PULL

NAMES = ("chelsea", "coffee", "rocket", "astronaut")


def log_likelihood(logits: NDArray[np.float32], tag: int) -> float:
    return float(logits[tag] - np.logaddexp.reduce(logits))


def test_another_classifier_sees_more_of_the_picture_at_equal_fidelity(tiny: Codec) -> None:
    judge = load_classifier("efficientnet-lite1")
    gains, sizes, losses = [], [], []
    for name in NAMES:
        pixels = np.asarray(photo(name, 256, 256))
        shown = int(judge.scores(pixels).argmax())
        files = [tiny.encode(pixels, 26, None, effort=effort) for effort in (0, EFFORT)]
        decoded = [np.asarray(tiny.decode(data, 0)) for data in files]
        plain, kept = (log_likelihood(judge.scores(picture), shown) for picture in decoded)
        gains.append(kept - plain)
        sizes.append(len(files[1]) / len(files[0]))
        errors = [np.square(picture.astype(np.float64) - pixels).mean() for picture in decoded]
        losses.append(errors[1] / errors[0])
    assert np.mean(gains) > 0.1
    assert np.mean(sizes) < 1.15 and np.mean(losses) < 1.03


def test_the_tagger_itself_sees_more(tiny: Codec) -> None:
    pixels = np.asarray(photo("chelsea", 256, 256))
    tag = int(tiny.encoder.tag(pixels)[0][0].argmax())
    seen = []
    for effort in (0, 1, 6):
        decoded = np.asarray(tiny.decode(tiny.encode(pixels, 25, None, effort=effort), 0))
        seen.append(log_likelihood(tiny.encoder.tag(decoded)[0][0], tag))
    assert seen[0] < min(seen[1:])


def test_symbols_move_by_one_step_and_the_region_stays(tiny: Codec) -> None:
    picture = photo("coffee", 200, 150)
    plain, kept = (tiny.quantise(picture, 30, effort=effort) for effort in (0, EFFORT))
    assert np.array_equal(plain.values[:, -1], kept.values[:, -1])
    moved = np.abs(plain.passes[-2].symbols - kept.passes[-2].symbols)
    # anchors have the same means: what moves is near the middle of two steps
    assert moved.max() == 1 and 0 < (moved > 0).mean() < 4 * PULL


@pytest.fixture(scope="module")
def tagged() -> Codec:
    """A small codec with a tagger of random weights."""
    return Codec(bundle_with_steps())


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (40, 300)])
def test_pictures_of_any_size_are_read_back(tagged: Codec, size: tuple[int, int]) -> None:
    picture = photo("chelsea", *size)
    data = tagged.encode(picture, 40, effort=2)
    assert tagged.decode(data).size == size
    assert np.array_equal(tagged.read(data)[1].symbols(), tagged.quantise(picture, 40, effort=2).symbols())


def test_a_target_counts_what_evidence_costs(tiny: Codec) -> None:
    picture = photo("rocket", 256, 256)
    qualities = []
    for effort in (0, EFFORT):
        data = tiny.encode(picture, target_bytes=400, effort=effort)
        assert len(data) <= 400
        qualities.append(slimcodec.inspect(data).quality)
    assert qualities[0] - 8 < qualities[1] <= qualities[0]
    # what no evidence leaves room for is written without
    smallest = len(tiny.encode(picture, 1, effort=0))
    assert len(tiny.encode(picture, target_bytes=smallest, effort=EFFORT)) <= smallest


def test_evidence_needs_a_tagger_and_a_linear_path(small: Codec, tagged: Codec) -> None:
    picture = photo("coffee", 64, 48)
    assert tagged.encoder.sees_evidence and not small.encoder.sees_evidence
    assert small.encode(picture, 30, effort=8) == small.encode(picture, 30, effort=0)
    assert tagged.encode(picture, 30, None, effort=8) != tagged.encode(picture, 30, None, effort=0)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_the_transform_is_the_transpose_of_the_linear_path(runtime: str) -> None:
    codec = slimcodec.load(runtime=runtime)
    transform = codec.encoder.transform(40)
    # far from zero the branch of the synthesis is small beside its linear path
    values = np.zeros((1, 128, 1, 1), np.float32)
    step = values.copy()
    step[0, 3] = 200
    (at,), (before,) = (codec.runtime.run("synthesise", x, np.array([40])) for x in (values + step, values))
    moved = (at - before)[0, :, 0, 0] / 200
    assert moved @ transform[3] == pytest.approx(float(np.square(transform[3]).sum()), rel=0.2)
    assert not transform[-1].any()


@pytest.mark.parametrize("effort", [-1, 33, 1.5, "much"])
def test_an_effort_out_of_range_is_an_error(small: Codec, effort: object) -> None:
    with pytest.raises(SlimError, match=f"effort is {effort!r}"):
        small.encode(photo("coffee", 32, 32), effort=effort)  # type: ignore[arg-type]


def test_the_command_takes_an_effort(slim: Slim, tmp_path: Path, tiny: Codec) -> None:
    picture = tmp_path / "photo.png"
    photo("coffee", 96, 64).save(picture)
    for effort in (0, 2):
        out = tmp_path / f"{effort}.slim"
        assert slim("encode", picture, "-o", out, "--effort", effort).status == 0
        assert out.read_bytes() == tiny.encode(picture, effort=effort)
    assert slim("encode", picture, "-o", tmp_path / "x.slim", "--effort", 99).status == 2
    assert slim("map", picture, "-o", tmp_path / "map.png", "--effort", 0).status == 0
