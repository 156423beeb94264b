"""Plots of a report: accuracy against latency, by number of steps, and by number of implicit tokens."""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..storage import write_atomically
from .controls import CONTROL_NAMES
from .escalation_report import WAY_METHODS
from .report import METHOD_NAMES, ORDER_NAMES, WAY_NAMES, Report, percent

# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLOURS = {
    "no_cot": "#D55E00",
    "cot": "#0072B2",
    "condensed": "#56B4E9",
    "semcot": "#009E73",
    "escalated": "#000000",
    "semcot_hard": "#8A9A00",
    "words": "#CC79A7",
    "generator": "#E69F00",
    "generator_no_cot": "#6F4E37",
}
GREY = "#6e6e6e"
# Of escalation's curves.
LINES = {"own": "-", "answer_probability": "--", "oracle": "-."}
LINE_COLOURS = {"own": "#009E73", "answer_probability": "#56B4E9", "oracle": GREY}


def save_plots(report: Report, folder: Path) -> list[Path]:
    """Write the plots that the report has figures for, as PNG, and return their paths."""
    figures = {}
    if report["latency"]:
        figures["accuracy_vs_latency.png"] = plot_accuracy_vs_latency(report)
    if any(len(row["by_steps"]) > 1 for row in report["rows"]):
        figures["accuracy_by_steps.png"] = plot_accuracy_by_steps(report)
    if len(report["by_k"]) > 1:
        figures["accuracy_by_k.png"] = plot_accuracy_by_k(report)
    if report.get("escalation"):
        figures["accuracy_by_threshold.png"] = plot_escalation(report)
    for name, figure in figures.items():
        image = io.BytesIO()
        FigureCanvasAgg(figure).print_png(image)
        write_atomically(folder / name, image.getvalue())
    return [folder / name for name in figures]


