"""`fleet-eval`: score programs on suites of long-context tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_rlm.cli import options
from fleet_rlm.cli.entry import make_app, run_app
from fleet_rlm.cli.sandbox_gc import sandbox_gc

app = make_app("Score agent and RLM programs on suites of long-context tasks.")

HOME = """\
fleet-eval scores DSPy programs on long-context suites, generated code running in real sandboxes.

  fleet-eval run quickstart                      no key needed: a simulated model shows the harness
  fleet-eval run quickstart --program direct     the baseline: everything in one prompt
  fleet-eval run needle --corpus 'books/*.txt'   the same on your own text
  fleet-eval run quickstart -m openai/gpt-5-mini a real model (export DSPY_LLM_API_KEY=...)
  fleet-eval init questions.jsonl                a project around questions of your own
  fleet-eval resume runs/latest                  go on where it stopped
  fleet-eval compare runs/A runs/B runs/C        runs on the same samples, paired
  fleet-eval report runs/A runs/B                one HTML page: plots, samples, what each did
  fleet-eval view                                every run in the MLflow dashboard

Commands: init, list, show, fetch, audit, estimate, run, resume, compare, gate, experiment, samples,
trace, rescore, view, sync, conformance, calibrate. Details: fleet-eval COMMAND --help
"""


@app.callback(invoke_without_command=True)
def home(context: typer.Context) -> None:
    """What the command can do, in order of use, when it is called alone."""
    if context.invoked_subcommand is None:
        typer.echo(HOME, nl=False)


@app.command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Questions: JSONL, JSON, CSV or Parquet; or owner/name of a Hugging Face dataset.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of suite and recipe. [default: the file's]")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Column of the text to answer from.")] = None,
    question: Annotated[str | None, typer.Option(help="Column of the question.")] = None,
    answer: Annotated[str | None, typer.Option(help="Column of the gold answer.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Configuration of the Hugging Face dataset.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split. [default: train]")] = None,
) -> int:
    """Make this folder a project around your questions: suite, dataset, recipe and CI gate."""
    from fleet_rlm.cli.scaffold import Questions, init_project

    columns = {"context": context, "question": question, "answer": answer}
    return init_project(
        Path.cwd(), Questions(data=data, name=name, columns=columns, config=config, split=split)
    )


@app.command("list")
def list_suites(
    as_json: options.AsJson = False,
) -> int:
    """List the suites that `run` knows, your project's and the built-in ones."""
    from fleet_rlm.cli.suites import print_list

    return print_list(Path.cwd(), as_json=as_json)


