"""What every command line shares: exit codes, one-line errors, JSON on stdout and everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click
import typer
from rich.console import Console

from modaltune import __version__
from modaltune.errors import ModalTuneError

console = Console(stderr=True, highlight=False)
_PACKAGES = ("modaltune", "server", "client", "simulation")
_AGAIN = "run again with --debug, which shows where, and report it"
_INTERRUPTED = 130  # what typer returns when Ctrl-C ends a command


def emit_json(value: Any) -> None:
    """Write exactly one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def run_app(app: typer.Typer, advice: str = _AGAIN, *, traced: bool = False) -> None:
    """Run a command line; every error is one line and its exit code, a traceback only with ``--debug``.

    Args:
        advice: after an error that nobody foresaw.
        traced: such an error's traceback comes before its line; for logs that may hold a patient.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if arguments == ["--version"]:
        sys.stdout.write(f"modaltune-federated {__version__}\n")
        sys.exit(0)
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("modaltune").setLevel(logging.DEBUG if debug else logging.ERROR)
    try:
        code = app(args=arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        if error.format_message():  # empty when typer has printed the help itself
            error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(_usage(error), 2, None)
    except ModalTuneError as error:
        _fail(str(error), error.exit_code, error if debug else None)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2, error if debug else None)
    except click.Abort:  # Ctrl-D at a question
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort; its text may hold a patient
        if traced and not debug:
            traceback.print_exc()
        _fail(f"{_unexpected(error)}; {advice}", 2, error if debug else None)
    if code == _INTERRUPTED:
        _say_error("interrupted; no file is half-written, and the same command starts again or goes on")
        os._exit(_INTERRUPTED)  # everything is cleaned up; half-started native libraries may crash or hang at exit
    sys.exit(code or 0)


def _unexpected(error: Exception) -> str:
    """An error that nobody foresaw, by its type and the last module of this project that it passed."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in modules if name.split(".")[0] in _PACKAGES and name != __name__]
    return f"unexpected failure ({type(error).__name__} in {ours[-1] if ours else modules[-1]})"


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return error.format_message() + (f" Try '{context.command_path} --help'." if context is not None else "")


def _fail(message: str, code: int, error: BaseException | None) -> NoReturn:
    if error is not None:
        raise error
    _say_error(message)
    sys.exit(code)


def _say_error(message: str) -> None:
    console.print(f"error: {' '.join(message.splitlines())}", soft_wrap=True, markup=False, style="red")


def progress_line(quiet: bool) -> Callable[[str], None]:
    """A function that prints one line of progress to stderr, or nothing."""

    def say(text: str) -> None:
        if not quiet:
            console.print(text, markup=False, soft_wrap=True)

    return say
