"""The page: Gradio's controls around figures in plain HTML, which need no script, no font and no file from elsewhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

# before gradio is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
from starlette.middleware import Middleware

from slimcodec.demo.computing import PRESETS, Coded, Demo, Spent, Subject, Verdict
from slimcodec.errors import describe
from slimcodec.images import Pixels

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
FAITHFUL, DRAWN = "faithful", "drawn by the model from the caption"
EXPLAINED = {
    FAITHFUL: "decoded from the bits, nothing invented",
    DRAWN: "details are invented: they follow the caption",
}
QUALITY = 30
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


def png(pixels: Pixels) -> bytes:
    """A PNG file, made quickly."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    """Bytes as an address within the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def result_html(subject: Subject, coded: Coded) -> str:
    """The swipe slider, the numbers, and the heat map."""
    info, decoded = coded.info, uri(png(coded.pixels))
    label = FAITHFUL if coded.faithful else DRAWN
    size = f"{info.file_bytes:,} bytes"
    swipe = f'<img src="{decoded}" alt="Decoded picture, {label}">'
    if subject.pixels is not None:
        swipe += (
            f'<img class="before" src="{uri(png(subject.pixels))}" alt="Original photo"><i></i>'
            '<input type="range" min="0" max="100" step="0.5" value="50" '
            'aria-label="Swipe between the original, left, and the decoded picture, right" '
            "oninput=\"this.parentNode.style.setProperty('--cut', this.value + '%')\">"
            '<span class="tag">original</span>'
        )
    raw = info.width * info.height * 3
    parts = {"header": info.header_bytes, "caption": info.caption_bytes, "picture": info.payload_bytes}
    bar = "".join(f'<i class="{name}" style="flex-grow:{count}"></i>' for name, count in parts.items())
    legend = "".join(f'<li class="{name}">{name} {count:,}</li>' for name, count in parts.items())
    region = ""
    if coded.region is not None:
        bits, area = coded.region
        region = (
            f"White line: what the captioner saw, {area:.0%} of the picture with {bits:.0%} of the bits."
        )
    name = escape(subject.name, quote=True)
    return f"""<div class="result"><div class="stage">
<div class="swipe" style="--w:{info.width};--h:{info.height}">{swipe}
<span class="tag after">decoded, {size}</span></div></div>
<div class="facts" role="status">
<p class="size"><b>{info.file_bytes:,}</b> bytes</p>
<p>{info.bpp:.3f} bits per pixel, {raw / info.file_bytes:,.0f} times smaller than raw pixels</p>
<p class="badge {"faithful" if coded.faithful else "drawn"}"><b>{label}</b> <span>{EXPLAINED[label]}</span></p>
<div class="bar" aria-hidden="true">{bar}</div><ul class="legend" aria-label="Bytes of the file">{legend}</ul>
<p class="quiet">{info.width}x{info.height} pixels, quality {info.quality}, coded and decoded in {coded.seconds:.2f} s</p>
<p class="links"><a download="{name}.slim" href="{uri(coded.data, "application/octet-stream")}">Download .slim</a>
<a download="{name}.png" href="{decoded}">Download PNG</a></p>
<figure class="heat"><img src="{uri(png(coded.heat))}" alt="Heat map: where the bits of the file went">
<figcaption><span>0</span><i></i><span>{coded.most:.0f} bits in {coded.cell}x{coded.cell} pixels</span></figcaption>
<p class="quiet">Where the bits went. {region}</p></figure>
</div></div>"""


def card(title: str, bytes_line: str, picture: str, verdict: Verdict | None, truth: str, kind: str) -> str:
    """A picture with its bytes, and what the classifier says of it: right where it says what it says of the original."""
    rows = ""
    if verdict is not None:
        for name, share in zip(*verdict, strict=True):
            same = " class='same'" if name == truth else ""
            rows += f'<li{same} style="--share:{share:.1%}"><span>{escape(name)}</span> {share:.0%}</li>'
        right = verdict.names[0] == truth
        seen = f"sees {escape(verdict.names[0])}"
        mark = "" if kind == "original" else ("✓ " if right else "✗ ")
        state = "" if kind == "original" else ("right" if right else "wrong")
        rows = f'<p class="verdict {state}">{mark}{seen}</p><ol aria-label="Top {len(verdict.names)}">{rows}</ol>'
    return (
        f'<figure class="card {kind}"><img src="{picture}" alt="{escape(title)}">'
        f"<figcaption><b>{escape(title)}</b> <span>{bytes_line}</span></figcaption>{rows}</figure>"
    )


def cards(demo: Demo, subject: Subject, coded: Coded) -> Iterator[str]:
    """The cards of original, ours and every peer: one after the other, since peers take their time."""
    verdict = demo.verdict(coded.pixels)
    ours = (f"{len(coded.data):,} bytes", uri(png(coded.pixels)))
    if subject.pixels is None:
        yield card("SLIM", *ours, verdict, verdict.names[0] if verdict else "", "original")
        return
    original = demo.verdict(subject.pixels)
    truth = original.names[0] if original else ""
    raw = f"{subject.pixels.nbytes:,} bytes raw"
    yield card("Original", raw, uri(png(subject.pixels)), original, truth, "original")
    yield card("SLIM", *ours, verdict, truth, "ours")
    for name in subject.encoders:
        spent = demo.spend(subject, name, len(coded.data))
        # the browser shows the peer's own bytes
        picture, size = uri(spent.data, f"image/{name.lower()}"), f"{len(spent.data):,} bytes"
        if spent.fits:
            yield card(name, size, picture, demo.verdict(spent.pixels), truth, "peer")
        else:
            yield card(name, f"cannot get that small: {size} at least", picture, None, truth, "unfit")


