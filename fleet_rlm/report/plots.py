"""The plots of a report as Vega-Lite specifications: what is drawn, of arms as compare gives them.

One specification is drawn in the page, by the script inlined there, and as PNG or SVG for a paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fleet_rlm.runner.compare import ALL
from fleet_rlm.runner.outcomes import Outcomes
from fleet_rlm.statistics.clustered import Interval

Spec = dict[str, Any]
Arms = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which people with colour-blindness tell apart: without the light yellow,
# and with a blue that can be seen on dark grounds too.
COLOURS = ("#1b87d1", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#8c6bb1")
SHAPES = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right",
    "triangle-left",
)  # fmt: skip

QUANTILES = 60
"""Points of a drawn distribution."""


def plots(arms: Arms, outcomes: Sequence[Outcomes]) -> dict[str, Spec]:
    """Name -> plot; one that has nothing to show with its uncertainty is left out.

    Args:
        arms: as `RunComparison.arms`.
        outcomes: of each arm.
    """
    names = [arm["name"] for arm in arms]
    drawn = {
        "score-by-length": score_by_length(arms, ALL) or score_by_length(arms, None),
        **{f"score-by-length-{task}": score_by_length(arms, task) for task in tasks(arms)},
        "score-by-cost": score_by_cost(arms),
        "latency": distribution(names, [o.seconds for o in outcomes], "seconds of a sample"),
        "cost": distribution(names, [o.usd for o in outcomes], "dollars of a sample"),
        "stops": stops(arms),
    }
    return {name: spec for name, spec in drawn.items() if spec is not None}


def tasks(arms: Arms) -> list[str]:
    """Tasks that have a curve of their own beside that of all."""
    named = {point["task"] for arm in arms for point in arm["curve"]}
    return sorted(named - {ALL}) if ALL in named else []


def score_by_length(arms: Arms, task: str | None) -> Spec | None:
    """Score against context length, an arm a line, with 95 % intervals; of one task if named.

    Lengths with one context only have no interval and are not drawn.
    """
    points = [
        {
            "arm": arm["name"],
            "length": point["length"],
            "score": point["score"],
            "low": max(0.0, point["ci"][0]),
            "high": min(1.0, point["ci"][1]),
            "n": point["n"],
            "contexts": point["contexts"],
            "interval": _words(point["ci"]),
        }
        for arm in arms
        for point in arm["curve"]
        if point["ci"] is not None and task in (None, point["task"])
    ]
    lengths = sorted({point["length"] for point in points})
    if not points:
        return None
    label = "datum.value >= 1e6 ? format(datum.value/1e6, '~r')+'M' : datum.value >= 1000 ?"
    x = {
        "field": "length",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 24},
        "axis": {
            "title": "context length, tokens",
            "values": lengths,
            "labelExpr": f"{label} format(datum.value/1000, '~r')+'k' : datum.label",
            "grid": False,
        },
    }
    # Beside each other, so that equal scores do not hide each other.
    shift = {"field": "arm", "type": "nominal", "sort": [arm["name"] for arm in arms]}
    tooltip = [_shown(name) for name in ("arm", "length", "score", "interval", "n", "contexts")]
    interval = {"x": x, "y": _score("low"), "y2": {"field": "high"}, "tooltip": tooltip}
    return _layered(
        points,
        arms,
        [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": _score()}},
            {"mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.65}, "encoding": interval},
            {
                "mark": {"type": "point", "size": 64, "filled": True, "opacity": 1},
                "encoding": {"x": x, "y": _score(), "tooltip": tooltip},
            },
        ],
        # Arms share lengths exactly: a little shift in log length keeps intervals apart.
        shift=shift,
    )


def score_by_cost(arms: Arms) -> Spec | None:
    """Score against dollars a sample, with the frontier of arms that no other arm beats in both."""
    points = [
        {
            "arm": arm["name"],
            "usd": arm["cost"]["usd"],
            "score": arm["score"],
            "low": max(0.0, arm["ci"][0]),
            "high": min(1.0, arm["ci"][1]),
            "interval": _words(arm["ci"]),
            "n": arm["samples"],
        }
        for arm in arms
        if arm["score"] is not None and arm["ci"] is not None
    ]
    if not points:
        return None
    x = {
        "field": "usd",
        "type": "quantitative",
        "scale": {"zero": True, "nice": True},
        "axis": {"title": "dollars a sample", "format": "$~r", "tickCount": 6},
    }
    tooltip = [_shown(name) for name in ("arm", "usd", "score", "interval", "n")]
    front = sorted(frontier(points), key=lambda point: point["usd"])
    return _layered(
        points,
        arms,
        [
            {
                "data": {"values": front},
                "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 3],
                         "color": "gray"},
                "encoding": {"x": x, "y": _score(), "color": {"value": "gray"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.65},
                "encoding": {"x": x, "y": _score("low"), "y2": {"field": "high"},
                             "tooltip": tooltip},
            },
            {
                "mark": {"type": "point", "size": 90, "filled": True, "opacity": 1},
                "encoding": {"x": x, "y": _score(), "tooltip": tooltip},
            },
        ],
    )  # fmt: skip


def frontier(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Points that no other beats in score and dollars at once."""
    return [
        one
        for one in points
        if not any(
            other["usd"] <= one["usd"]
            and other["score"] >= one["score"]
            and (other["usd"], other["score"]) != (one["usd"], one["score"])
            for other in points
        )
    ]


