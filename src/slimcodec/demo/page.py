"""The page: Gradio's controls around figures in plain HTML, which need no script, no font and no file from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import jinja2
import numpy as np
from PIL import Image, ImageOps
from starlette.middleware import Middleware

from slimcodec.demo.computing import PRESETS, Coded, Demo, Subject
from slimcodec.errors import SlimError, describe
from slimcodec.images import Pixels, as_file

STYLE = Path(__file__).with_name("page.css")
#: photos of scikit-image, all of them public domain or CC0
GALLERY = {
    "astronaut.png": "Astronaut (NASA, public domain)",
    "chelsea.png": "Cat Chelsea (Stefan van der Walt, CC0)",
    "coffee.png": "Coffee (Rachel Michetti, CC0)",
    "rocket.jpg": "Rocket (SpaceX, CC0)",
    "motorcycle_left.png": "Motorcycle (Daniel Scharstein, CC0)",
    "hubble_deep_field.jpg": "Hubble deep field (NASA, public domain)",
}
#: the browser refuses whatever would leave this server
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'none'; frame-ancestors 'none'"
#: tells Gradio which photo of the gallery was clicked
PICK = """element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) trigger("click", {index: Number(button.dataset.index)});
});"""
#: most bytes of an upload
MAX_UPLOAD = "64mb"


class SelfOnly:
    """Adds ``POLICY`` to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, with_policy)


# ---- figures ---------------------------------------------------------------------------------------------------


def uri(data: bytes | Pixels, kind: str = "image/png") -> str:
    """Bytes, or a picture as a PNG file that is made quickly, as an address within the page."""
    data = data if isinstance(data, bytes) else as_file(data, compress_level=1)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
)
_templates.filters["uri"] = uri
#: the macros of page.html, which escape what they are given
FIGURES: Any = _templates.get_template("page.html").module


def cards(demo: Demo, subject: Subject, coded: Coded) -> Iterator[str]:
    """The cards of original, ours and every peer: one after the other, since peers take their time."""
    verdict = demo.verdict(coded.pixels)
    ours = (f"{len(coded.data):,} bytes", uri(coded.pixels))
    if subject.pixels is None:
        yield FIGURES.card("SLIM", *ours, verdict, verdict.names[0] if verdict else "", "original")
        return
    original = demo.verdict(subject.pixels)
    truth = original.names[0] if original else ""
    raw = f"{subject.pixels.nbytes:,} bytes raw"
    yield FIGURES.card("Original", raw, uri(subject.pixels), original, truth, "original")
    yield FIGURES.card("SLIM", *ours, verdict, truth, "ours")
    for name in subject.encoders:
        data, pixels = demo.spend(subject, name, len(coded.data))
        # the browser shows the peer's own bytes
        picture, size = uri(data, f"image/{name.lower()}"), f"{len(data):,} bytes"
        if len(data) <= len(coded.data):
            yield FIGURES.card(name, size, picture, demo.verdict(pixels), truth, "peer")
        else:
            yield FIGURES.card(name, f"cannot get that small: {size} at least", picture, None, truth, "unfit")


# ---- controls --------------------------------------------------------------------------------------------------