@app.command()
def show(
    suite: Annotated[str, typer.Argument(help="Name or path of a suite.")],
    samples: Annotated[int, typer.Option("-n", "--samples", help="Samples to preview.")] = 2,
    corpus: Annotated[str | None, typer.Option(help="Text files to plant questions in.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in `run`.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the contexts of those samples here, one file each."
        ),
    ] = None,
) -> int:
    """Show a suite: its tasks, and previews of samples with their questions and gold answers."""
    from fleet_rlm.cli.suites import print_suite

    return print_suite(Path.cwd(), suite, samples, corpus, overrides or [], out)


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="Name or path of a suite; see `fleet-eval list`.")],
    program: options.Program = "rlm",
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    sub_price: Annotated[
        str | None, typer.Option(metavar="IN/OUT", help="The same for the sub-model.")
    ] = None,
    allow_unpriced: Annotated[
        bool, typer.Option("--allow-unpriced", help="Run a model whose price nobody knows.")
    ] = False,
    judge: options.Judge = None,
    judge_price: Annotated[
        str | None, typer.Option(metavar="IN/OUT", help="The same for the judge.")
    ] = None,
    allow_same_judge: Annotated[
        bool, typer.Option(help="Let the judge be a model whose answers it judges.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    max_completion_tokens: Annotated[
        int | None, typer.Option(help="Longest completion. [env: DSPY_LM_MAX_TOKENS]")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Longest wait for one reply. [default: 600]"),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Let dspy's cache answer calls made before.")
    ] = False,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Your own text files to plant questions in."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a suite key (lengths=[8000]), settings.KEY, limits.KEY or"
            " program.guidance; may be repeated.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most this many samples, spread over tasks and lengths.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 1,
    concurrency: options.Concurrency = None,
    workers: options.Workers = None,
    sandbox: options.Sandbox = None,
    iterations: Annotated[int | None, typer.Option(help="Turns with the REPL, a sample.")] = None,
    sub_calls: Annotated[int | None, typer.Option(help="Sub-queries, a sample.")] = None,
    working: options.Working = None,
    wall: options.Wall = None,
    max_usd: options.MaxUsd = None,
    max_tokens: options.MaxTokens = None,
    max_seconds: options.MaxSeconds = None,
    min_coverage: options.MinCoverage = None,
    retry_errors: options.RetryErrors = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder. [default: named by what runs, in runs/]"),
    ] = None,
    trace: options.Trace = None,
    no_mlflow: options.NoMlflow = False,
    display: options.Display = "auto",
    as_json: options.AsJson = False,
    print_config: Annotated[
        bool, typer.Option(help="Print what would run, as JSON, and stop.")
    ] = False,
) -> int:
    """Score a program on a suite. The same command again resumes: only what is owed is run."""
    from fleet_rlm.cli.run import RunRequest, run_command

    return run_command(
        RunRequest(
            suite=suite,
            program=program,
            flags={
                "model": model,
                "sub_model": sub_model,
                "api_base": api_base,
                "temperature": temperature,
                "max_completion_tokens": max_completion_tokens,
                "timeout_s": timeout,
                "cache": cache or None,
                "sandbox": sandbox,
                "concurrency": concurrency,
                "workers": workers,
                "min_coverage": min_coverage,
                "mlflow": False if no_mlflow else None,
            },
            price=price,
            sub_price=sub_price,
            judge=judge,
            judge_price=judge_price,
            allow_same_judge=allow_same_judge,
            corpus=corpus,
            overrides=overrides or [],
            limit=limit,
            epochs=epochs,
            iterations=iterations,
            sub_calls=sub_calls,
            wall_s=wall,
            working_s=working,
            max_usd=max_usd,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
            allow_unpriced=allow_unpriced,
            retry_errors=retry_errors,
            trace=trace,
            out=out,
            display=display,
            as_json=as_json,
            print_config=print_config,
        )
    )


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of the run; runs/latest is the last one.")],
    limit: Annotated[int | None, typer.Option(help="At most this many samples, in all.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Repetitions, in all.")] = None,
    concurrency: options.Concurrency = None,
    workers: options.Workers = None,
    working: options.Working = None,
    wall: options.Wall = None,
    max_usd: options.MaxUsd = None,
    max_tokens: options.MaxTokens = None,
    max_seconds: options.MaxSeconds = None,
    min_coverage: options.MinCoverage = None,
    retry_errors: options.RetryErrors = False,
    trace: options.Trace = None,
    no_mlflow: options.NoMlflow = False,
    display: options.Display = "auto",
    as_json: options.AsJson = False,
) -> int:
    """Go on with a run as it was started; what is given here is new."""
    from fleet_rlm.cli.run import resume_command

    changes = {
        "limit": limit,
        "epochs": epochs,
        "working_s": working,
        "wall_s": wall,
        "max_usd": max_usd,
        "max_tokens": max_tokens,
        "max_seconds": max_seconds,
        "retry_errors": retry_errors,
        "trace": trace,
        "display": display,
        "as_json": as_json,
    }
    flags = {
        "concurrency": concurrency,
        "workers": workers,
        "min_coverage": min_coverage,
        "mlflow": False if no_mlflow else None,
    }
    return resume_command(run, changes, flags)


@app.command()
def compare(
    baseline: Annotated[Path, typer.Argument(help="Folder of a run, or the id of its MLflow run.")],
    candidates: Annotated[
        list[Path], typer.Argument(help="Folders of other runs on the same samples.")
    ],
    allow_mixed: Annotated[
        bool, typer.Option(help="Compare a simulated with a live model all the same.")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Markdown tables on stdout.")] = False,
    as_json: options.AsJson = False,
) -> int:
    """Compare runs with a baseline, sample by sample: difference, interval, p, cost, stops."""
    from fleet_rlm.cli.compare import compare_command

    return compare_command(
        baseline, candidates, allow_mixed=allow_mixed, as_json=as_json, as_markdown=as_markdown
    )


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs on the same samples; the baseline first.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="[default: report.html in the first run]"),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save each plot as a picture too.")
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option(help="Compare a simulated with a live model all the same.")
    ] = False,
) -> int:
    """Write one self-contained HTML page: tables, plots, samples and what each answer did."""
    from fleet_rlm.cli.report import report_command

    return report_command(runs, out=out, png=png, allow_mixed=allow_mixed)


