"""Official scorers against published results: real model outputs in, the published cells out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError
from fleet_rlm.scoring import babilong, infinitebench

INFINITEBENCH: dict[str, dict[str, float | None]] = {
    "gpt4": {
        "passkey": 100.0, "number_string": 100.0, "kv_retrieval": 89.0, "longbook_qa_eng": 22.44,
        "longbook_choice_eng": 67.25, "longdialogue_qa_eng": 8.5, "longbook_qa_chn": 25.96,
        "code_debug": 37.06, "code_run": 23.25, "math_find": 60.0,
    },
    "claude2": {
        "passkey": 97.8, "number_string": 98.14, "kv_retrieval": 65.4, "longbook_qa_eng": 11.97,
        "longbook_choice_eng": 62.88, "longdialogue_qa_eng": 46.5, "longbook_qa_chn": 9.64,
        "code_debug": None, "code_run": None, "math_find": 32.29,
    },
}  # fmt: skip
"""Model -> task -> published percentage; None where the table says "< 5%".

Source: Zhang et al. 2024, arXiv 2402.13718, table of OpenBMB/InfiniteBench 88b3daa. Summaries and
`math_calc` are left out: their prediction files are not redistributed with the others.
"""

_BELOW = 5.0  # what "< 5%" promises

_BABILONG_LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "512k", "1M")
BABILONG: dict[str, tuple[tuple[int, int], ...]] = {
    "qa1": (
        (1000, 1000), (999, 1000), (998, 1000), (995, 1000), (997, 1000), (913, 1000),
        (772, 1000), (75, 100), (66, 100), (61, 100), (57, 100),
    ),
    "qa2": (
        (982, 999), (946, 999), (927, 999), (841, 999), (686, 999), (590, 999),
        (497, 999), (44, 100), (31, 100), (35, 100), (28, 100),
    ),
    "qa3": (
        (869, 999), (739, 862), (806, 998), (699, 999), (548, 999), (449, 999),
        (297, 999), (27, 100), (21, 100), (21, 100), (30, 100),
    ),
    "qa4": (
        (999, 999), (993, 999), (992, 999), (973, 999), (967, 999), (877, 999),
        (788, 999), (74, 100), (62, 100), (74, 100), (71, 100),
    ),
    "qa5": (
        (973, 999), (971, 997), (957, 999), (941, 999), (916, 999), (892, 999),
        (823, 999), (77, 100), (62, 100), (67, 100), (67, 100),
    ),
}  # fmt: skip
"""Task -> (right, of) at each of `_BABILONG_LENGTHS`, gemini-3-flash-preview.

Source: result files of booydar/babilong 7a6efee, scored by that repository's own code.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One published figure and ours from the same outputs."""

    benchmark: str
    model: str
    task: str
    samples: int
    published: str
    ours: str
    equal: bool


def reproduce(folder: Path) -> list[Cell]:
    """Score every file of published outputs in `folder` and compare.

    Args:
        folder: holds, at any depth, `gpt4/preds_passkey.jsonl` and the like of InfiniteBench's
            `results/`, and `gemini-3-flash-preview/qa1_0k_*.csv` and the like of BABILong's.

    Raises:
        UsageError: no such file is there, or one cannot be read: nothing is half compared.
    """
    cells = [*_infinitebench(folder), *_babilong(folder)]
    if not cells:
        raise UsageError(
            f"No published outputs in {folder}",
            fix="git clone https://github.com/OpenBMB/InfiniteBench and pass it as --data",
        )
    return cells


def _infinitebench(folder: Path) -> Iterator[Cell]:
    for model, tasks in INFINITEBENCH.items():
        for task, published in tasks.items():
            for path in sorted(folder.rglob(f"{model}/preds_{task}.jsonl")):
                scores = [
                    infinitebench.RULES[task](row["prediction"], _listed(row["ground_truth"]))
                    for row in _rows(path, ("prediction", "ground_truth"))
                ]
                ours = round(100 * sum(scores) / len(scores), 2)
                yield Cell(
                    benchmark="infinitebench",
                    model=model,
                    task=task,
                    samples=len(scores),
                    published=f"< {_BELOW:g}" if published is None else f"{published:.2f}",
                    ours=f"{ours:.2f}",
                    equal=ours < _BELOW if published is None else ours == published,
                )


def _babilong(folder: Path) -> Iterator[Cell]:
    for task, results in BABILONG.items():
        for length, (right, of) in zip(_BABILONG_LENGTHS, results, strict=True):
            for path in sorted(folder.rglob(f"gemini-3-flash-preview/{task}_{length}_*.csv")):
                scores = [
                    babilong.label_score(row["output"], row["target"], row["question"], task)
                    for row in _rows(path, ("output", "target", "question"))
                ]
                ours = int(sum(scores))
                yield Cell(
                    benchmark="babilong",
                    model=path.parent.name,
                    task=f"{task} {length}",
                    samples=len(scores),
                    published=f"{right}/{of}",
                    ours=f"{ours}/{len(scores)}",
                    equal=(ours, len(scores)) == (right, of),
                )


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                rows = list(csv.DictReader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} is unreadable: {error}", fix="fetch the file again") from error
    missing = [name for name in columns if not rows or any(row.get(name) is None for row in rows)]
    if missing:
        raise UsageError(f"{path}: column {missing[0]!r} is missing", fix="fetch the file again")
    return rows


def _listed(gold: Any) -> list[infinitebench.Label]:
    return gold if isinstance(gold, list) else [gold]
