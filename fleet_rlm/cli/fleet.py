"""`fleet-rlm`: use a program on a file of your own, and check this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_rlm.cli import options
from fleet_rlm.cli.entry import make_app, run_app

app = make_app("Use programs outside an evaluation, and check this machine.")

HOME = """\
fleet-rlm uses the programs that fleet-eval scores.

  fleet-rlm run --context book.txt --query 'Who ...?'   answer one question about one file
  fleet-rlm doctor                                       check sandbox, model, key, store

Details: fleet-rlm COMMAND --help
"""


@app.callback(invoke_without_command=True)
def home(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(HOME, nl=False)


@app.command()
def run(
    context: Annotated[Path, typer.Option(metavar="FILE", help="Text file to answer from.")],
    query: Annotated[str, typer.Option(help="The question.")],
    program: options.Program = "rlm",
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    sandbox: options.Sandbox = None,
    wall: Annotated[float, typer.Option(metavar="SECONDS", help="Wall time.")] = 600.0,
    trace: Annotated[bool, typer.Option(help="Show each turn on stderr.")] = False,
    as_json: options.AsJson = False,
) -> int:
    """Answer one question about one file; the answer goes to stdout."""
    from fleet_rlm.cli.ask import Ask, ask_command

    flags = {"model": model, "sub_model": sub_model, "api_base": api_base, "sandbox": sandbox}
    return ask_command(
        Ask(
            context=context,
            query=query,
            program=program,
            flags=flags,
            price=price,
            wall_s=wall,
            trace=trace,
            as_json=as_json,
        )
    )


@app.command()
def doctor(
    as_json: options.AsJson = False,
) -> int:
    """Check Python, sandbox, model, key and store; each failure comes with its mend."""
    from fleet_rlm.cli.doctor import doctor_command

    return doctor_command(Path.cwd(), as_json=as_json)


def main() -> None:
    """Entry point of `fleet-rlm`."""
    run_app(app, "fleet-rlm")


if __name__ == "__main__":
    main()
