"""The speed report: tables as Markdown, and on the terminal."""

from rich.console import Console

from ...evaluation.report import duration
from ...tables import markdown_table, print_table
from .settings import FACTORS, METHOD_NAMES, SPEED_METHODS

_NOTES = (
    "Random weights in real shapes; answers of a fixed number of tokens; each row in a process of its own. The limit "
    "is the generator's bare passes plus the host's own `generate` on a prompt as long as question and implicit "
    "tokens together; the strict limit replaces that `generate` by bare forwards with logits of the last position "
    "only. A latent of the Coconut-style loop counts as one more decode step in its limits. Method, limits and no CoT "
    "take turns; ratios are medians over the turns. One factor at a time is varied around a centre. Memory is the "
    "peak of the row's process above its level before the weights, relative to weights and caches. 'In two' is the "
    "host's prefill as one pass over the question and one over implicit tokens and answer prompt; 'side by side' is "
    "what generator and prefill would take if the first of these ran at the same time as the generator on other "
    "hardware, relative to their sum. 'Tokens / step' is the cost of making and reading the k tokens in decode steps "
    "of the host, in parentheses with the generator compiled; 'sequential' is the time of sequential over parallel "
    "tokens, end to end."
)
_TITLES = {"growth": "Growth of the latency", "parts": "Raw parts", "not_run": "Not run"}
Tables = list[tuple[str, list[str], list[list[str]]]]


def row_line(row: dict) -> str:
    """Return the row's main figures in one line."""
    if "decode_step_s" in row:
        tokens, step = row["tokens_in_decode_steps"]["median"], duration(row["decode_step_s"])
        return f"decode step {step}, generator and tokens cost {tokens:.2f} of them"
    overhead = row["overhead"]["median"]
    return f"{duration(row['latency_s'])}, {row['answers_per_s']:.3g} answers/s, {overhead:.3f} x limit"


def report_tables(report: dict) -> Tables:
    """Return the tables: title, header and rows of text."""
    tables: Tables = []
    if report["slopes"]:
        header = ["size", "method", "against", "ms per unit", "ms at 0", "R²", "exponent", "growth"]
        tables.append((_TITLES["growth"], header, [_slope_cells(slope) for slope in report["slopes"]]))
    header = ["method", "batch", "prompt", "k", "answer", "median", "p95", "answers/s", "tokens/s"]
    header += ["x limit", "x strict limit", "x no CoT", "memory", "turns"]
    # A table for each machine and way to run a size.
    for way in dict.fromkeys(map(_way, report["rows"])):
        rows = sorted((row for row in report["rows"] if _way(row) == way), key=_order)
        title = f"{rows[0]['setting']['size']}: {machine_line(report, rows[0])}, {rows[0]['setting']['cache']} cache"
        tables.append((title, header, [_row_cells(row) for row in rows]))
    if report["parts"]:
        header = ["size", "prompt", "k", "generator", "compiled", "prefill", "prefill with k", "in two"]
        header += ["side by side", "decode step", "tokens / step", "sequential", "GB/s", "copy GB/s", "weights, M"]
        tables.append((_TITLES["parts"], [*header, "checkpoint, MB"], list(map(_part_cells, report["parts"]))))
    if report["not_run"]:
        header = ["row", "reason", "command"]
        tables.append((_TITLES["not_run"], header, list(map(_not_run_cells, report["not_run"]))))
    return tables


def markdown_report(report: dict) -> str:
    """Format the whole report as Markdown."""
    lines = ["# Speed", "", _NOTES, ""]
    for title, header, rows in report_tables(report):
        lines += [f"## {title}", "", markdown_table(header, rows), ""]
    lines += ["## Made with", "", *(f"- `{command}`" for command in report["commands"])]
    for environment in report["environments"]:
        lines += ["- " + ", ".join(f"{name} {value}" for name, value in environment.items())]
    return "\n".join(lines) + "\n"


def print_report(report: dict, console: Console | None = None) -> None:
    """Print growth and what was not run; the rows are printed during the run."""
    for title, header, rows in report_tables(report):
        if title in (_TITLES["growth"], _TITLES["not_run"]):
            print_table(header, rows, no_wrap=("size", "growth", "reason"), title=title, console=console)


def machine_line(report: dict, row: dict) -> str:
    """Return the device on which a row was measured, the dtype, and the threads of a CPU."""
    setting, machine = row["setting"], report["environments"][row["environment"]]
    if setting["device"].startswith("cuda"):
        return f"{machine['device']}, {setting['dtype']}"
    return f"{machine['cpu']}, {setting['dtype']}, threads {setting['threads']}"


def _slope_cells(slope: dict) -> list[str]:
    return [
        slope["setting"]["size"],
        METHOD_NAMES[slope["setting"]["method"]],
        slope["factor"],
        f"{1000 * slope['slope']:.4g}",
        f"{1000 * slope['intercept']:.4g}",
        f"{slope['r2']:.3f}",
        f"{slope['exponent']:.2f}",
        slope["growth"],
    ]


def _row_cells(row: dict) -> list[str]:
    setting = row["setting"]
    cells = [METHOD_NAMES[setting["method"]], *(str(setting[name]) for name in FACTORS)]
    cells += [duration(row["latency_s"]), duration(row["p95_s"])]
    cells += [f"{row['answers_per_s']:.3g}", f"{row['tokens_per_s']:.3g}"]
    ratios = [row["overhead"], row["strict_overhead"], row["times_no_cot"]]
    cells += [f"{ratio['median']:.3f}" if ratio else "-" for ratio in ratios]
    return [*cells, f"{row['memory']['ratio']:.2f}", str(row["turns"])]


def _part_cells(row: dict) -> list[str]:
    setting, checkpoint = row["setting"], row["checkpoint_bytes"]
    names = ("generator_s", "compiled_generator_s", "prefill_s", "prefill_with_tokens_s", "prefill_in_two_s")
    speeds = [row["weights_bytes_per_token"] / row["decode_step_s"], row["copy_bytes_per_s"]]
    weights = [row["parameters"][name] / 1e6 for name in ("host", "generator")]
    compiled = row.get("compiled_tokens_in_decode_steps")
    return [
        *(str(setting[name]) for name in ("size", "prompt", "k")),
        *(duration(row.get(name)) for name in names),
        f"{row['side_by_side']['median']:.2f}",
        duration(row["decode_step_s"]),
        f"{row['tokens_in_decode_steps']['median']:.2f}" + (f" ({compiled['median']:.2f})" if compiled else ""),
        f"{row['sequential_over_parallel']['median']:.2f} at k = {row['sequential_k']}",
        *(f"{speed / 1e9:.3g}" for speed in speeds),
        " + ".join(f"{number:.4g}" for number in weights),
        " of ".join(f"{size / 1e6:.4g}" for size in checkpoint.values()) if checkpoint else "-",
    ]


def _not_run_cells(row: dict) -> list[str]:
    setting = row["setting"]
    if setting is None:
        return [row["size"], row["reason"], f"`{row['command']}`"]
    name = METHOD_NAMES.get(setting["method"], setting["method"])
    values = ", ".join(f"{factor} {setting[factor]}" for factor in FACTORS)
    return [f"{setting['size']}, {name}: {values}", row["reason"], f"`{row['command']}`"]


def _way(row: dict) -> tuple:
    names = ("size", "device", "dtype", "threads", "cache")
    return *(row["setting"][name] for name in names), row["environment"]


def _order(row: dict) -> tuple:
    setting = row["setting"]
    return SPEED_METHODS.index(setting["method"]), *(setting[name] for name in FACTORS)
