"""Tiny rows of each benchmark's own schema, and files of them that shipped manifests are put on."""

from __future__ import annotations

import base64
import hashlib
import json
import tomllib
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

DATASETS = Path(__file__).parents[1] / "datasets"
SENTINEL = "GOLD-SENTINEL-7f3a"
"""Stands wherever upstream keeps gold beside what the program may see."""

LINES = "Date: Dec 12, 2022 || User: 63685 || Instance: What is a quark?\n" * 12


def oolong_rows() -> list[dict[str, Any]]:
    common = {
        "context_len": 1024,
        "dataset": "trec_coarse",
        "context_window_text": LINES,
        "context_window_text_with_labels": f"{LINES} || Label: {SENTINEL}",
        "task_group": "counting",
        "input_subset": "False",
        "num_labels": 6,
        "context_window_id": 0,
    }
    asked = [
        (
            "In the above data, which of the labels is most common? Labels: entity, human being."
            " Give the answer in the form 'Label: answer'.",
            "TASK_TYPE.MOST_FREQ",
            "ANSWER_TYPE.LABEL",
            "['human being']",
        ),
        ("How many lines?", "TASK_TYPE.NUMERIC_ONE_CLASS", "ANSWER_TYPE.NUMERIC", "[12]"),
        ("Which date?", "TASK_TYPE.MOST_FREQ", "ANSWER_TYPE.DATE", "[datetime.date(2022, 12, 12)]"),
    ]
    rows = [
        common | {"id": n, "question": q, "task": task, "answer_type": kind, "answer": gold}
        for n, (q, task, kind, gold) in enumerate(asked)
    ]
    far = common | {"context_len": 4096, "context_window_text": LINES * 4, "dataset": "agnews"}
    return [*rows, {**rows[0], **far, "id": 9}]


def longbench_rows() -> list[dict[str, Any]]:
    row = {
        "domain": "Code Repository Understanding",
        "sub_domain": "Code Repo QA",
        "difficulty": "easy",
        "length": "short",
        "question": "What does it do?",
        **{f"choice_{x}": f"choice {x}" for x in "ABCD"},
        "answer": "C",
        "context": "def f(): pass\n" * 30,
    }
    other = {"domain": "Single-Document QA", "context": "A tale.\n" * 30, "answer": "A"}
    return [row | {"_id": "a1"}, row | other | {"_id": "a2"}]


PROMPT = (
    "You will be given a graph as a list of edges.\nHere is an example: a -> b\n\n"
    "Here is the graph to operate on:\nThe graph has the following edges:\n"
    + "aa -> bb\nbb -> cc\n" * 40
    + "\n\nOperation:\nFind the parents of node bb.\n"
)


def graphwalks_rows() -> list[dict[str, Any]]:
    base = {"prompt_chars": len(PROMPT), "problem_type": "parents", "date_added": "2026"}
    return [
        base | {"prompt": PROMPT, "answer_nodes": ["aa"]},
        base | {"prompt": PROMPT.replace("node bb", "node aa"), "answer_nodes": []},
    ]


def mrcr_rows() -> list[dict[str, Any]]:
    talk = [
        {"role": "user", "content": "write a poem about tapirs"},
        {"role": "assistant", "content": "Tapirs walk by night. " * 20},
        {"role": "user", "content": "Prepend Xy9 to the 1st poem about tapirs."},
    ]
    return [
        {
            "prompt": json.dumps(talk),
            "answer": "Xy9" + "Tapirs walk by night. " * 20,
            "random_string_to_prepend": "Xy9",
            "n_needles": 2,
            "desired_msg_index": 1,
            "total_messages": 3,
            "n_chars": 500,
        }
    ]


def longmemeval_rows() -> list[dict[str, Any]]:
    session = [
        {"role": "user", "content": "I moved to Oslo.", "has_answer": True},
        {"role": "assistant", "content": "How nice!", "has_answer": False},
    ]
    row = {
        "question_type": "single-session-user",
        "question": "Where do I live?",
        "answer": "Oslo",
        "question_date": "2023/05/20",
        "haystack_session_ids": [SENTINEL],
        "haystack_dates": ["2023/05/01"],
        "haystack_sessions": [session],
        "answer_session_ids": [SENTINEL],
    }
    return [row | {"question_id": "q1"}, row | {"question_id": "q2_abs", "answer": "not said"}]


def infinitebench_rows() -> dict[str, list[dict[str, Any]]]:
    page = "The grass is green. " * 60
    choice = {"input": "Who?", "answer": ["Georgie"], "options": ["Ann", "Georgie", "Bo", "Cy"]}
    asked = {
        "passkey": {"input": "What is the pass key?", "answer": ["71432"], "options": []},
        "longbook_choice_eng": choice,
        "math_find": {"input": "Largest number?", "answer": ["88"], "options": []},
    }
    return {task: [{"id": 0, "context": page + task} | row] for task, row in asked.items()}


def close(text: str, canary: str) -> str:
    """As upstream closes it, written a second time."""
    key = cycle(hashlib.sha256(canary.encode()).digest())
    return base64.b64encode(bytes(a ^ b for a, b in zip(text.encode(), key, strict=False))).decode()


QUERY, ANSWER = "Which tapir crossed the Zwickau bridge?", "Ottokar the Elder"


def browsecomp_rows(canary: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    def doc(n: int) -> dict[str, str]:
        shown = {"docid": f"d{n}", "text": f"document {n}", "url": "http://x"}
        return {name: close(text, canary) for name, text in shown.items()}

    row = {
        "query_id": "7",
        "query": close(QUERY, canary),
        "answer": close(ANSWER, canary),
        "gold_docs": [doc(1)],
        "evidence_docs": [doc(1), doc(2)],
        "negative_docs": [doc(3)],
    }
    corpus = [
        {"docid": f"d{n}", "text": f"Document {n} tells of many things. " * 20, "url": "http://x"}
        for n in range(12)
    ]
    return [row], corpus


def babilong_rows() -> list[dict[str, Any]]:
    text = "John went to the hallway. " + "It rained. " * 90
    return [{"input": text, "question": "Where is John? ", "target": "hallway"}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """As Parquet, JSON lines, a JSON list or CSV, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def shipped(name: str) -> dict[str, Any]:
    """The manifest that ships, as TOML has it."""
    return tomllib.loads((DATASETS / f"{name}.toml").read_text())


def point_at(folder: Path, raw: dict[str, Any], path: str, texts: str | None = None) -> Path:
    """`raw` with files of one's own for sources, written to `folder`/datasets."""
    keep = {"config", "split", "format"}
    raw["source"] = {k: v for k, v in raw["source"].items() if k in keep} | {"path": path}
    if texts:
        kept = {k: v for k, v in raw["texts"]["source"].items() if k in keep}
        raw["texts"]["source"] = kept | {"path": texts}
    manifest = folder / "datasets" / f"{raw['dataset']['name']}.toml"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(to_toml(raw))
    return manifest


def inline(value: Any) -> str:
    """One value as TOML, a table in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def to_toml(raw: dict[str, Any], place: str = "") -> str:
    """Tables of plain values as TOML."""
    lines = [f"[{place}]"] if place else []
    for key, value in raw.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in raw.items():
        if isinstance(value, dict):
            lines.append(to_toml(value, f"{place}.{key}" if place else key))
    return "\n".join(lines) + "\n"
