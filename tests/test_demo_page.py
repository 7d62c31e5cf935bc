"""``slim demo`` in a real browser: Debian's Chromium, driven by Playwright, against the command in a process of its own."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from support import SLIM, photo

import slimcodec

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the demo page is not tested: apt-get install chromium"),
]
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
#: milliseconds: a busy machine has two cores
PATIENCE = 300_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address; at the end nothing of a visitor is left on the server."""
    # not where the module is imported: that costs seconds in a run without these tests too
    pytest.importorskip("gradio", reason="the demo page is not tested: pip install 'slimcodec[demo]'")
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["env", f"TMPDIR={folder}", *SLIM, "demo", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line == f"http://127.0.0.1:{port}/ shows the page; Ctrl-C ends it\n"
        yield line.split()[0]
        server.terminate()
        rest = server.stdout.read()
    assert "Traceback" not in rest, rest
    # torch leaves an empty folder of its own
    assert [path for path in folder.rglob("*") if "slim-demo" in path.name or path.suffix] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the demo page is not tested: Playwright is missing"
    )
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split())


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page with its first photo shown; whatever it asked for came from its own server, and nothing broke."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    context.set_default_timeout(PATIENCE)
    page, asked, errors = context.new_page(), [], list[Any]()
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(address)
    page.wait_for_selector(".card:nth-child(5)")
    yield page
    assert {url for url in asked if not url.startswith(("data:", "blob:", address))} == set()
    assert errors == []
    context.close()


def size(page: Page) -> int:
    """Bytes of the file that is shown."""
    return int(page.inner_text(".size b").replace(",", ""))


def upload(page: Page, file: Path) -> None:
    page.locator("input[type=file]").set_input_files(file)


def shows(page: Page, name: str) -> None:
    """Waits until the result of a file is shown."""
    page.wait_for_selector(f'.links a[download="{name}.slim"]')


def test_a_photo_is_coded_and_compared(page: Page, tmp_path: Path) -> None:
    photo("coffee", 1500, 1000).save(tmp_path / "my coffee.jpg", quality=95)
    upload(page, tmp_path / "my coffee.jpg")
    shows(page, "my coffee")
    assert "Reduced from 1500x1000 to 1024x683 pixels" in page.inner_text("#note")
    assert "espresso" in page.get_by_label("Caption").input_value()
    page.wait_for_selector(f".card.ours:has-text('{size(page):,} bytes')")
    page.wait_for_selector(".card:nth-child(5)")
    for name in ("Original", "SLIM", "JPEG", "WebP", "AVIF"):
        picture = page.locator(f".card img[alt={name}]")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1024
    assert page.locator(".card ol").first.locator("li").count() == 5


def test_the_slider_and_the_target_decide_the_size(page: Page) -> None:
    before = size(page)
    page.get_by_label("range slider for Quality").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => +document.querySelector('.size b').textContent.replace(',', '') < before", arg=before
    )
    page.get_by_label("Target bytes").fill("500")
    page.keyboard.press("Enter")
    page.wait_for_function("+document.querySelector('.size b').textContent <= 500")
    assert int(page.get_by_label("number input for Quality").input_value()) < 45
    page.wait_for_selector(".card.unfit:has-text('cannot get that small')")


def test_the_swipe_moves_by_keyboard_and_mouse(page: Page) -> None:
    swipe = page.get_by_label(re.compile("Swipe between"))
    cut = "getComputedStyle(document.querySelector('.swipe .before')).clipPath"
    before = page.evaluate(cut)
    swipe.press("ArrowLeft")
    moved = page.evaluate(cut)
    swipe.click(position={"x": 20, "y": 50})
    assert len({before, moved, page.evaluate(cut)}) == 3


def test_what_was_drawn_is_labelled(page: Page) -> None:
    assert page.inner_text(".badge b") == "faithful"
    page.get_by_label("machine").click()
    page.wait_for_selector(".badge.drawn")
    assert page.inner_text(".badge b") == "drawn by the model from the caption"
    page.wait_for_selector("h2:has-text('for an independent judge use --classifier')")


def test_a_caption_is_edited(page: Page) -> None:
    page.get_by_label("Caption").fill("a cat that I know")
    page.get_by_role("button", name="Use").click()
    page.wait_for_function("!document.querySelector('.legend').textContent.includes('caption 2')")
    page.get_by_label("Caption").fill("")
    page.get_by_role("button", name="Use").click()
    page.wait_for_selector(".legend:has-text('caption 0')")


def test_a_download_is_the_file_and_can_be_dropped_again(page: Page, tmp_path: Path) -> None:
    page.locator(".gallery button").nth(3).press("Enter")
    shows(page, "rocket")
    for name in ("slim", "png"):
        with page.expect_download() as download:
            page.locator(f'.links a[download="rocket.{name}"]').click()
        download.value.save_as(tmp_path / f"mine.{name}")
    data = (tmp_path / "mine.slim").read_bytes()
    assert len(data) == size(page)
    with Image.open(tmp_path / "mine.png") as decoded:
        assert decoded.size == (slimcodec.inspect(data).width, slimcodec.inspect(data).height)
    upload(page, tmp_path / "mine.slim")
    shows(page, "mine")
    assert size(page) == len(data) and page.locator(".swipe input").count() == 0
    page.wait_for_function("document.querySelectorAll('.card').length == 1")


def test_bad_files_say_what_is_wrong_and_lose_nothing(page: Page, tmp_path: Path) -> None:
    before = size(page)
    for name, content, message in (
        ("notes.txt", b"no picture", "notes.txt: not an image"),
        ("cut.slim", slimcodec.encode(photo("chelsea"))[:-2], ".slim file"),
    ):
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        page.wait_for_selector(f"[role=alert]:has-text('{message}')")
    assert size(page) == before


@pytest.mark.parametrize(
    "page",
    [
        {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        for width in (400, 1600)
        for scheme in ("light", "dark")
    ],
    indirect=True,
)
def test_every_width_and_scheme_is_whole(page: Page) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is dark
    for element in page.locator("figure, .swipe, .gallery, .badge").all():
        box = element.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width


def test_everything_has_a_name(page: Page) -> None:
    unnamed = page.locator("button, input:not([type=file]), textarea, a, img").evaluate_all(
        "all => all.filter(e => e.checkVisibility() && !(e.ariaLabel || e.alt || e.title || e.textContent.trim() "
        "|| e.labels?.length)).map(e => e.outerHTML.slice(0, 200))"
    )
    assert unnamed == []


def test_the_browser_refuses_to_leave(page: Page) -> None:
    refused = page.evaluate(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));"
        " fetch('http://127.0.0.2:9/').catch(() => {}); })"
    )
    assert refused == "connect-src"
