"""The page: Gradio's controls around figures in plain HTML, which need no script, no font and no file from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageOps
from starlette.middleware import Middleware

from slimcodec.demo.computing import PRESETS, Coded, Demo, Subject, Verdict
from slimcodec.errors import describe
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
FAITHFUL, DRAWN = "faithful", "drawn by the model from the caption"
EXPLAINED = {
    FAITHFUL: "decoded from the bits, nothing invented",
    DRAWN: "details are invented: they follow the caption",
}
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


def result_html(subject: Subject, coded: Coded) -> str:
    """The swipe slider, the numbers, and the heat map."""
    info, decoded = coded.info, uri(coded.pixels)
    label = FAITHFUL if coded.faithful else DRAWN
    swipe = f'<img src="{decoded}" alt="Decoded picture, {label}">'
    if subject.pixels is not None:
        swipe += (
            f'<img class="before" src="{uri(subject.pixels)}" alt="Original photo"><i></i>'
            '<input type="range" min="0" max="100" step="0.5" value="50" '
            'aria-label="Swipe between the original, left, and the decoded picture, right" '
            "oninput=\"this.parentNode.style.setProperty('--cut', this.value + '%')\">"
            '<span class="tag">original</span>'
        )
    smaller = info.width * info.height * 3 / info.file_bytes
    parts = {"header": info.header_bytes, "caption": info.caption_bytes, "picture": info.payload_bytes}
    bar = "".join(f'<i class="part-{name}" style="flex-grow:{count}"></i>' for name, count in parts.items())
    legend = "".join(f'<li class="part-{name}">{name} {count:,}</li>' for name, count in parts.items())
    region = ""
    if coded.region is not None:
        bits, area = coded.region
        region = f" White line: what the captioner saw, {bits:.0%} of the bits on {area:.0%} of the picture."
    name = escape(subject.name, quote=True)
    return f"""<div class="result"><div class="facts" role="status">
<p class="size"><b>{info.file_bytes:,}</b> bytes</p>
<p><b>{info.bpp:.3f}</b> bits per pixel<br><b>{smaller:,.0f}</b> times smaller than raw pixels</p>
<p class="badge {"" if coded.faithful else "drawn"}"><b>{label}</b><br>{EXPLAINED[label]}</p>
</div>
<div class="stage"><div class="swipe" style="--w:{info.width};--h:{info.height}">{swipe}
<span class="tag after">decoded, {info.file_bytes:,} bytes</span></div></div>
<div class="where"><img src="{uri(coded.heat)}" alt="Heat map over the photo: where the bits of the file went">
<p class="scale"><span>0</span><i></i><span>{coded.most:.0f} bits in {coded.cell}x{coded.cell} pixels</span></p>
<p class="quiet">Where the bits went.{region}</p>
<div class="bar" aria-hidden="true">{bar}</div><ul class="legend" aria-label="Bytes of the file">{legend}</ul>
<p class="quiet">{info.width}x{info.height} pixels, quality {info.quality}; coded and decoded in {coded.seconds:.2f} s.</p>
<p class="links"><a download="{name}.slim" href="{uri(coded.data, "application/octet-stream")}">Download .slim</a>
<a download="{name}.png" href="{decoded}">Download PNG</a></p>
</div></div>"""


def card(title: str, bytes_line: str, picture: str, verdict: Verdict | None, truth: str, kind: str) -> str:
    """A picture with its bytes, and what the classifier says of it: right where it says what it says of the original."""
    rows = ""
    if verdict is not None:
        for name, share in zip(*verdict, strict=True):
            same = " class='same'" if name == truth else ""
            rows += f'<li{same} style="--share:{share:.1%}"><span>{escape(name)}</span> {share:.0%}</li>'
        right = verdict.names[0] == truth
        mark = "" if kind == "original" else ("✓ " if right else "✗ ")
        state = "" if kind == "original" else ("right" if right else "wrong")
        rows = f'<p class="verdict {state}">{mark}{escape(verdict.names[0])}</p><ol aria-label="Top {len(verdict.names)}">{rows}</ol>'
    return (
        f'<figure class="card {kind}"><img src="{picture}" alt="{escape(title)}">'
        f"<figcaption><b>{escape(title)}</b> <span>{bytes_line}</span></figcaption>{rows}</figure>"
    )


def cards(demo: Demo, subject: Subject, coded: Coded) -> Iterator[str]:
    """The cards of original, ours and every peer: one after the other, since peers take their time."""
    verdict = demo.verdict(coded.pixels)
    ours = (f"{len(coded.data):,} bytes", uri(coded.pixels))
    if subject.pixels is None:
        yield card("SLIM", *ours, verdict, verdict.names[0] if verdict else "", "original")
        return
    original = demo.verdict(subject.pixels)
    truth = original.names[0] if original else ""
    raw = f"{subject.pixels.nbytes:,} bytes raw"
    yield card("Original", raw, uri(subject.pixels), original, truth, "original")
    yield card("SLIM", *ours, verdict, truth, "ours")
    for name in subject.encoders:
        spent = demo.spend(subject, name, len(coded.data))
        # the browser shows the peer's own bytes
        picture, size = uri(spent.data, f"image/{name.lower()}"), f"{len(spent.data):,} bytes"
        if spent.fits:
            yield card(name, size, picture, demo.verdict(spent.pixels), truth, "peer")
        else:
            yield card(name, f"cannot get that small: {size} at least", picture, None, truth, "unfit")


def grid(figures: list[str], classifier: str, guided: bool) -> str:
    """The cards side by side; ``guided``: the classifier had a say in ours."""
    judge = f"What {escape(classifier)} says" if classifier else "No classifier: give one with --classifier"
    if classifier and guided:
        judge += ", which guided SLIM's picture: for an independent judge use --classifier"
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
        html(
            "<header><h1>slimcodec</h1><p>A photo in a few hundred bytes that a machine, and a person, can still read. "
            f"<span>{escape(config.name)} {demo.codec.bundle.bundle_id}. Nothing leaves this server.</span></p></header>"
        )
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="controls", scale=1, min_width=290):
                drop = gr.File(label="Drop a photo or a .slim file", height=150)
                gallery = html(gallery_html(photos), js_on_load=PICK)
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
                result: result_html(opened, done),
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
                yield grid(figures, judge, demo.classifier is None and not done.faithful)

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


def gallery_html(photos: Sequence[Path]) -> str:
    """A button with a square thumbnail for every photo."""
    buttons = ""
    for number, (photo, text) in enumerate(zip(photos, GALLERY.values(), strict=True)):
        with Image.open(photo) as opened:
            square = np.asarray(ImageOps.fit(opened.convert("RGB"), (128, 128)))
        buttons += f'<button type="button" data-index="{number}" title="{text}"><img src="{uri(square)}" alt="{text}"></button>'
    return f'<div class="gallery" role="group" aria-label="Photos to try">{buttons}</div>'


def serve(demo: Demo, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves the page until interrupted; ``say`` is told the address."""
    theme = gr.themes.Base(
        primary_hue="orange", neutral_hue="zinc", radius_size="md", font=["system-ui", "sans-serif"]
    )
    page = build(demo)
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
    say(f"{address} shows the page; Ctrl-C ends it")
    page.block_thread()
