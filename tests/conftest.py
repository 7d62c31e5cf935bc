"""Fixtures that tests share; plain helpers are in support.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import SMALL, Result
from support import slim as slim_status

import slimcodec
from slimcodec.codec import Codec

Slim = Callable[..., Result]


@pytest.fixture
def slim(capsys: pytest.CaptureFixture[str]) -> Slim:
    """Runs the command in this process and checks what holds for every run."""

    def run(*arguments: object) -> Result:
        status = slim_status(*arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Result(status, out, err)

    return run


@pytest.fixture(scope="session")
def small() -> Codec:
    """A codec on the small bundle, in float32; not to be changed."""
    return slimcodec.load(SMALL, dtype="float32")


@pytest.fixture(scope="session")
def tiny() -> Codec:
    """A codec on the embedded bundle; not to be changed."""
    return slimcodec.load()
