"""``slim demo``: a page on this machine where one drops a photo."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Annotated

from slimcodec.cli import options
from slimcodec.cli.options import failing, option, say
from slimcodec.errors import needs


def demo(
    host: Annotated[
        str, option("H", "Address to listen on (default: loopback, this machine alone).")
    ] = "127.0.0.1",
    port: Annotated[int, option("P", "Port (default: 7860).", min=1, max=65535)] = 7860,
    classifier: Annotated[
        str | None,
        option(
            "FILE|ID",
            "Classifier of the pictures, such as an ONNX file (default: the bundle's captioner).",
            "--classifier",
            "-c",
        ),
    ] = None,
    side: Annotated[int, option("N", "Longest side, to which photos are reduced; 0: never.", min=0)] = 1024,
    model: options.Model = None,
    device: options.Device = "cpu",
    max_pixels: options.MaxPixels = None,
) -> None:
    """Open a page where one drops a photo or a .slim file, and sees what becomes of it.

    Bytes and where they went, the same bytes spent by JPEG, WebP and AVIF, and
    what a classifier says of each. Nothing is sent anywhere; uploads are removed
    once read. Needs the demo extra. End it with Ctrl-C.

    Examples:
      slim demo
      slim demo --port 8000 --classifier judge.onnx
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads go in either case
    with failing(), tempfile.TemporaryDirectory(prefix="slim-demo-") as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        with needs("demo", "the page"):
            from slimcodec.demo.page import serve

        import slimcodec
        from slimcodec.data.classifiers import load_classifier
        from slimcodec.demo.computing import Demo

        judge = load_classifier(classifier, "full") if classifier else None
        serve(Demo(slimcodec.load(model, device=device), judge, side, max_pixels), host, port, say)
