"""`fleet-optimize`: compile programs and show on a sealed test what it bought."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_rlm.cli import options
from fleet_rlm.cli.entry import make_app, run_app

app = make_app("Compile programs and show on a sealed test what it bought.")

HOME = """\
fleet-optimize compiles DSPy programs and compares them with the baseline on a sealed test.

  fleet-optimize run quickstart     no key needed: a simulated model shows the harness
  fleet-optimize list               recipes of your project and built in

Details: fleet-optimize COMMAND --help
"""


@app.callback(invoke_without_command=True)
def home(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(HOME, nl=False)


@app.command("list")
def list_recipes(
    as_json: options.AsJson = False,
) -> int:
    """List the recipes that `run` knows."""
    from fleet_rlm.cli.compile import print_recipes

    return print_recipes(Path.cwd(), as_json=as_json)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    concurrency: options.Concurrency = None,
    sandbox: options.Sandbox = None,
    max_usd: options.MaxUsd = None,
    max_trials: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Trials, the baseline among them.")
    ] = None,
    max_seconds: options.MaxSeconds = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Job folder. [default: in runs/jobs/]")
    ] = None,
    display: options.Display = "auto",
    as_json: options.AsJson = False,
) -> int:
    """Compile as a recipe says. The same command again resumes: nothing finished is paid twice."""
    from fleet_rlm.cli.compile import compile_command

    flags = {
        "model": model,
        "sub_model": sub_model,
        "api_base": api_base,
        "concurrency": concurrency,
        "sandbox": sandbox,
    }
    caps = {"max_usd": max_usd, "trials": max_trials, "max_seconds": max_seconds}
    return compile_command(recipe, flags, caps, out=out, display=display, as_json=as_json)


def main() -> None:
    """Entry point of `fleet-optimize`."""
    run_app(app, "fleet-optimize")


if __name__ == "__main__":
    main()
