"""Fidelity, detection agreement, BD-rate and intervals, against other implementations and numbers worked out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import bjontegaard
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judges import square_detector
from skimage.metrics import structural_similarity
from support import photo, psnr

from slimcodec.errors import SlimError
from slimcodec.evaluation.bd_rate import bd_rate, bd_score, improving
from slimcodec.evaluation.measures import (
    MS_SSIM_WEIGHTS,
    TRUTH_SCORE,
    Boxes,
    Detector,
    iou,
    load_lpips,
    matched,
    mean_average_precision,
    ms_ssim,
    ssim_and_contrast,
)
from slimcodec.evaluation.measures import psnr as measured_psnr
from slimcodec.evaluation.results import interval, means, resamples
from slimcodec.images import Pixels


def noisy(name: str, strength: float, size: int = 256) -> tuple[Pixels, Pixels]:
    clean = np.asarray(photo(name, size, size))
    noise = np.random.default_rng(0).normal(0, strength, clean.shape)
    return clean, np.clip(clean + noise, 0, 255).astype(np.uint8)


# --- fidelity


def test_psnr_is_that_of_the_tests_and_of_parts() -> None:
    a, b = noisy("coffee", 12)
    assert measured_psnr(a, b) == pytest.approx(psnr(photo("coffee"), b), abs=1e-9)
    assert measured_psnr(a, a) == 100.0
    left = np.zeros(a.shape[:2], bool)
    left[:, :100] = True
    assert measured_psnr(a, b, left) == pytest.approx(measured_psnr(a[:, :100], b[:, :100]))
    assert measured_psnr(a, b, np.zeros_like(left)) is None


def test_one_scale_is_the_ssim_of_scikit_image() -> None:
    a, b = noisy("astronaut", 20)
    theirs, picture = structural_similarity(
        a,
        b,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
        truncate=3.5,
    )
    ours, _ = ssim_and_contrast(a.transpose(2, 0, 1).astype(float), b.transpose(2, 0, 1).astype(float))
    assert ours == pytest.approx(picture[5:-5, 5:-5].mean(), abs=1e-9)
    assert ours == pytest.approx(theirs, abs=2e-3)


def test_ms_ssim_falls_with_noise_and_needs_room() -> None:
    values = [ms_ssim(*noisy("chelsea", strength)) for strength in (0, 5, 20, 60)]
    assert values[0] == pytest.approx(1.0)
    assert all(a is not None and b is not None and a > b for a, b in itertools.pairwise(values))
    assert ms_ssim(*noisy("chelsea", 5, 175)) is None and ms_ssim(*noisy("chelsea", 5, 176)) is not None
    assert sum(MS_SSIM_WEIGHTS) == pytest.approx(1.0, abs=1e-3)


def test_lpips_is_what_the_given_network_says(tmp_path: Path) -> None:
    class Distance(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean()

    path = tmp_path / "distance.pt"
    torch.jit.script(Distance()).save(str(path))
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert load_lpips(str(path))(black, white) == pytest.approx(2.0)
    (tmp_path / "no.pt").write_text("nothing")
    with pytest.raises(SlimError, match="no TorchScript module"):
        load_lpips(str(tmp_path / "no.pt"))


# --- detection


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Boxes(
        table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64)
    )


def test_iou_by_hand() -> None:
    a = np.array([[0, 0, 2, 2]], np.float32)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]], np.float32)
    assert iou(a, b).tolist()[0] == pytest.approx([1 / 7, 1, 0])


def test_matching_and_average_precision_by_hand() -> None:
    truth = boxes((0, 0, 10, 10, 1, 3), (20, 0, 30, 10, 1, 3), (0, 20, 10, 30, 1, 5))
    # found twice, of another class, beside, and one that no one knows
    found = boxes(
        (0, 0, 10, 10, 0.9, 3), (1, 0, 11, 10, 0.8, 3), (20, 0, 30, 10, 0.7, 5), (21, 0, 31, 10, 0.6, 3)
    )
    judged = matched(found, truth)
    assert [right for _, _, right in judged] == [True, False, False, True]
    # class 3: precision 1 at recall 1/2, 2/3 at recall 1; class 5 is never found
    assert mean_average_precision([judged], [truth.classes.tolist()]) == pytest.approx(
        ((1 + 2 / 3) / 2 + 0) / 2
    )
    assert mean_average_precision([matched(truth, truth)], [truth.classes.tolist()]) == 1.0
    assert mean_average_precision([[]], [[]]) is None


def test_detector_from_a_file(tmp_path: Path) -> None:
    detector = Detector(str(square_detector(tmp_path / "detector.onnx")))
    white, dark = np.full((64, 128, 3), 255, np.uint8), np.full((64, 128, 3), 51, np.uint8)
    found = detector(white)
    # the input is 32x32: boxes come back in pixels of the photo
    assert found.boxes[0].tolist() == [32, 16, 96, 48] and found.classes.tolist() == [1, 0]
    assert detector(dark).scores.tolist() == pytest.approx([0.9, 0.2])
    truth = found.above(TRUTH_SCORE)
    assert mean_average_precision([matched(detector(white), truth)], [truth.classes.tolist()]) == 1.0
    with pytest.raises(SlimError, match="no such file"):
        Detector(str(tmp_path / "missing.onnx"))


# --- BD-rate

ANCHOR = ([0.1, 0.2, 0.4, 0.8], [40.0, 55.0, 65.0, 70.0])
TEST = ([0.06, 0.13, 0.3, 0.7], [38.0, 54.0, 66.0, 71.5])


def test_bd_rate_agrees_with_another_implementation() -> None:
    ours = bd_rate(ANCHOR, TEST)
    theirs = bjontegaard.bd_rate(*ANCHOR, *TEST, method="pchip", min_overlap=0)
    assert ours.value == pytest.approx(theirs, abs=1e-9)
    assert (ours.low, ours.high, ours.dropped) == (40.0, 70.0, 0)
    assert ours.share == pytest.approx(30 / 33.5)
    score = bd_score(ANCHOR, TEST)
    assert score.value == pytest.approx(
        bjontegaard.bd_psnr(*ANCHOR, *TEST, method="pchip", min_overlap=0), abs=1e-9
    )
    assert (score.low, score.high) == pytest.approx((0.1, 0.7))


@given(st.floats(0.2, 5))
def test_a_curve_at_a_multiple_of_the_rate(factor: float) -> None:
    scaled = [rate * factor for rate in ANCHOR[0]]
    assert bd_rate(ANCHOR, (scaled, ANCHOR[1])).value == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert bd_score(ANCHOR, (ANCHOR[0], [s + factor for s in ANCHOR[1]])).value == pytest.approx(factor)


def test_straight_lines_by_hand() -> None:
    # log10 rate = score / 10 - 2 and score / 10 - 2.3: everywhere a factor of 10 ** -0.3
    scores = [5.0, 10.0, 15.0]
    a = ([10 ** (s / 10 - 2) for s in scores], scores)
    b = ([10 ** (s / 10 - 2.3) for s in scores], scores)
    assert bd_rate(a, b).value == pytest.approx(100 * (10**-0.3 - 1))
    assert bd_score(a, b).value == pytest.approx(3.0)


def test_without_overlap_or_points_it_is_undefined() -> None:
    low = ([0.1, 0.2], [10.0, 20.0])
    for other in (([0.1, 0.2], [30.0, 40.0]), ([0.1, 0.2], [20.0, 40.0]), ([0.3], [15.0])):
        found = bd_rate(low, other)
        assert (found.value, found.low, found.high, found.share) == (None, None, None, 0.0)
    assert bd_score(low, ([0.5, 0.9], [15.0, 16.0])).value is None


def test_curves_that_fall_and_saturate() -> None:
    rates, scores = [0.1, 0.2, 0.3, 0.4, 0.8], [40.0, 55.0, 52.0, 65.0, 65.0]
    rate, score = improving(rates, scores)
    assert rate.tolist() == [0.1, 0.2, 0.4] and score.tolist() == [40.0, 55.0, 65.0]
    found = bd_rate(ANCHOR, (rates, scores))
    assert found.dropped == 2
    assert found.value == bd_rate(ANCHOR, ([0.1, 0.2, 0.4], [40.0, 55.0, 65.0])).value
    assert bd_rate((rates[::-1], scores[::-1]), ANCHOR) == bd_rate((rates, scores), ANCHOR)


# --- intervals


def test_intervals_cover_and_pairs_are_paired() -> None:
    draws = resamples(400)
    assert draws.shape == (1000, 400) and (draws.sum(1) == 400).all()
    values = np.where(np.arange(400) % 4 < 3, 100.0, 0.0)
    mean, low, high = interval(values) or (0, 0, 0)
    assert mean == 75.0
    # the binomial standard error is 2.17 points
    assert high - low == pytest.approx(2 * 1.96 * 2.165, rel=0.1) and low < 75 < high
    # a constant difference has no spread, whatever the spread of both
    assert np.ptp(means(values - 7, draws) - means(values, draws)) < 1e-9


def test_missing_values_are_left_out() -> None:
    values = np.full(50, np.nan)
    assert interval(values) is None
    values[:25] = 3.0
    assert interval(values) == pytest.approx((3.0, 3.0, 3.0))
