"""How the dashboard shows runs at first: columns of the table, and charts of chosen runs."""

from __future__ import annotations

import json
from typing import Any

SHARE_KEY = "fleet-rlm"
"""Names the view in the dashboard's address, as `?viewStateShareKey=fleet-rlm`."""

TAG = f"mlflow.sharedViewState.{SHARE_KEY}"
"""The tag of an experiment in which the dashboard looks for the view of that name."""

_OWN = "fleet-rlm-overview"
_METRICS = ("score", "score_lo", "score_hi", "usd", "usd_per_sample", "coverage")
_PARAMS = ("program", "model.root", "model.sub", "sandbox.level")
_FOLDED = ("task", "length", "task_by_length", "role", "stop", "usage")


def view_state() -> str:
    """The tag's value, in the dashboard's own words (MLflow 3.17).

    What a dashboard of another version does not know it leaves out.
    """
    length = {
        "xAxisKey": "step",
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "log",
        "displayPoints": True,
        "lineSmoothness": 0,  # smoothed, three lengths would be drawn where no run was
        "useGlobalLineSmoothing": False,
    }
    charts = [
        _chart("SCATTER", "Score and dollars", xaxis=_axis("usd"), yaxis=_axis("score")),
        _chart("LINE", "Score by length of context", metricKey="score_by_length", **length),
        _chart("LINE", "Dollars by length of context", metricKey="usd_by_length", **length),
        _chart("BAR", "Score", metricKey="score"),
        _chart("BAR", "Dollars a sample", metricKey="usd_per_sample"),
        _chart(
            "PARALLEL",
            "Arms",
            selectedParams=["program", "model.root"],
            selectedMetrics=["usd", "score"],
        ),
    ]
    sections = [_section("Score, dollars, length", uuid=_OWN), _section("Model metrics")]
    return json.dumps(
        {
            "selectedColumns": [
                *(f"metrics.`{name}`" for name in _METRICS),
                *(f"params.`{name}`" for name in _PARAMS),
            ],
            "compareRunCharts": charts,
            "compareRunSections": [*sections, *(_section(name, display=False) for name in _FOLDED)],
            "isAccordionReordered": True,  # else the dashboard sorts the sections by name
        }
    )


def _chart(kind: str, title: str, **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{_OWN}-{title}",
        "displayName": title,
        "metricSectionId": _OWN,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
        **more,
    }


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _section(name: str, *, uuid: str = "", display: bool = True) -> dict[str, Any]:
    return {
        "uuid": uuid or f"{_OWN}-{name}",
        "name": name,
        "display": display,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }
