"""Every error that slimcodec raises on purpose, catch ``SlimError`` to catch them all; and its warnings."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class SlimError(Exception):
    """Base of all slimcodec errors; its message says what happened and what to do."""


class FormatError(SlimError):
    """The bytes are not a ``.slim`` file, or they are truncated or corrupt."""


class VersionError(SlimError):
    """The file was written in a format version that this release cannot read."""


class ModelMismatchError(SlimError):
    """The file needs another bundle than the one at hand.

    ``bundle_id`` holds the id of the bundle that the file names (8 hex digits).
    """

    def __init__(self, message: str, bundle_id: str = "") -> None:
        super().__init__(message)
        self.bundle_id = bundle_id


class ImageError(SlimError):
    """The input is not a picture that can be coded: unreadable, empty or too large."""


class FileError(SlimError, OSError):
    """A file cannot be opened; it is the ``OSError`` of ``open`` too, such as a ``FileNotFoundError``."""


class MissingFileError(FileError, FileNotFoundError): ...


class FolderError(FileError, IsADirectoryError): ...


class ForbiddenFileError(FileError, PermissionError): ...


@contextmanager
def opening() -> Iterator[None]:
    """Raises what ``open`` raises in the block as a ``FileError`` of the same kind."""
    try:
        yield
    except OSError as error:
        kinds = (kind for kind in FileError.__subclasses__() if isinstance(error, kind.__bases__[1]))
        named = [] if error.filename is None else [error.filename]
        raise next(kinds, FileError)(*error.args, *named) from error


class ImageWarning(UserWarning):
    """A picture was read, but something in its file (a colour profile, a rotation) was ignored."""


class LossWarning(ImageWarning):
    """A file holds more than the ``.slim`` file that is made of it; ``kind`` is one of ``leftovers.KINDS``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return self.text


def failed_import(error: BaseException) -> str:
    """Return which library could not be imported, and why, where an error came of that, else ""."""
    cause: BaseException | None = error
    while cause is not None:
        # a module's own code runs only while it is imported
        frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        modules = [frame.f_globals["__name__"] for frame in frames if frame.f_code.co_name == "<module>"]
        missing = [cause.name] if isinstance(cause, ImportError) and cause.name else []
        for library in (modules + missing)[:1]:
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
            hint = "; it may need the docstrings that python -OO takes away" if sys.flags.optimize > 1 else ""
            return f"{library.partition('.')[0]} cannot be imported ({reason}){hint}"
        cause = cause.__cause__
    return ""


@contextmanager
def needs(extra: str, feature: str) -> Iterator[None]:
    """Names the extra that a feature needs where the block imports a library that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SlimError(f"{feature} needs {error.name}: pip install 'slimcodec[{extra}]'") from error


def describe(error: BaseException, source: object = "") -> str:
    """Return ``error`` in one line, without the name of its ``source``, which the caller prints."""
    if isinstance(error, OSError):
        text = error.strerror or str(error)
    elif isinstance(error, SlimError | ValueError):
        text = str(error)
    elif isinstance(error, ModuleNotFoundError):
        # what needs a further extra names it: of the libraries, torch's are missing for all else
        text = f"this needs {error.name}: pip install 'slimcodec[torch]'"
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    else:
        text = f"internal error: {type(error).__name__}: {error}"
    return " ".join(text.split()).removeprefix(f"{source}: ") or type(error).__name__
