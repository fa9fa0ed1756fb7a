"""Curves and intervals as inline SVG, in the page's own colours: light, dark, printed."""

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from genesis_hf.report.curve import Curve
from genesis_hf.report.log import CURVES
from genesis_hf.report.material import Training

SERIES = 6
"""Colours of series, `--c0` … of the style sheet; from the seventh on they begin anew, with other lines."""

LINES = {"-": (1,), "--": (0.4, 0.2), ":": (0.15, 0.15), "-.": (0.45, 0.15, 0.15, 0.15)}
"""Lines of series, one after the other, and how long their strokes and gaps are in a key, rem."""

MOST_SERIES = SERIES * len(LINES)
"""Curves of a picture that can be told apart."""

SENTINELS = {"#010101": "currentColor", "#020202": "var(--line)", "#030303": "var(--bad)"} | {
    f"#0a0a{number:02x}": f"var(--c{number})" for number in range(SERIES)
}
"""Colours that matplotlib draws with, and what of the page stands in their place."""

INK, LINE, BAD = list(SENTINELS)[:3]

STEEP = ("loss", "eval_loss", "grad_norm")
"""Figures that may have a logarithmic axis."""

CALM = ("resumed",)
"""Events that are no trouble."""

MARKED = (*CALM, "skipped", "rollback", "out of memory", "not saved", "repeats", "displacement")
"""Events that are marked on the loss."""

FEW_MARKS, MOST_MARKS = 12, 200
"""Events of one kind up to which they are drawn over the whole height; and at all."""

MOST_GROUPS = 40
"""Scores that a picture of intervals shows; the table has all."""

INTERVAL = 1.96
"""Standard errors either way: 95 %."""


@dataclass
class Chart:
    """A picture and the words around it.

    Attributes:
        svg: trusted markup: matplotlib has escaped what is text in it.
        keys: colour (a CSS value) and name of what is drawn.
    """

    title: str
    svg: str
    keys: list[tuple[str, str]] = field(default_factory=list)


def color(number: int) -> str:
    """A series' colour for matplotlib."""
    return f"#0a0a{number % SERIES:02x}"