def grid(figures: list[str], classifier: str) -> str:
    """The cards side by side."""
    judge = f"What {escape(classifier)} says" if classifier else "No classifier: give one with --classifier"
    return (
        f'<section aria-label="The same bytes spent by other codecs"><h2>The same bytes, spent by others '
        f'<small>{judge}; ✓ as on the original</small></h2><div class="cards">{"".join(figures)}</div></section>'
    )


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
        gr.HTML(
            "<header><h1>slimcodec</h1><p>A photo in a few hundred bytes that a machine, and a person, can still read. "
            f"<span>{escape(config.name)} {demo.codec.bundle.bundle_id}. Nothing leaves this server.</span></p></header>"
        )
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="controls", scale=1, min_width=290):
                drop = gr.File(label="Drop a photo or a .slim file", height=120)
                gallery = gr.Gallery(
                    [(thumbnail(photo), text) for photo, text in zip(photos, GALLERY.values(), strict=True)],
                    label="Or take one of these",
                    columns=3,
                    allow_preview=False,
                    object_fit="cover",
                    buttons=[],
                    elem_id="gallery",
                )
                quality = gr.Slider(1, 100, QUALITY, step=1, label="Quality", buttons=[])
                target = gr.Number(
                    None, label="Target bytes", info="Takes the best quality that fits.", precision=0
                )
                preset = gr.Radio(list(PRESETS), value="fast", label="Preset")
                caption = gr.Textbox(
                    label="Caption",
                    info="Yours, or the captioner's; empty: none.",
                    max_length=1024,
                    submit_btn="Use",
                )
                note = gr.HTML(elem_id="note")
            with gr.Column(scale=4, min_width=340):
                result, comparison = gr.HTML(), gr.HTML()
        settings, shown = [preset, quality, caption, target], [subject, coded, result, caption, quality, note]

        def answer(open_subject: Callable[[], Subject], *settings: Any) -> dict[Any, Any]:
            try:
                opened = open_subject()
                done = demo.code(opened, *settings)
            except Exception as error:  # noqa: BLE001  a page answers, whatever a file holds
                return {note: f'<p role="alert">{escape(describe(error))}</p>'}
            said = f"Caption: {done.info.caption_bytes} bytes of the file. {opened.note}"
            return {
                subject: opened,
                coded: done,
                result: result_html(opened, done),
                caption: gr.update(value=done.caption, interactive=opened.pixels is not None),
                quality: gr.update(value=done.info.quality, interactive=opened.pixels is not None),
                note: f"<p>{escape(said)}</p>",
            }

        def dropped(path: str | None, preset: str, quality: int, target: int | None) -> dict[Any, Any]:
            if path is None:
                return {note: ""}
            try:
                return answer(lambda: demo.open(path), preset, quality, "auto", target)
            finally:
                Path(path).unlink(missing_ok=True)

        def chosen(event: gr.SelectData, preset: str, quality: int, target: int | None) -> dict[Any, Any]:
            return answer(lambda: demo.open(photos[event.index]), preset, quality, "auto", target)

        def first(preset: str, quality: int) -> dict[Any, Any]:
            return answer(lambda: demo.open(photos[1]), preset, quality)

        def again(
            opened: Subject, preset: str, quality: int, text: str, target: int | None
        ) -> dict[Any, Any]:
            return answer(lambda: opened, preset, quality, text.strip() or None, target)

        def compare(opened: Subject, done: Coded) -> Iterator[str]:
            figures: list[str] = []
            for figure in cards(demo, opened, done):
                figures.append(figure)
                yield grid(figures, judge)

        latest: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
        new = [preset, quality, target]
        answers = [
            page.load(first, [preset, quality], shown, show_progress="hidden"),
            drop.upload(dropped, [drop, *new], shown, show_progress="hidden"),
            gallery.select(chosen, new, shown, show_progress="hidden"),
            quality.input(lambda: None, None, target, **latest).then(
                again, [subject, *settings], shown, **latest
            ),
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


def thumbnail(path: Path) -> Image.Image:
    """A square of 160 pixels."""
    with Image.open(path) as photo:
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        return photo.convert("RGB").resize((160, 160), box=(left, top, left + side, top + side))


def serve(demo: Demo, host: str, port: int) -> None:
    """Serves the page until interrupted."""
    theme = gr.themes.Base(
        primary_hue="orange", neutral_hue="zinc", radius_size="md", font=["system-ui", "sans-serif"]
    ).set()
    build(demo).launch(
        server_name=host,
        server_port=port,
        theme=theme,
        css_paths=STYLE,
        footer_links=[],
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
        app_kwargs={"middleware": [Middleware(SelfOnly)]},
    )
