"""What the command line prints: one line a problem, on stderr, never a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

import typer

from slimcodec.errors import describe

FAILED = 1
USAGE = 2
INTERRUPTED = 130


def printable(text: str) -> str:
    """Return ``text`` without control characters: a file's name or caption must not steer a terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line to ``stream`` (default: stdout), whatever characters its encoding lacks."""
    stream = stream or sys.stdout
    if stream is None:  # the command was started with its output closed
        return
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def complain(message: str, source: object = None) -> None:
    """Print ``slim: source: message`` to stderr."""
    say(printable(f"slim: {message}" if source is None else f"slim: {source}: {message}"), sys.stderr)


def stop(message: str, status: int) -> NoReturn:
    """Print ``slim: message`` and end the command with ``status``."""
    complain(message)
    raise typer.Exit(status)


@contextmanager
def failing(source: object = None) -> Iterator[None]:
    """End the command with a one-line message about ``source`` if the block raises."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        complain(describe(error, source), source)
        raise typer.Exit(FAILED) from error
