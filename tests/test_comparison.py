"""Curves read off and compared, on results small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from slimcodec.evaluation.bd_rate import bd_rate, compare, relative_at
from slimcodec.evaluation.results import Result, from_json

PIXELS = 6400
COUNT = 40


def point(quality: int, size: int, right: int, grey: int | None = None) -> dict[str, Any]:
    """All photos cost ``size`` bytes; the first ``right`` are named rightly."""
    columns: dict[str, Any] = {"bytes": [size] * COUNT, "rank": [[0] * right + [9] * (COUNT - right)]}
    columns["guess"] = [[1] * COUNT]
    if grey is not None:
        columns["grey"] = [grey] * COUNT
    return {"quality": quality, "photos": columns, "milliseconds": {}}


def result(*curves: Sequence[dict[str, Any]], right: int = 32) -> Result:
    """``right`` of 40 photos are named rightly uncompressed."""
    photos = {"id": list(map(str, range(COUNT))), "label": [1] * COUNT, "pixels": [PIXELS] * COUNT}
    photos |= {"rank": [[0] * right + [9] * (COUNT - right)], "guess": [[1] * COUNT]}
    named = [{"name": str(number), "slim": None, "points": points} for number, points in enumerate(curves)]
    return from_json({"classifiers": [{"name": "judge"}], "photos": photos, "curves": named})


def test_accuracy_at_a_rate_is_read_off_between_points() -> None:
    # 80, 320 bytes of 6400 pixels: 0.1 and 0.4 bpp
    one = result([point(1, 80, 8), point(2, 320, 24)])
    ends = [relative_at(one, one.curves[0], "judge", bpp) for bpp in (0.1, 0.2, 0.4)]
    assert [found and found[0] for found in ends] == pytest.approx([25.0, 50.0, 75.0])
    middle = ends[1]
    assert middle is not None and middle[1] < 50 < middle[2] and middle[2] - middle[1] < 40
    assert relative_at(one, one.curves[0], "judge", 0.09) is None
    assert relative_at(one, one.curves[0], "judge", 0.41) is None
    hopeless = result([point(1, 80, 8), point(2, 320, 24)], right=0)
    assert relative_at(hopeless, hopeless.curves[0], "judge", 0.2) is None


def test_an_anchor_may_be_given_its_container() -> None:
    anchor = [point(1, 140, 8, 60), point(2, 220, 16, 60), point(3, 380, 24, 60)]
    test = [point(1, 40, 8), point(2, 80, 16), point(3, 160, 24)]
    pair = result(anchor, test)
    whole = compare(bd_rate, pair.curves[0], pair.curves[1], "top1 judge")
    bare = compare(bd_rate, pair.curves[0], pair.curves[1], "top1 judge", "bpp_less_grey")
    # without container overhead, the anchor's files have twice the bytes of the other's
    assert bare.value == pytest.approx(-50.0)
    # log2 of the ratios: 3.5, 2.75, 2.375 at the points
    assert whole.value is not None and -71.5 < whole.value < -57.9
    unmeasured = result(test, test)
    missing = compare(bd_rate, unmeasured.curves[0], unmeasured.curves[1], "top1 judge", "bpp_less_grey")
    assert missing.value is None
