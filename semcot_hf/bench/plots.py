"""The bench's plots: accuracy against latency (Pareto), and accuracy by difficulty."""

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..evaluation.plots import COLOURS, GREY, spread
from .summary import SOFT_WORDS


def plot_pareto(task) -> Figure:
    """Accuracy with its interval against latency in units of no CoT's; the line joins what nothing else beats."""
    figure, axes = _axes(f"{task['task']}: accuracy against time per question, {task['rows'][0]['n']} questions")
    rows = sorted(task["rows"], key=lambda row: row["latency_ratio"])
    heights = spread([100 * row["accuracy"] for row in rows], 3.4)
    for row, height in zip(rows, heights, strict=True):
        x, y = row["latency_ratio"], 100 * row["accuracy"]
        low, high = (100 * bound for bound in row["ci95"])
        colour = colour_of(row["method"])
        axes.errorbar(x, y, [[max(0, y - low)], [max(0, high - y)]], fmt="o", color=colour, markersize=6, capsize=3)
        axes.annotate(
            row["title"],
            (x, y),
            xytext=(1.02, height),
            textcoords=("axes fraction", "data"),
            fontsize="small",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6},
        )
    front = pareto_front([(row["latency_ratio"], 100 * row["accuracy"]) for row in rows])
    axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 1.3, 2, 3, 5, 10, 20]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time per question, in units of the host's answer at once (batch size 1)")
    return figure


def plot_by_difficulty(task) -> Figure:
    """Accuracy over the number of reasoning steps: the two ends, SemCoT (soft words), and the peers in grey."""
    figure, axes = _axes(f"{task['task']}: accuracy by number of reasoning steps")
    ends = []
    for row in task["rows"]:
        xs = [group["steps"] for group in row["by_steps"]]
        ys = [100 * group["accuracy"] for group in row["by_steps"]]
        named = row["method"] in ("no_cot", "cot", SOFT_WORDS)
        colour = colour_of(row["method"])
        axes.plot(xs, ys, "o-", color=colour, linewidth=2 if named else 0.8, markersize=5 if named else 2.5)
        ends.append((row, xs[-1], ys[-1], colour))
    heights = spread([end[2] for end in ends], 3.4)
    for (row, x, y, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            row["title"],
            (x, y),
            xytext=(1.02, height),
            textcoords=("axes fraction", "data"),
            fontsize="small",
            va="center",
            color=colour,
            annotation_clip=False,
        )
    axes.set_xticks(sorted({group["steps"] for row in task["rows"] for group in row["by_steps"]}))
    axes.set_xlabel("reasoning steps in the question")
    return figure


def pareto_front(points):
    """The points (cost, value) that no other one beats in both, by rising cost.

    >>> pareto_front([(1, 50), (2, 40), (3, 90)])
    [(1, 50), (3, 90)]
    """
    front = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def colour_of(method):
    """Orange and blue for the two ends, green for SemCoT (soft words), grey for all others."""
    return {**COLOURS, "semcot": GREY, SOFT_WORDS: COLOURS["semcot"]}.get(method, GREY)


def _axes(title):
    figure = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_ylabel("accuracy in %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes
