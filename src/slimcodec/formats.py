"""The formats that Pillow reads, with the plugins that are installed."""

import importlib

from PIL import Image, ImageFile

#: modules that teach Pillow a format when they are imported
PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl", "pillow_jpls", "pillow_avif")
#: read by header only
_HEADER_ONLY = ("MPEG",)


def register_plugins() -> None:
    """Teach Pillow the formats of ``PLUGINS``, for the whole process; a plugin that cannot be imported is left out."""
    for module in PLUGINS:
        try:
            importlib.import_module(module)
        except ImportError:
            continue


def format_of(suffix: str) -> str | None:
    """Return the name of the format that Pillow writes for a suffix with its dot, None where it writes none."""
    Image.preinit()
    if suffix not in Image.EXTENSION:  # the usual formats are known without importing all plugins
        register_plugins()
    name = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    return name if name in Image.SAVE else None


def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with their dot, of the formats that Pillow reads; plugins are registered."""
    register_plugins()
    suffixes = Image.registered_extensions()  # imports Pillow's own plugins
    return frozenset({suffix for suffix, name in suffixes.items() if _reads(name)} | {".mpo"})


def _reads(name: str) -> bool:
    if name not in Image.OPEN or name in _HEADER_ONLY or name == "SLIM":
        return False
    factory = Image.OPEN[name][0]
    # BUFR, GRIB, HDF5 and, outside Windows, WMF are stubs without a loader
    module = importlib.import_module(factory.__module__)
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return not stub or getattr(module, "_handler", None) is not None