def build(demo: Demo) -> gr.Blocks:
    """The page of a demo, ready for ``launch``."""
    import skimage.data

    photos = [Path(skimage.data.__file__).parent / name for name in GALLERY]
    config = demo.codec.bundle.config
    judge = demo.classifier.name if demo.classifier else f"the captioner of {config.name}"
    if demo.classifier is None and not config.captioners:
        judge = ""

    with gr.Blocks(title="slimcodec", analytics_enabled=False, fill_width=True) as page:
        subject, coded = gr.State(), gr.State()
        html(FIGURES.header(demo.codec.bundle))
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="controls", scale=1, min_width=290):
                drop = gr.File(label="Drop a photo or a .slim file", height=150)
                gallery = html(
                    FIGURES.gallery(zip(GALLERY.values(), map(thumbnail, photos), strict=True)),
                    js_on_load=PICK,
                )
                note = html(elem_id="note")
                quality = gr.Slider(1, 100, 50, step=1, label="Quality", buttons=[])
                target = gr.Number(0, label="Target bytes", info="0: the quality decides.", precision=0)
                preset = gr.Radio(
                    list(PRESETS), value="fast", label="Preset", info="How the file is decoded."
                )
                caption = gr.Textbox(
                    label="Caption",
                    info="Of the captioner, or yours; empty: none.",
                    max_length=1024,
                    submit_btn="Use",
                )
            with gr.Column(elem_id="figures", scale=4, min_width=340):
                result, comparison = html(elem_id="result"), html(elem_id="comparison")
        settings = [preset, quality, caption, target]
        shown = [subject, coded, result, caption, quality, target, note]

        def answer(get: Callable[[], Subject], *settings: Any) -> dict[Any, Any]:
            try:
                opened = get()
                done = demo.code(opened, *settings)
            except Exception as error:  # noqa: BLE001  a page answers, whatever a file holds
                return {note: f'<p role="alert">{escape(describe(error))}</p>'}
            return {
                subject: opened,
                coded: done,
                result: FIGURES.result(opened, done),
                caption: gr.update(value=done.caption, interactive=opened.pixels is not None),
                quality: gr.update(value=done.info.quality, interactive=opened.pixels is not None),
                note: opened.note and f"<p>{opened.note}</p>",
            }

        def dropped(path: str, preset: str, quality: int, target: int) -> dict[Any, Any]:
            file = Path(path)
            try:
                return {drop: None} | answer(lambda: demo.open(file), preset, quality, "auto", target)
            finally:
                file.unlink()

        def chosen(event: gr.EventData, preset: str, quality: int, target: int) -> dict[Any, Any]:
            return answer(lambda: demo.open(photos[event.index]), preset, quality, "auto", target)

        def first(preset: str, quality: int) -> dict[Any, Any]:
            return answer(lambda: demo.open(photos[1]), preset, quality)

        def again(opened: Subject, preset: str, quality: int, text: str, target: int = 0) -> dict[Any, Any]:
            return answer(lambda: opened, preset, quality, text.strip() or None, target)

        def by_quality(opened: Subject, preset: str, quality: int, text: str) -> dict[Any, Any]:
            return again(opened, preset, quality, text) | {target: 0}

        def compare(opened: Subject, done: Coded) -> Iterator[str]:
            figures: list[str] = []
            for figure in cards(demo, opened, done):
                figures.append(figure)
                yield FIGURES.grid(figures, judge, demo.classifier is None)

        latest: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
        new = [preset, quality, target]
        answers = [
            page.load(first, [preset, quality], shown, show_progress="hidden"),
            drop.upload(dropped, [drop, *new], [drop, *shown], show_progress="hidden"),
            gallery.click(chosen, new, shown, show_progress="hidden"),
            quality.input(by_quality, [subject, preset, quality, caption], shown, **latest),
            gr.on(
                [target.submit, target.blur, preset.input, caption.submit],
                again,
                [subject, *settings],
                shown,
                **latest,
            ),
        ]
        for event in answers:
            event.then(compare, [subject, coded], comparison, **latest)
    return page


def html(value: str = "", **options: Any) -> gr.HTML:
    """Plain HTML, without Gradio's styles of prose."""
    return gr.HTML(value, apply_default_css=False, **options)


def thumbnail(photo: Path) -> Pixels:
    """The middle of a photo, a square of 128 pixels a side."""
    with Image.open(photo) as opened:
        return np.asarray(ImageOps.fit(opened.convert("RGB"), (128, 128)))


def serve(demo: Demo, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves the page until interrupted; ``say`` is told the address. ``SlimError`` for a port that is taken."""
    theme = gr.themes.Base(
        primary_hue="orange", neutral_hue="zinc", radius_size="md", font=["system-ui", "sans-serif"]
    )
    page = build(demo)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=theme,
            css_paths=STYLE,
            footer_links=[],
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            app_kwargs={"middleware": [Middleware(SelfOnly)]},
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:  # Gradio speaks of its own settings
        raise SlimError(
            f"port {port} of {host} is taken or cannot be used; give another --port or --host"
        ) from error
    say(f"{address} shows the page; Ctrl-C ends it")
    page.block_thread()
