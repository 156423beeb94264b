"""The plots of the bench: accuracy against latency (Pareto), and accuracy by difficulty."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..evaluation.plots import COLOURS, GREY, spread
from .catalogue import SOFT_WORDS

# The minimum distance of two labels, in percentage points.
_LABEL_GAP = 3.4


def plot_pareto(task: dict) -> Figure:
    """Plot accuracy with its interval against latency relative to no CoT; a dashed line joins the Pareto front."""
    figure, axes = _axes(f"{task['task']}: accuracy against time per question, {task['rows'][0]['n']} questions")
    rows = sorted(task["rows"], key=lambda row: row["latency_ratio"])
    points = [(row["latency_ratio"], 100 * row["accuracy"]) for row in rows]
    for row, (x, y) in zip(rows, points, strict=True):
        low, high = (100 * bound for bound in row["ci95"])
        errors = [[max(0, y - low)], [max(0, high - y)]]
        axes.errorbar(x, y, errors, fmt="o", color=colour_of(row["method"]), markersize=6, capsize=3)
    _label(axes, rows, points, arrow={"arrowstyle": "-", "linewidth": 0.4, "alpha": 0.6})
    axes.step(
        *zip(*pareto_front(points), strict=True), where="post", color=GREY, linewidth=1, linestyle="--", zorder=0
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 1.3, 2, 3, 5, 10, 20]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time per question, relative to the host answering at once (batch size 1)")
    return figure


def plot_by_difficulty(task: dict) -> Figure:
    """Plot accuracy over the number of reasoning steps; no CoT, explicit CoT and SemCoT (soft words) stand out."""
    figure, axes = _axes(f"{task['task']}: accuracy by number of reasoning steps")
    ends = []
    for row in task["rows"]:
        xs = [group["steps"] for group in row["by_steps"]]
        ys = [100 * group["accuracy"] for group in row["by_steps"]]
        named = row["method"] in ("no_cot", "cot", SOFT_WORDS)
        size = {"linewidth": 2, "markersize": 5} if named else {"linewidth": 0.8, "markersize": 2.5}
        axes.plot(xs, ys, "o-", color=colour_of(row["method"]), **size)
        ends.append((xs[-1], ys[-1]))
    _label(axes, task["rows"], ends)
    axes.set_xticks(sorted({group["steps"] for row in task["rows"] for group in row["by_steps"]}))
    axes.set_xlabel("reasoning steps in the question")
    return figure


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, value) that no other point beats in both, by ascending cost.

    >>> pareto_front([(1, 50), (2, 40), (3, 90)])
    [(1, 50), (3, 90)]
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def colour_of(method: str) -> str:
    """Return a colour for no CoT, for explicit CoT and for SemCoT (soft words), and grey for other methods."""
    return {**COLOURS, "semcot": GREY, SOFT_WORDS: COLOURS["semcot"]}.get(method, GREY)


def _label(axes: Axes, rows: Sequence[dict], points: Sequence[tuple[float, float]], arrow: dict | None = None) -> None:
    """Write each row's title to the right of the axes, at about the height of its point."""
    heights = spread([y for _, y in points], _LABEL_GAP)
    for row, point, height in zip(rows, points, heights, strict=True):
        colour = colour_of(row["method"])
        axes.annotate(
            row["title"],
            point,
            xytext=(1.02, height),
            textcoords=("axes fraction", "data"),
            fontsize="small",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops=arrow and {**arrow, "color": colour},
        )


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_ylabel("accuracy in %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes
