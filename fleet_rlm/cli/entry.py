"""How every command starts and ends: one line for an error, and the exit code that goes with it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer
from typer.exceptions import TyperException

from fleet_rlm.errors import Exit, FleetError, FleetWarning, nearest


def make_app(help_text: str) -> typer.Typer:
    """A Typer application in the house's manner: plain help, no pretty tracebacks."""
    # Rich help costs another 100 ms of start-up; plain help reads as well.
    return typer.Typer(
        help=help_text,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_app(app: typer.Typer, program: str) -> None:
    """Run a command line and leave the process with its exit code.

    A command returns its exit code; errors of this package print one line and give theirs.
    """
    warnings.showwarning = _warn
    try:
        code = app(prog_name=program, standalone_mode=False)
    except FleetError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except TyperException as error:
        _say(_usage_line(error, program))
        sys.exit(Exit.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        # Worker threads wait for models and cannot be ended one by one; records are on disk
        # already.
        sys.stdout.flush()
        os._exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to report, and nowhere to.
        os._exit(Exit.OK)
    sys.exit(code or Exit.OK)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # Ours are for the user; a library's are for its own developers.
    if issubclass(category, FleetWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)


def _usage_line(error: TyperException, program: str) -> str:
    message = " ".join(error.format_message().split())
    wrong = getattr(error, "option_name", None)
    context = getattr(error, "ctx", None)
    if wrong and context and "Did you mean" not in message and "ossible" not in message:
        options = [name for param in context.command.params for name in param.opts]
        known = [name for name in options if name.startswith("--")]
        message = f"{message}. {nearest(wrong, known)}"
    path = context.command_path if context else program
    return f"{message.rstrip('.')}. Try: {path} --help"
