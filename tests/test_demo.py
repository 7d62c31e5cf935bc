"""What the page of ``slim demo`` shows: files as the codec's own, honest labels, peers at equal bytes, verdicts."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import numpy as np
import pytest
from judges import colour_classifier
from PIL import Image
from support import photo

from slimcodec.codec import Codec
from slimcodec.data.classifiers import load_classifier
from slimcodec.demo.computing import PEERS, PRESETS, TOP, Demo, Subject
from slimcodec.errors import FormatError, SlimError


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    photo("chelsea", 200, 120).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def shown(tiny: Codec, cat: Path) -> tuple[Demo, Subject]:
    demo = Demo(tiny)
    return demo, demo.open(cat)


@pytest.mark.parametrize("settings", [{}, {"quality": 20, "caption": "my cat"}, {"caption": None}])
@pytest.mark.parametrize("preset", PRESETS)
def test_file_and_picture_are_those_of_the_codec(
    shown: tuple[Demo, Subject], cat: Path, preset: str, settings: dict[str, object]
) -> None:
    demo, subject = shown
    coded = demo.code(subject, preset, **settings)  # type: ignore[arg-type]
    assert coded.data == demo.codec.encode(cat, **settings)  # type: ignore[arg-type]
    expected = np.asarray(demo.codec.decode(coded.data, **PRESETS[preset]))
    assert np.array_equal(coded.pixels, expected)
    assert coded.caption == (demo.codec.decoder.decompress(coded.data).caption or "")
    assert coded.heat.shape == coded.pixels.shape == (120, 200, 3)


def test_a_target_is_met_and_0_is_none(shown: tuple[Demo, Subject]) -> None:
    demo, subject = shown
    free = demo.code(subject, "fast", 60)
    assert demo.code(subject, "fast", 60, target_bytes=0).data == free.data
    assert len(demo.code(subject, "fast", 60, target_bytes=len(free.data) // 2).data) <= len(free.data) // 2
    with pytest.raises(SlimError, match="no quality fits in 20 bytes"):
        demo.code(subject, "fast", target_bytes=20)


def test_only_pixels_that_nothing_drew_are_called_faithful(shown: tuple[Demo, Subject]) -> None:
    demo, subject = shown
    assert demo.code(subject, "fast", caption="egyptian cat").faithful
    guided = demo.code(subject, "machine", caption="egyptian cat")
    assert not guided.faithful
    assert demo.code(subject, "natural").faithful is (demo.codec.sampling().steps == 0)


def test_the_region_gets_its_share_of_the_bits(tiny: Codec, small: Codec, cat: Path) -> None:
    demo = Demo(tiny)
    coded = demo.code(demo.open(cat), "fast")
    assert coded.region is not None and all(0 <= share <= 1 for share in coded.region)
    assert Demo(small).code(Demo(small).open(cat), "fast").region is None


def test_a_file_is_shown_as_it_is(shown: tuple[Demo, Subject], tmp_path: Path) -> None:
    demo, subject = shown
    coded = demo.code(subject, "fast", 40)
    (tmp_path / "cat.slim").write_bytes(coded.data)
    reopened = demo.open(tmp_path / "cat.slim")
    again = demo.code(reopened, "fast", 90, "another caption")
    assert again.data == coded.data and np.array_equal(again.pixels, coded.pixels)
    assert reopened.pixels is None and not reopened.encoders


def test_bad_files_are_named(tiny: Codec, cat: Path, tmp_path: Path) -> None:
    demo = Demo(tiny)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(SlimError, match=r"^notes\.txt: not an image"):
        demo.open(tmp_path / "notes.txt")
    (tmp_path / "cut.slim").write_bytes(tiny.encode(cat)[:-3])
    with pytest.raises(FormatError):
        demo.open(tmp_path / "cut.slim")
    with pytest.raises(SlimError, match="max_pixels=1000"):
        Demo(tiny, max_pixels=1000).open(cat)


def test_large_photos_are_reduced_and_it_is_said(small: Codec, cat: Path) -> None:
    reduced, whole = Demo(small, side=100).open(cat), Demo(small, side=0).open(cat)
    assert reduced.pixels is not None and reduced.pixels.shape == (60, 100, 3)
    assert "200x120 to 100x60" in reduced.note
    assert whole.pixels is not None and whole.pixels.shape == (120, 200, 3) and not whole.note


@pytest.mark.parametrize("name", PEERS.values())
def test_peers_spend_as_many_bytes_or_say_that_they_cannot(shown: tuple[Demo, Subject], name: str) -> None:
    demo, subject = shown
    (fitting, pixels), (unfit, _) = demo.spend(subject, name, 3000), demo.spend(subject, name, 100)
    assert 1000 < len(fitting) <= 3000
    assert len(unfit) > 100
    with Image.open(io.BytesIO(fitting)) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)


def test_verdicts_come_from_the_captioner_or_the_given_classifier(
    tiny: Codec, small: Codec, cat: Path, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(cat))
    own = Demo(tiny).verdict(pixels)
    assert own is not None and "cat" in own.names[0] and len(own.names) == TOP
    assert list(own.shares) == sorted(own.shares, reverse=True) and sum(own.shares) <= 1.001
    judge = load_classifier(str(colour_classifier(tmp_path / "judge.onnx")))
    given = Demo(tiny, judge).verdict(pixels)
    assert given is not None and given.names[0] == tiny.bundle.vocabulary[judge.scores(pixels).argmax()]
    few = load_classifier(str(colour_classifier(tmp_path / "few.onnx", classes=7)))
    numbered = Demo(tiny, few).verdict(pixels)
    assert numbered is not None and numbered.names[0] == f"class {few.scores(pixels).argmax()}"
    assert Demo(small).verdict(pixels) is None


def test_a_port_that_is_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip(
        "gradio", reason="the demo page is not tested: pip install 'slimcodec[demo]'"
    )
    from slimcodec.demo import page

    with gradio.Blocks(analytics_enabled=False) as empty:
        pass
    monkeypatch.setattr(page, "build", lambda demo: empty)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SlimError, match=f"port {port} .* taken"):
            page.serve(None, "127.0.0.1", port, print)  # type: ignore[arg-type]