@app.command()
def gate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    minimum: Annotated[
        float | None, typer.Option("--min", metavar="SCORE", help="Score to reach.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run on the same samples to hold up to.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(metavar="SCORE", help="How much worse than it is still right.")
    ] = None,
    only_proven: Annotated[
        bool, typer.Option(help="Fail only when the whole interval is too low.")
    ] = False,
    min_coverage: options.MinCoverage = None,
    allow_mixed: Annotated[
        bool, typer.Option(help="Compare a simulated with a live model all the same.")
    ] = False,
    as_json: options.AsJson = False,
) -> int:
    """Pass or fail a run, for CI: exit 0 passed, 1 failed, 4 cannot tell."""
    from fleet_rlm.cli.gate import gate_command

    return gate_command(
        run,
        minimum=minimum,
        baseline=baseline,
        max_drop=max_drop,
        only_proven=only_proven,
        allow_mixed=allow_mixed,
        flags={"min_coverage": min_coverage},
        as_json=as_json,
    )


@app.command()
def view(
    port: Annotated[int | None, typer.Option(help="Port on loopback; a free one if taken.")] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
) -> int:
    """Open the MLflow dashboard on this project's runs."""
    from fleet_rlm.cli.track import view_command

    return view_command(Path.cwd(), port=port, open_browser=not no_browser)


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    trace: options.Trace = None,
    as_json: options.AsJson = False,
) -> int:
    """Mirror a stored run to MLflow: one made without it, or while its store was away."""
    from fleet_rlm.cli.track import sync_command

    return sync_command(Path.cwd(), run, trace=trace, as_json=as_json)


@app.command()
def conformance(
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Published model outputs, at any depth.")
    ],
    as_json: options.AsJson = False,
) -> int:
    """Reproduce InfiniteBench's and BABILong's published scores from real model outputs."""
    from fleet_rlm.cli.conformance import conformance_command

    return conformance_command(data, as_json=as_json)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A suite, a dataset, or a manifest's path.")],
    pin: Annotated[
        bool, typer.Option(help="Take the current commit where a manifest names none.")
    ] = False,
    relock: Annotated[
        bool, typer.Option(help="Accept what is there now in place of what was locked.")
    ] = False,
    as_json: options.AsJson = False,
) -> int:
    """Read a real benchmark, or data of your own, onto this machine, and lock it by digest."""
    from fleet_rlm.cli.fetch import fetch_command

    return fetch_command(Path.cwd(), name, pin=pin, relock=relock, as_json=as_json)


@app.command()
def audit(
    suite: Annotated[str, typer.Argument(help="Name or path of a suite.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in `run`.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Samples a task, over its lengths; 0: all.")] = 12,
    attempts: Annotated[
        int, typer.Option(help="Samples that the simulated model answers, to search for gold.")
    ] = 3,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Model that is asked without the text. [default: sim]"),
    ] = None,
    api_base: options.ApiBase = None,
    as_json: options.AsJson = False,
) -> int:
    """Check a suite: gold recomputed, no leak of it, balance, floors. Exit 1 if a check fails."""
    from fleet_rlm.cli.audit import audit_command

    flags = {"model": model or "sim", "api_base": api_base}
    where = Path.cwd()
    return audit_command(where, suite, overrides or [], limit, attempts, flags, as_json=as_json)


@app.command()
def calibrate(
    labels: Annotated[
        Path,
        typer.Argument(help="JSON lines with query, reference, response and correct (true/false)."),
    ],
    judge: options.Judge = None,
    rubric: Annotated[str, typer.Option(help="A built-in rubric, or a text file.")] = "answer",
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 when the judge agrees less often.")
    ] = 0.9,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    as_json: options.AsJson = False,
) -> int:
    """Let a judge judge what people have judged, before its scores are believed."""
    from fleet_rlm.cli.calibrate import calibrate_command

    return calibrate_command(
        labels,
        judge=judge,
        rubric=rubric,
        min_agreement=min_agreement,
        api_base=api_base,
        price=price,
        as_json=as_json,
    )


