"""`fleet-optimize`: compile programs and show on a sealed test what it bought."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_rlm.cli import options
from fleet_rlm.cli.entry import make_app, run_app

app = make_app("Compile programs and show on a sealed test what it bought.")

Job = Annotated[str, typer.Argument(help="Folder or name of a job.")]

HOME = """\
fleet-optimize compiles DSPy programs and compares them with the baseline on a sealed test.

  fleet-optimize run quickstart     no key needed: a simulated model shows the harness
  fleet-optimize run joint --dry-run  trials, calls and dollars, before any are spent
  fleet-optimize list               recipes of your project and built in
  fleet-optimize status JOB         how far a job is
  fleet-optimize trials JOB         what was tried
  fleet-optimize diff JOB           what the winner changed, and what that bought
  fleet-optimize promote JOB        point an alias at the winner, if the test carries it
  fleet-optimize rollback RECIPE    point `champion` at the bundle that was it before

Details: fleet-optimize COMMAND --help
"""

Unregistered = Annotated[
    bool, typer.Option("--no-mlflow", help="Leave MLflow's model registry as it is.")
]


@app.callback(invoke_without_command=True)
def home(context: typer.Context) -> None:
    """What the command can do, in order of use, when it is called alone."""
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will take, and start nothing.")
    ] = False,
    no_mlflow: options.NoMlflow = False,
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
        "mlflow": False if no_mlflow else None,
    }
    caps = {"max_usd": max_usd, "trials": max_trials, "max_seconds": max_seconds}
    return compile_command(
        recipe, flags, caps, out=out, display=display, as_json=as_json, dry_run=dry_run
    )


@app.command()
def status(job: Job, as_json: options.AsJson = False) -> int:
    """Say how far a job is, what it has spent, and the best trial so far."""
    from fleet_rlm.cli.jobs import status_command

    return status_command(job, as_json=as_json)


@app.command()
def trials(job: Job, as_json: options.AsJson = False) -> int:
    """Print every trial: score, dollars, latency, choices, and which dimensions matter."""
    from fleet_rlm.cli.jobs import trials_command

    return trials_command(job, as_json=as_json)


@app.command()
def diff(
    job: Job,
    trial: Annotated[int | None, typer.Argument(help="[default: the winner]")] = None,
    as_json: options.AsJson = False,
) -> int:
    """Show what a trial changed: settings, instructions, worked examples, and what each bought."""
    from fleet_rlm.cli.jobs import diff_command

    return diff_command(job, trial, as_json=as_json)


@app.command()
def export(
    job: Job,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The bundle's folder.")],
) -> int:
    """Copy the winner's bundle to a folder."""
    from fleet_rlm.cli.jobs import export_command

    return export_command(job, out)


@app.command()
def promote(
    job: Job,
    alias: Annotated[str, typer.Option(help="Name that points at the bundle.")] = "champion",
    force: Annotated[
        str | None, typer.Option(metavar="WHY", help="Promote without evidence; recorded.")
    ] = None,
    no_mlflow: Unregistered = False,
) -> int:
    """Point an alias at the winner, if the sealed test shows that it is better, or cheaper."""
    from fleet_rlm.cli.jobs import promote_command

    return promote_command(job, alias=alias, force=force, register=not no_mlflow)


@app.command()
def rollback(
    recipe: Annotated[str, typer.Argument(help="Name of the recipe whose winner was promoted.")],
    no_mlflow: Unregistered = False,
) -> int:
    """Point `champion` at the bundle that was it before; a second time undoes it."""
    from fleet_rlm.cli.jobs import rollback_command

    return rollback_command(recipe, register=not no_mlflow)


def main() -> None:
    """Entry point of `fleet-optimize`."""
    run_app(app, "fleet-optimize")


if __name__ == "__main__":
    main()