def plot_accuracy_vs_latency(report: Report) -> Figure:
    """Plot each method's accuracy with its interval against its median latency, and the best control as a line."""
    rows, times = report["rows"], [row["seconds_per_query"] for row in report["rows"]]
    unit, scale = ("ms", 1000) if max(times) < 1 else ("s", 1)
    figure, axes = _axes(
        report,
        "Accuracy against time per query",
        f"median time per query in {unit} (batch size "
        f"{next(iter(report['latency']['methods'].values()))[0]['batch_size']}, {report['environment']['device']})",
    )
    middle = (min(times) * max(times)) ** 0.5
    for left in (True, False):
        side = [row for row in rows if (row["seconds_per_query"] <= middle) == left]
        heights = spread([100 * row["accuracy"] for row in side], 11)
        for row, height in zip(side, heights, strict=True):
            x, y = scale * row["seconds_per_query"], 100 * row["accuracy"]
            low, high = (100 * bound for bound in row["ci95"])
            colour = COLOURS[row["method"]]
            axes.errorbar(x, y, [[y - low], [high - y]], fmt="o", color=colour, markersize=8, capsize=4)
            text = f"{METHOD_NAMES[row['method']]}\n{percent(row['accuracy'])}, {x:.3g} {unit}"
            _label(axes, text, (x, height), (12 if left else -12, 0), colour)
    if report["controls"]:
        # The first control, no tokens, is no CoT, which has its own point.
        best = max(report["controls"][1:], key=lambda row: row["accuracy"])
        axes.axhline(100 * best["accuracy"], color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            f"SemCoT's best control: {CONTROL_NAMES[best['control']]}, {percent(best['accuracy'])}",
            (0.99, 100 * best["accuracy"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize="small",
            color=GREY,
        )
    if max(times) > 3 * min(times):
        axes.set_xscale("log")
        axes.set_xlim(scale * min(times) / 1.6, scale * max(times) * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, scale * max(times) * 1.5)
    return figure


def plot_accuracy_by_steps(report: Report) -> Figure:
    """Plot each method's accuracy over the number of reasoning steps of the question, with 95 % intervals."""
    figure, axes = _axes(report, "Accuracy by number of reasoning steps", "reasoning steps in the question")
    heights = spread([100 * row["by_steps"][-1]["accuracy"] for row in report["rows"]], 5)
    for row, height in zip(report["rows"], heights, strict=True):
        colour, steps = COLOURS[row["method"]], [group["steps"] for group in row["by_steps"]]
        _line(axes, steps, row["by_steps"], colour)
        _label(axes, METHOD_NAMES[row["method"]], (steps[-1], height), (10, 0), colour)
    axes.set_xticks(steps)
    return figure


def plot_accuracy_by_k(report: Report) -> Figure:
    """Plot SemCoT's accuracy over the number of implicit tokens, with 95 % intervals."""
    figure, axes = _axes(report, "SemCoT's accuracy by number of implicit tokens", "implicit tokens k")
    counts = [row["implicit_tokens"] for row in report["by_k"]]
    _line(axes, counts, report["by_k"], COLOURS["semcot"])
    axes.set_xticks(counts)
    return figure


def plot_escalation(report: Report) -> Figure:
    """Plot accuracy against mean time over all thresholds, the fixed ways, the oracle and a random router."""
    escalation = report["escalation"]
    ways, point = escalation["ways"], escalation["point"]
    longest = ways["implicit"]["seconds"] + ways["explicit"]["seconds"]
    unit, scale = ("ms", 1000) if longest < 1 else ("s", 1)
    figure, axes = _axes(report, "Escalation to explicit reasoning, all thresholds", f"mean time per query in {unit}")
    for name, curve in escalation["curves"].items():
        xs, ys = ([factor * value for value in curve[key]] for key, factor in (("seconds", scale), ("accuracy", 100)))
        if name == "oracle":
            # Beyond its last question it gains nothing.
            xs, ys = [*xs, scale * longest], [*ys, ys[-1]]
        axes.plot(xs, ys, LINES[name], color=LINE_COLOURS[name], label=ORDER_NAMES[name])
    ends = [ways[name] for name in ("implicit", "explicit")]
    axes.plot(
        [scale * end["seconds"] for end in ends],
        [100 * end["accuracy"] for end in ends],
        ":",
        color=GREY,
        label="random router",
    )
    for name, way in ways.items():
        colour = COLOURS[WAY_METHODS[name]]
        axes.plot(
            scale * way["seconds"], 100 * way["accuracy"], "o", color=colour, markersize=8, label=WAY_NAMES[name]
        )
    if point:
        low, high = (100 * bound for bound in point["ci95"])
        y = 100 * point["accuracy"]
        axes.errorbar(
            scale * point["seconds"],
            y,
            [[y - low], [high - y]],
            fmt="D",
            color="black",
            capsize=4,
            label=f"threshold {point['threshold']:.3g}",
        )
    values = [100 * value for curve in escalation["curves"].values() for value in curve["accuracy"]]
    values += [100 * way["accuracy"] for way in ways.values()]
    axes.set_ylim(max(-2, min(values) - 8), min(104, max(values) + 8))
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", fontsize="small", frameon=False)
    return figure


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights for labels, moved apart where two are closer than `gap`, and at most 100.

    >>> spread([99, 50, 98], 5), spread([60, 61], 5)
    ([100, 50, 95], [60, 65])
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    ceiling = max([100, *heights])
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _axes(report: Report, title: str, x_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    about = f"{report['dataset'] or report['answer_type']}, {report['rows'][0]['n']} questions, 95 % intervals"
    axes.set_title(f"{title}\n{about}", loc="left", fontsize="medium")
    axes.set_xlabel(x_label)
    axes.set_ylabel("accuracy in %")
    axes.set_ylim(-2, 104)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], colour: str) -> None:
    axes.annotate(
        text,
        place,
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        va="center",
        color=colour,
        annotation_clip=False,
    )


def _line(axes: Axes, xs: Sequence[int], groups: Sequence[Mapping[str, Any]], colour: str) -> None:
    low, high = ([100 * group["ci95"][side] for group in groups] for side in (0, 1))
    axes.plot(xs, [100 * group["accuracy"] for group in groups], "o-", color=colour)
    axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
