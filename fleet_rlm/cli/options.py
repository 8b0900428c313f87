"""Options that several commands take, said once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Only the result, as JSON, on stdout.")]

Program = Annotated[
    str,
    typer.Option(
        "-p",
        "--program",
        help="rlm, agent, direct, truncate, bm25, mapreduce, router, blind, a bundle's folder, or"
        " FILE.py:FUNCTION.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="sim, or provider/name. [env: DSPY_LM_MODEL]"),
]
SubModel = Annotated[
    str | None, typer.Option(help="Model for sub-queries; the root model when absent.")
]
Judge = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Model that scores judged tasks; none of the others."),
]
ApiBase = Annotated[
    str | None, typer.Option(help="OpenAI-compatible endpoint. [env: DSPY_LM_API_BASE]")
]
Price = Annotated[
    str | None,
    typer.Option(metavar="IN/OUT", help="Dollars per million tokens, for unlisted models."),
]
Concurrency = Annotated[
    int | None, typer.Option("-j", "--concurrency", help="Samples in flight. [default: 8]")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes. [default: as many as pay, up to the cores]"),
]
Working = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Working time, a sample; waits for a rate limit do not count. [default: 600]",
    ),
]
Wall = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Wall time, a sample. [default: none]")
]
MinCoverage = Annotated[
    float | None,
    typer.Option(help="Exit 4 when a smaller share of samples has a score. [default: 0.8]"),
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Run samples again that ended in an error.")
]
Trace = Annotated[
    str | None,
    typer.Option(
        metavar="all|sampled|none",
        help="Answers that MLflow shows as traces: all, or some at random, the failed, best and"
        " worst. [default: sampled]",
    ),
]
NoMlflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not mirror the run to MLflow.")]
MaxUsd = Annotated[
    float | None, typer.Option(min=0, metavar="USD", help="Cap on the whole run, in dollars.")
]
MaxTokens = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Cap on the whole run, in tokens.")
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="Cap on the whole run, in running time."),
]
Sandbox = Annotated[
    str | None, typer.Option(help="auto, modal, or the name of a level. [default: auto]")
]
Display = Annotated[str, typer.Option(help="Progress: auto, live, plain, json or none.")]
