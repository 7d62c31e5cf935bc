"""The command ``slim``: one module a command, none of which imports torch or numpy before it has to."""

import gc
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated

import typer

from slimcodec import __version__
from slimcodec.cli.options import FAILED, INTERRUPTED, complain, say
from slimcodec.errors import describe

#: the commands in the order of the help, and their modules here
COMMANDS = {
    "encode": "encode",
    "decode": "decode",
    "info": "info",
    "verify": "info",
    "map": "info",
    "train": "train",
    "bench": "bench",
    "report": "bench",
    "demo": "demo",
    "doctor": "info",
    "bundle": "bundle",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"slimcodec {__version__}")
        raise typer.Exit


def slim(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the release and exit."),
    ] = False,
) -> None:
    """Compress pictures for machines that look at them, in a few hundred bytes.

    Examples:
      slim encode photos/ -o slims/ --quality 40
      slim decode slims/ -o pictures/
      slim info slims/
      slim verify slims/
      slim map photo.jpg -o bits.png
      slim bench val.parquet -c judge.onnx -o result.json
      slim report result.json -o report/
      slim demo
    """


def application(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return ``slim`` with the commands of these names; to build them all takes five times as long as one."""
    app = typer.Typer(
        name="slim",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(slim)
    for name in names:
        module = import_module(f"slimcodec.cli.{COMMANDS[name]}")
        command = getattr(module, name, None) or getattr(module, f"{name}_")
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``slim`` on ``arguments`` (default: the process's); ends by ``SystemExit`` with its status."""
    # imports make objects that stay: searching them for garbage takes 5 % of a short command's time
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        app = application([words[0]] if words and words[0] in COMMANDS else COMMANDS)
        app(args=words, prog_name="slim", obj=words)
    except KeyboardInterrupt:  # while a command's libraries are imported
        complain("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001  the last net: users get a line, never a traceback
        complain(describe(error))
        raise SystemExit(FAILED) from None