@app.command()
def samples(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    failed: Annotated[bool, typer.Option("--failed", help="Those that scored below 1.")] = False,
    errored: Annotated[bool, typer.Option("--errored", help="Those without a score.")] = False,
    limited: Annotated[bool, typer.Option("--limited", help="Those that met a limit.")] = False,
    regressed: Annotated[
        Path | None,
        typer.Option(metavar="BASE", help="Those that scored higher in this other run."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    as_json: options.AsJson = False,
) -> int:
    """List the samples of a run: score, cost, how they ended, what was answered."""
    from fleet_rlm.cli.inspect import samples_command

    asked = {"failed": failed, "errored": errored, "limited": limited}
    which = [name for name, wanted in asked.items() if wanted]
    return samples_command(run, which=which, task=task, base=regressed, as_json=as_json)


@app.command()
def trace(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    sample: Annotated[str, typer.Argument(help="Id of a sample, or how it begins.")],
    epoch: Annotated[int, typer.Option(min=0, help="Which repetition.")] = 0,
    as_json: options.AsJson = False,
) -> int:
    """Show what one answer did: thoughts, code, output, sub-queries and children, with costs."""
    from fleet_rlm.cli.inspect import trace_command

    return trace_command(run, sample, epoch, as_json=as_json)


@app.command()
def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: options.AsJson = False,
) -> int:
    """Score the stored answers of a run again by the rules of now, without any model call."""
    from fleet_rlm.cli.rescore import rescore_command

    return rescore_command(run, as_json=as_json)


@app.command()
def estimate(
    suite: Annotated[str, typer.Argument(help="Name or path of a suite.")],
    program: options.Program = "rlm",
    model: options.Model = None,
    sub_model: options.SubModel = None,
    price: options.Price = None,
    sub_price: Annotated[
        str | None, typer.Option(metavar="IN/OUT", help="The same for the sub-model.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(metavar="GLOB", help="As in `run`.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in `run`.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many samples.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 1,
    sandbox: options.Sandbox = None,
    concurrency: options.Concurrency = None,
    as_json: options.AsJson = False,
) -> int:
    """Predict calls, tokens, dollars and time of a run, and what it can show; asks no model."""
    from fleet_rlm.cli.estimate import EstimateRequest, estimate_command

    return estimate_command(
        EstimateRequest(
            suite=suite,
            program=program,
            flags={
                "model": model,
                "sub_model": sub_model,
                "sandbox": sandbox,
                "concurrency": concurrency,
            },
            price=price,
            sub_price=sub_price,
            corpus=corpus,
            overrides=overrides or [],
            limit=limit,
            epochs=epochs,
            as_json=as_json,
        )
    )


experiments = make_app("Run experiments: several arms on several suites, one budget.")
app.add_typer(experiments, name="experiment")

Experiment = Annotated[
    str, typer.Argument(metavar="NAME", help="Name, or path of an experiment.toml.")
]
ReplacedModel = Annotated[
    str | None,
    typer.Option("-m", "--model", help="In place of every arm's models: sim for a dry run."),
]
Results = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the results go. [default: experiments/NAME]"),
]


@experiments.command("list")
def list_experiments(as_json: options.AsJson = False) -> int:
    """List the experiments of your project and the built-in ones."""
    from fleet_rlm.cli.experiment import list_command

    return list_command(Path.cwd(), as_json=as_json)


@experiments.command("run")
def run_experiment(
    name: Experiment,
    model: ReplacedModel = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many samples, each run.")
    ] = None,
    max_usd: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Cap on all runs together. [default: its own]"),
    ] = None,
    concurrency: options.Concurrency = None,
    workers: options.Workers = None,
    sandbox: options.Sandbox = None,
    min_coverage: options.MinCoverage = None,
    retry_errors: options.RetryErrors = False,
    no_mlflow: options.NoMlflow = False,
    display: options.Display = "auto",
    out: Results = None,
) -> int:
    """Run what an experiment owes, one run after the other, then write and print its results."""
    from fleet_rlm.cli.experiment import ExperimentRequest, run_command

    flags = {
        "concurrency": concurrency,
        "workers": workers,
        "sandbox": sandbox,
        "min_coverage": min_coverage,
        "mlflow": False if no_mlflow else None,
    }
    return run_command(
        ExperimentRequest(
            name=name,
            flags=flags,
            model=model,
            limit=limit,
            max_usd=max_usd,
            retry_errors=retry_errors,
            display=display,
            out=out,
        )
    )


@experiments.command("estimate")
def estimate_experiment(
    name: Experiment,
    model: ReplacedModel = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many samples, each run.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Predict what an experiment takes, run by run; asks no model."""
    from fleet_rlm.cli.experiment import estimate_command

    return estimate_command(name, model=model, limit=limit, as_json=as_json)


@experiments.command("report")
def report_experiment(name: Experiment, model: ReplacedModel = None, out: Results = None) -> int:
    """Write results.md and lock.json of an experiment anew, from the records of its runs alone."""
    from fleet_rlm.cli.experiment import report_command

    return report_command(name, model=model, out=out)


sandbox_app = make_app("Care for sandboxes on Modal.")
app.add_typer(sandbox_app, name="sandbox")
sandbox_app.command("gc")(sandbox_gc)


def main() -> None:
    """Entry point of `fleet-eval`."""
    run_app(app, "fleet-eval")


if __name__ == "__main__":
    main()
