"""The release, for ``slim --version`` and the packaging."""

__version__ = "0.1.0"