def line(number: int) -> str:
    """A series' line for matplotlib."""
    return list(LINES)[number // SERIES % len(LINES)]


def css(number: int) -> str:
    """Colour and line for the page, as a background."""
    own, place, stops = f"var(--c{number % SERIES})", 0.0, []
    for nth, length in enumerate(LINES[line(number)]):
        stops.append(f"{'#0000' if nth % 2 else own} {place:g}rem {place + length:g}rem")
        place = round(place + length, 2)
    return own if len(stops) == 1 else f"repeating-linear-gradient(90deg, {', '.join(stops)})"


# ---------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------


def training_charts(run: Training) -> list[Chart]:
    """The curves of a training that have at least two points."""
    charts = []
    for key, title in CURVES.items():
        curve = run.log.curves.get(key)
        if curve is not None and len(curve) > 1:
            title = "loss of the preferences, nats" if key == "loss" and run.log.preference else title
            charts.append(curve_chart(title, curve, run, key))
    held_out = {name: curve for name, curve in run.log.held_out.items() if len(curve) > 1}
    if held_out:
        charts.append(several_chart("held-out bits per byte", held_out, run.name, smooth=False))
    mixture = {name: curve for name, curve in run.log.mixture.items() if len(curve) > 1}
    if len(mixture) > 1:
        title = "realised mixture, of all tokens so far"
        charts.append(several_chart(title, mixture, run.name, smooth=False, shares=True))
    return charts


def curve_chart(title: str, curve: Curve, run: Training, key: str) -> Chart:
    """One figure: what was logged, thin, and its smoothed course; on the loss also the run's events."""
    smoothed = key != "learning_rate" and len(curve) > 20
    marks = {kind: run.event_steps[kind] for kind in MARKED if key == "loss" and kind in run.event_steps}

    def draw(axis: Any) -> None:
        if key in STEEP:
            scale_of(axis, [curve])
        if key == "learning_rate":
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axis.plot(*curve.line(), linewidth=0.8 if smoothed else 1.3, alpha=0.45 if smoothed else 1, color=color(0))
        if smoothed:
            axis.plot(*curve.smooth(), linewidth=1.5, color=color(0))
        for kind, times in marks.items():
            steps = [found.steps / found.count for found in times.bins()]
            look = {"color": INK, "linestyle": ":"} if kind in CALM else {"color": BAD, "linestyle": "-"}
            high = 1.0 if len(steps) <= FEW_MARKS else 0.08
            for step in steps[:: 1 + len(steps) // MOST_MARKS]:
                axis.axvline(step, ymax=high, linewidth=0.8, alpha=0.6, **look)

    keys = [(css(0), "logged (thin) and smoothed")] if smoothed else []
    keys += [("currentColor" if kind in CALM else "var(--bad)", kind) for kind in marks]
    return Chart(title, picture(draw, title, run.name), keys)


def several_chart(title: str, curves: dict[str, Curve], salt: str, smooth: bool = True, shares: bool = False) -> Chart:
    """Several curves of one figure; `shares` are drawn from 0 up."""
    if len(curves) > MOST_SERIES:
        title = f"{title}: the first {MOST_SERIES} of {len(curves):,}"
        curves = dict(list(curves.items())[:MOST_SERIES])

    def draw(axis: Any) -> None:
        if not shares:
            scale_of(axis, list(curves.values()))
        for number, curve in enumerate(curves.values()):
            few = {"marker": "o", "markersize": 2.5} if len(curve) <= 30 else {}
            points = curve.smooth() if smooth else curve.line()
            axis.plot(*points, linewidth=1.4, linestyle=line(number), color=color(number), **few)
        if shares:
            axis.set_ylim(0, 1.08 * max(found.high for curve in curves.values() for found in curve.bins()) or 1)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    return Chart(title, picture(draw, title, salt), [(css(n), name) for n, name in enumerate(curves)])


def phase_chart(phase: str, runs: Sequence[Training]) -> Chart | None:
    """The smoothed losses of the runs of a phase over each other; None below two."""
    curves = {run.name: run.log.curves["loss"] for run in runs if len(run.log.curves.get("loss", ())) > 1}
    return several_chart(f"{phase}: smoothed losses", curves, f"phase {phase}") if len(curves) > 1 else None


def scale_of(axis: Any, curves: Sequence[Curve]) -> None:
    """A logarithmic axis where a figure, positive throughout, changes threefold."""
    from matplotlib.ticker import LogLocator, NullLocator

    bins = [found for curve in curves for found in curve.bins()]
    low, high = min(found.low for found in bins), max(found.high for found in bins)
    if low > 0 and high > 3 * low:
        axis.set_yscale("log")
        wide = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
        subs = wide if high > 10 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")


def step_text(step: float, _: object = None) -> str:
    """`40k`: steps on an axis that a phone shows."""
    return f"{step / 1000:,g}k" if abs(step) >= 10_000 else f"{step:,g}"


# ---------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------


def score_charts(result: dict[str, Any]) -> list[Chart]:
    """Scores between 0 and 1, and bits per byte, as points on their 95 % intervals."""
    rows = [row for row in result["rows"] if math.isfinite(row["value"])]
    shares = [row for row in rows if row["higher_is_better"] and 0 <= row["value"] <= 1]
    bits = [row for row in rows if row["metric"] == "bits_per_byte"]
    panels = (("scores", shares, "chance"), ("bits per byte", bits, "yardstick"))
    return [score_chart(title, panel, result["models"], tick) for title, panel, tick in panels if panel]


def score_chart(title: str, rows: Sequence[dict[str, Any]], models: Sequence[str], tick: str) -> Chart:
    """A group of points for each task and metric, a point for each model that has it, its name above the group."""
    groups = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))[:MOST_GROUPS]
    pitch = len(models) + 1.6
    ticked = False

    def draw(axis: Any) -> None:
        nonlocal ticked
        for place, group in enumerate(groups):
            top = place * pitch
            mine = {row["model"]: row for row in rows if (row["task"], row["metric"]) == group}
            arrow = "↑" if next(iter(mine.values()))["higher_is_better"] else "↓"
            name = f"{group[0]} {group[1]} {arrow}" if group[1] != "bits_per_byte" else group[0]
            axis.annotate(name, (0, top - 0.15), xycoords=("axes fraction", "data"), fontsize=8, va="center", color=INK)
            for number, model in enumerate(models):
                row = mine.get(model)
                if row is None:
                    continue
                height, half = top + 1 + number, INTERVAL * (row["stderr"] or 0.0)
                look = {"linestyle": line(number), "color": color(number)}
                axis.plot([row["value"] - half, row["value"] + half], [height] * 2, linewidth=1.6, **look)
                axis.plot([row["value"]], [height], "o", markersize=4, color=color(number))
            level = reference_level(next(iter(mine.values())))
            if level is not None:
                ticked = True
                ends = [top + 0.5, top + len(models) + 0.5]
                axis.plot([level] * 2, ends, linewidth=1.2, linestyle=(0, (2, 2)), color=INK)
        axis.set_ylim(len(groups) * pitch - 0.6, -1)
        axis.set_yticks([])

    svg = picture(draw, title, "scores", height=0.7 + 0.145 * pitch * len(groups), label="95 % intervals")
    keys = [(css(number), model) for number, model in enumerate(models)]
    more = len(set((row["task"], row["metric"]) for row in rows)) - len(groups)
    if ticked:
        keys.append(("currentColor", tick))
    return Chart(title + (f", the first {MOST_GROUPS} of {MOST_GROUPS + more}" if more else ""), svg, keys)


def reference_level(row: dict[str, Any]) -> float | None:
    """Chance, or the yardstick's value."""
    yardstick = row.get("yardstick")
    return row["chance"] if row.get("chance") is not None else yardstick["value"] if yardstick else None


# ---------------------------------------------------------------------------------------------------------
# SVG
# ---------------------------------------------------------------------------------------------------------


def picture(draw: Callable[[Any], None], title: str, salt: str, height: float = 2.1, label: str = "step") -> str:
    """What `draw` puts on an axis, as SVG that is drawn for a phone's width.

    Args:
        title: read out in the picture's place. salt: makes its ids other than those of the page's other pictures.
    """
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": repr(f"{salt} {title}"),
        "text.parse_math": False,
        "font.size": 8,
        "axes.formatter.use_mathtext": False,
        "path.simplify_threshold": 0.5,
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": INK,
        "axes.edgecolor": LINE,
        "grid.color": LINE,
    }
    with rc_context(style), np.errstate(all="ignore"):
        figure = Figure(figsize=(3.9, height), layout="constrained")
        axis = figure.subplots()
        if label == "step":
            axis.xaxis.set_major_formatter(step_text)
        draw(axis)
        axis.set_xlabel(label)
        axis.grid(linewidth=0.6)
        axis.tick_params(color=LINE)
        axis.spines[["top", "right", "left"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(buffer.getvalue(), title)


def themed(svg: str, title: str) -> str:
    """Matplotlib's SVG as part of a page: its colours and font, no size of its own, no style for the whole page."""
    svg = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    head = head.replace("<svg", f'<svg class="chart" role="img" aria-label="{html.escape(title)}"', 1)
    body = re.sub(r' id="(?:figure|axes|patch|matplotlib|xtick|ytick|line2d|text)[\w.]*"', "", body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), body)
    return head + ">" + re.sub("|".join(SENTINELS), lambda match: SENTINELS[match[0]], body)
