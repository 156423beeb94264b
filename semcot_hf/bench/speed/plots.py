"""The plot of the speed report: latency of each method against batch size, prompt length and k."""

import io
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...evaluation.plots import COLOURS as EVALUATION_COLOURS
from .report import machine_line
from .settings import COMPILED, COMPILED_PARALLEL, FACTORS, METHOD_NAMES, SHARED, SPEED_METHODS

# The other colours of Okabe and Ito's palette, which is safe for colour-blind readers.
COLOURS = {
    "no_cot": EVALUATION_COLOURS["no_cot"],
    "cot": EVALUATION_COLOURS["cot"],
    "semcot_parallel": EVALUATION_COLOURS["semcot"],
    "semcot_sequential": "#E69F00",
    COMPILED: "#F0E442",
    COMPILED_PARALLEL: "#B8860B",
    SHARED: "#56B4E9",
    "coconut": "#CC79A7",
}
_SWEPT = ("batch", "prompt", "k")


def plot_speed(report: dict) -> bytes:
    """Return the plot as PNG, with one row of axes for each swept size."""
    by_size: dict[str, list[dict]] = {}
    for row in report["rows"]:
        by_size.setdefault(row["setting"]["size"], []).append(row)
    sizes = [size for size, rows in by_size.items() if any(_is_swept(rows, factor) for factor in _SWEPT)]
    sizes = sizes or list(by_size)[:1]
    figure = Figure(figsize=(11, 0.8 + 2.9 * len(sizes)), dpi=130, layout="constrained")
    grid = figure.subplots(len(sizes), len(_SWEPT), squeeze=False)
    for size, line in zip(sizes, grid, strict=True):
        rows = by_size[size]
        for factor, axes in zip(_SWEPT, line, strict=True):
            _sweep(axes, rows, factor)
            axes.set_xlabel(FACTORS[factor])
            axes.set_visible(_is_swept(rows, factor) or len(rows) == 1)
        line[0].set_ylabel("milliseconds for a batch")
        line[0].set_title(f"{size}, {machine_line(report, rows[0])}", loc="left", fontsize="medium")
    handles: dict[str, Artist] = {}
    for axes in grid.flat:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _is_swept(rows: Sequence[dict], factor: str) -> bool:
    """Whether a method was measured at two or more values of `factor`."""
    values: dict[str, set] = {}
    for row in rows:
        values.setdefault(row["setting"]["method"], set()).add(row["setting"][factor])
    return any(len(found) > 1 for found in values.values())


def _sweep(axes: Axes, rows: Sequence[dict], factor: str) -> None:
    """Draw each method's rows along `factor`, whose other settings are those of the method's first row."""
    values: set[int] = set()
    for method in SPEED_METHODS:
        own = [row for row in rows if row["setting"]["method"] == method]
        if not own:
            continue
        rest = _without(own[0], factor)
        points = sorted(
            (row["setting"][factor], 1000 * row["latency_s"]) for row in own if _without(row, factor) == rest
        )
        xs, ys = zip(*points, strict=True)
        if factor == "k" and method in ("no_cot", "cot"):
            axes.axhline(ys[0], color=COLOURS[method], linestyle="--", linewidth=1, label=METHOD_NAMES[method])
            continue
        axes.plot(xs, ys, "o-", color=COLOURS[method], markersize=4, label=METHOD_NAMES[method])
        values.update(xs)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    if factor == "k":
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xlim(left=-0.3)
    else:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def _without(row: dict, factor: str) -> dict:
    return {name: value for name, value in row["setting"].items() if name != factor}
