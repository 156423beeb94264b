"""The speed report for people: tables as markdown, and on the terminal."""

from collections.abc import Sequence

from rich.console import Console

from ...evaluation.report import duration
from ...tables import markdown_table, print_table
from .settings import FACTORS, METHOD_NAMES, SPEED_METHODS

_HOW = (
    "Random weights at the shapes' real sizes; answers of a fixed number of tokens; each row in a process of its own. "
    "The limit is the generator's bare passes and the host's own `generate` on a prompt as long as question and "
    "implicit tokens together; the strict limit replaces that `generate` by bare forwards with logits of the last "
    "position only. A thought of the Coconut-style loop counts as one more decode step in its limits. Method, limits "
    "and no CoT took turns; ratios are medians over the turns, each of neighbours. One factor at a time is varied "
    "around a centre, not the full grid. Memory is the peak of the row's process beyond what it had before the "
    "weights, over weights and caches. 'In two' is the host's prefill as one pass over the question and one over the "
    "implicit tokens and what follows them; 'side by side' what generator and prefill would then cost at least, were "
    "the first pass to run beside the generator's on hardware of its own, over what they cost in turn."
)


def row_line(row: dict) -> str:
    """The row's main figures in a line."""
    if "decode_step_s" in row:
        tokens, step = row["tokens_in_decode_steps"]["median"], duration(row["decode_step_s"])
        return f"decode step {step}, generator and tokens cost {tokens:.2f} of them"
    overhead = row["overhead"]["median"]
    return f"{duration(row['latency_s'])}, {row['answers_per_s']:.3g} answers/s, {overhead:.3f} x limit"


def report_tables(report: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables: title, header and rows of text each."""
    tables = []
    if report["targets"]:
        header = ["size", "figure", "measured", "target", ""]
        tables.append(("Targets", header, [_target_cells(target) for target in report["targets"]]))
    if report["slopes"]:
        header = ["size", "method", "against", "ms per unit", "ms at 0", "R²", "exponent", "growth"]
        tables.append(("Growth of the latency", header, [_slope_cells(slope) for slope in report["slopes"]]))
    header = ["method", "batch", "prompt", "k", "answer", "median", "p95", "answers/s", "tokens/s"]
    header += ["x limit", "x strict limit", "x no CoT", "memory", "turns"]
    for way in _ways(report["rows"]):
        rows = [row for row in report["rows"] if _way(row) == way]
        rows.sort(key=_order)
        tables.append((_title(report, rows[0]), header, [_row_cells(row) for row in rows]))
    if report["parts"]:
        header = [
            "size",
            "prompt",
            "k",
            "generator",
            "compiled",
            "prefill",
            "prefill with k",
            "in two",
            "side by side",
            "decode step",
        ]
        header += ["GB/s", "copy GB/s", "weights, M", "checkpoint, MB"]
        tables.append(("Raw parts", header, list(map(_part_cells, report["parts"]))))
    if report["not_run"]:
        tables.append(("Not run", ["row", "reason", "command"], list(map(_not_run_cells, report["not_run"]))))
    return tables


def markdown_report(report: dict) -> str:
    """The whole report as markdown."""
    lines = ["# Speed", "", _HOW, ""]
    for title, header, rows in report_tables(report):
        lines += [f"## {title}", "", markdown_table(header, rows), ""]
    lines += ["## Made with", ""]
    lines += [f"- `{command}`" for command in report["commands"]]
    for environment in report["environments"]:
        lines += ["- " + ", ".join(f"{name} {value}" for name, value in environment.items())]
    return "\n".join(lines) + "\n"


def print_report(report: dict, console: Console | None = None) -> None:
    """Print targets, growth and what was not run; the rows were printed as they came."""
    console = console or Console()
    for title, header, rows in report_tables(report):
        if title in ("Targets", "Growth of the latency", "Not run"):
            print_table(header, rows, no_wrap=("size", "growth", "reason"), title=title, console=console)


def _target_cells(target):
    sign, met = "≤" if target["at_most"] else "≥", "met" if target["met"] else "missed"
    figure = f"{target['figure']} ({target['note']})" if target["note"] else target["figure"]
    return [target["size"], figure, f"{target['measured']:.3f}", f"{sign} {target['target']}", met]


def _slope_cells(slope):
    setting = slope["setting"]
    return [
        setting["size"],
        METHOD_NAMES[setting["method"]],
        slope["factor"],
        f"{1000 * slope['slope']:.4g}",
        f"{1000 * slope['intercept']:.4g}",
        f"{slope['r2']:.3f}",
        f"{slope['exponent']:.2f}",
        slope["growth"],
    ]


def _row_cells(row):
    setting = row["setting"]
    cells = [METHOD_NAMES[setting["method"]], *(str(setting[name]) for name in FACTORS)]
    cells += [duration(row["latency_s"]), duration(row["p95_s"])]
    cells += [f"{row['answers_per_s']:.3g}", f"{row['tokens_per_s']:.3g}"]
    ratios = [row["overhead"], row["strict_overhead"], row["times_no_cot"]]
    cells += [f"{ratio['median']:.3f}" if ratio else "-" for ratio in ratios]
    return [*cells, f"{row['memory']['ratio']:.2f}", str(row["turns"])]


def _part_cells(row):
    setting, checkpoint = row["setting"], row["checkpoint_bytes"]
    names = ("generator_s", "compiled_generator_s", "prefill_s", "prefill_with_tokens_s", "prefill_in_two_s")
    times = [duration(row[name]) if name in row else "-" for name in names]
    speeds = [row["weights_bytes_per_token"] / row["decode_step_s"], row["copy_bytes_per_s"]]
    weights = [row["parameters"][name] / 1e6 for name in ("host", "generator")]
    return [
        setting["size"],
        str(setting["prompt"]),
        str(setting["k"]),
        *times,
        f"{row['side_by_side']['median']:.2f}",
        duration(row["decode_step_s"]),
        *(f"{speed / 1e9:.3g}" for speed in speeds),
        " + ".join(f"{number:.4g}" for number in weights),
        " of ".join(f"{size / 1e6:.4g}" for size in checkpoint.values()) if checkpoint else "-",
    ]


def _not_run_cells(row):
    setting = row["setting"]
    if setting is None:
        return [row["size"], row["reason"], f"`{row['command']}`"]
    name = METHOD_NAMES.get(setting["method"], setting["method"])
    values = ", ".join(f"{factor} {setting[factor]}" for factor in FACTORS)
    return [f"{setting['size']}, {name}: {values}", row["reason"], f"`{row['command']}`"]


def _way(row):
    """What a table's rows share."""
    return tuple(row["setting"][name] for name in ("size", "device", "dtype", "threads", "cache")) + (
        row["environment"],
    )


def _ways(rows: Sequence[dict]) -> list[tuple]:
    return list(dict.fromkeys(map(_way, rows)))


def _title(report, row):
    setting, machine = row["setting"], report["environments"][row["environment"]]
    device = machine["device"] if setting["device"].startswith("cuda") else machine["cpu"]
    threads = "" if setting["device"].startswith("cuda") else f", threads {setting['threads']}"
    return f"{setting['size']}: {device}, {setting['dtype']}{threads}, {setting['cache']} cache"


def _order(row):
    setting = row["setting"]
    return SPEED_METHODS.index(setting["method"]), *(setting[name] for name in FACTORS)
