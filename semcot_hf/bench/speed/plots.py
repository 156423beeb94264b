"""The plot of the report: latency of each method against batch size, prompt length and k."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...evaluation.plots import COLOURS as EVALUATION_COLOURS
from .settings import COMPILED, COMPILED_PARALLEL, FACTORS, METHOD_NAMES, SHARED, SPEED_METHODS

# The rest of Okabe and Ito's colours, which colour-blind readers can tell apart.
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
    """The plot as PNG: a row of axes for each size that was swept, on its first way to be run."""
    sizes = list(dict.fromkeys(row["setting"]["size"] for row in report["rows"]))
    sizes = [size for size in sizes if any(_is_swept(report, size, factor) for factor in _SWEPT)] or sizes[:1]
    figure = Figure(figsize=(11, 0.8 + 2.9 * len(sizes)), dpi=130, layout="constrained")
    grid = figure.subplots(len(sizes), len(_SWEPT), squeeze=False)
    for size, line in zip(sizes, grid, strict=True):
        rows = [row for row in report["rows"] if row["setting"]["size"] == size]
        for factor, axes in zip(_SWEPT, line, strict=True):
            _sweep(axes, rows, factor)
            axes.set_xlabel(FACTORS[factor])
            axes.set_visible(_is_swept(report, size, factor) or len(rows) == 1)
        line[0].set_ylabel("milliseconds for a batch")
        line[0].set_title(_title(report, rows[0]), loc="left", fontsize="medium")
    handles = {}
    for axes in grid.flat:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _is_swept(report, size, factor):
    """Whether one method of `size` was run at two values of `factor` at least."""
    values = {}
    for row in report["rows"]:
        if row["setting"]["size"] == size:
            values.setdefault(row["setting"]["method"], set()).add(row["setting"][factor])
    return any(len(found) > 1 for found in values.values())


def _sweep(axes, rows, factor):
    """Each method's rows along `factor`, with everything else as in that size's first row of the method."""
    values = set()
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


def _without(row, factor):
    return {name: value for name, value in row["setting"].items() if name != factor}


def _title(report, row):
    setting, machine = row["setting"], report["environments"][row["environment"]]
    where = (
        machine["device"]
        if setting["device"].startswith("cuda")
        else f"{machine['cpu']}, threads {setting['threads']}"
    )
    return f"{setting['size']}, {setting['dtype']}, {where}"