def distribution(names: Sequence[str], values: Sequence[Any], title: str) -> Spec | None:
    """Share of samples at or below each value, an arm a line."""
    shares = np.linspace(0, 1, QUANTILES + 1)
    points = [
        {"arm": name, "value": float(value), "share": float(share)}
        for name, own in zip(names, values, strict=True)
        if len(own) > 1
        for share, value in zip(shares, np.quantile(own, shares), strict=True)
    ]
    if not points:
        return None
    x = {"field": "value", "type": "quantitative", "axis": {"title": title, "tickCount": 6}}
    y = {"field": "share", "type": "quantitative", "axis": {"title": "share of samples",
         "format": "%"}}  # fmt: skip
    tooltip = [_shown("arm"), {"field": "value", "title": title, "format": ".4~r"},
               {"field": "share", "title": "share of samples", "format": ".0%"}]  # fmt: skip
    encoding = {"x": x, "y": y, "tooltip": tooltip}
    arms = [{"name": name} for name in names]
    return _layered(points, arms, [
        {"mark": {"type": "line", "strokeWidth": 2, "interpolate": "step-after"},
         "encoding": encoding},
    ])  # fmt: skip


def stops(arms: Arms) -> Spec | None:
    """How samples ended, an arm a bar."""
    points = [
        {"arm": arm["name"], "stop": stop, "count": count,
         "share": count / sum(arm["stops"].values())}
        for arm in arms for stop, count in arm["stops"].items()
    ]  # fmt: skip
    if not points:
        return None
    return {
        "data": {"values": points},
        "height": {"step": 28},
        "mark": {"type": "bar", "height": 18},
        "encoding": {
            "y": {"field": "arm", "type": "nominal", "axis": {"title": None, "labelLimit": 170},
                  "sort": [arm["name"] for arm in arms]},
            "x": {"field": "share", "type": "quantitative", "stack": "normalize",
                  "axis": {"title": "share of samples", "format": "%"}},
            "color": {"field": "stop", "type": "nominal", "scale": {"range": list(COLOURS)},
                      "legend": _LEGEND | {"title": "ended"}},
            "tooltip": [_shown("arm"), {"field": "stop", "title": "ended"}, _shown("count"),
                        {"field": "share", "format": ".1%"}],
        },
    }  # fmt: skip


_LEGEND: Spec = {"title": None, "orient": "bottom", "columns": 3, "labelLimit": 220,
                 "symbolLimit": 40}  # fmt: skip


def _layered(
    points: Sequence[Mapping[str, Any]],
    arms: Arms,
    layers: Sequence[Spec],
    shift: Spec | None = None,
) -> Spec:
    names = [arm["name"] for arm in arms]
    colour = {"field": "arm", "type": "nominal", "sort": names, "legend": _LEGEND,
              "scale": {"domain": names, "range": _cycle(COLOURS, len(names))}}  # fmt: skip
    shape = {"field": "arm", "type": "nominal", "sort": names, "legend": _LEGEND,
             "scale": {"domain": names, "range": _cycle(SHAPES, len(names))}}  # fmt: skip
    done = []
    for layer in layers:
        encoding = {"color": colour} | layer["encoding"]
        if layer["mark"]["type"] == "point":
            encoding |= {"shape": shape}
        done.append({**layer, "encoding": encoding})
    spec: Spec = {"data": {"values": list(points)}, "height": 300, "layer": done}
    if shift is not None and len(names) > 1:
        middle = (len(names) - 1) / 2
        place = " : ".join(
            f"datum.arm === {_quoted(name)} ? {1 + 0.03 * (n - middle):.4f}"
            for n, name in enumerate(names)
        )
        spec["transform"] = [{"calculate": f"datum.length * ({place} : 1)", "as": "at"}]
        for layer in done:
            layer["encoding"]["x"] = {**layer["encoding"]["x"], "field": "at"}
    return spec


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[n % len(values)] for n in range(count)]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _score(field: str = "score") -> Spec:
    return {"field": field, "type": "quantitative", "scale": {"domain": [0, 1]},
            "axis": {"title": "score, 95 % interval"}}  # fmt: skip


def _shown(field: str) -> Spec:
    form = {"score": ".3f", "usd": "$.4f", "length": ",", "n": ",", "contexts": ","}.get(field)
    return {"field": field} | ({"format": form} if form else {})


def _words(ci: Sequence[float]) -> str:
    if not Interval(*ci).has_width:
        return "all contexts equal: no width"
    return f"{max(0.0, ci[0]):.3f} to {min(1.0, ci[1]):.3f}"


def render(spec: Spec, form: str, title: str) -> bytes:
    """A plot as a file for a paper, black on white.

    Args:
        spec: of the plot.
        form: "png", at 2 pixels a point, or "svg".
        title: above it; says what is simulated.
    """
    import vl_convert

    width = spec | {"width": 520, "title": title, "background": "white"}
    if form == "png":
        return bytes(vl_convert.vegalite_to_png(width, scale=2))
    return str(vl_convert.vegalite_to_svg(width)).encode()


def notes(arms: Arms) -> Iterator[str]:
    """What the plots leave out or cannot show, in words."""
    alone = sum(point["ci"] is None for arm in arms for point in arm["curve"])
    if alone:
        yield (f"{alone} points of one context each have no interval and are not drawn.")
    equal = sum(
        point["ci"] is not None and not Interval(*point["ci"]).has_width
        for arm in arms
        for point in arm["curve"]
    )
    if equal:
        yield (
            f"{equal} points have intervals without width: their contexts all show the same, which"
            " proves nothing of contexts that were not asked."
        )
