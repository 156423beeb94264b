"""Reports for people: markdown, and tables for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .controls import CONTROL_NAMES

METHOD_NAMES = {"no_cot": "no CoT", "cot": "explicit CoT", "semcot": "SemCoT"}


def percent(share: float) -> str:
    """A fraction as a percentage.

    >>> percent(0.954)
    '95.4 %'
    """
    return f"{100 * share:.1f} %"


def percent_interval(interval: list[float]) -> str:
    """Bounds given as fractions, in percent.

    >>> percent_interval([0.91, 0.985])
    '91.0–98.5'
    """
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def duration(seconds: float | None) -> str:
    """A time in the unit that reads well; a dash for one that was not measured.

    >>> duration(0.0123), duration(2.5), duration(None)
    ('12.3 ms', '2.50 s', '-')
    """
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def p_value(value: float) -> str:
    """A p-value as it is usually written.

    >>> p_value(0.0312), p_value(1e-9)
    ('0.031', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def report_tables(report: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables of a report: title, header and rows of text each."""
    tables = [
        (
            "Methods",
            ["method", "accuracy", "95 % interval", "median per query", "p95", "new tokens", "k"],
            [
                [
                    METHOD_NAMES[row["method"]],
                    percent(row["accuracy"]),
                    percent_interval(row["ci95"]),
                    duration(row["seconds_per_query"]),
                    duration(row["seconds_per_query_p95"]),
                    f"{row['new_tokens_per_query']:.1f}",
                    str(row["implicit_tokens"]),
                ]
                for row in report["rows"]
            ],
        )
    ]
    if report["controls"]:
        tables.append(
            (
                "Controls: SemCoT with other implicit tokens",
                ["control", "accuracy", "95 % interval", "p against SemCoT", "p against no CoT"],
                [
                    [
                        CONTROL_NAMES[row["control"]],
                        percent(row["accuracy"]),
                        percent_interval(row["ci95"]),
                        p_value(row["p_vs_semcot"]),
                        p_value(row["p_vs_no_cot"]),
                    ]
                    for row in report["controls"]
                ],
            )
        )
    if report["comparisons"]:
        tables.append(
            (
                "Comparisons, paired",
                ["", "difference in points", "95 % interval", "p"],
                [
                    [
                        f"{METHOD_NAMES[row['a']]} - {METHOD_NAMES[row['b']]}",
                        f"{100 * row['difference']:+.1f}",
                        f"{100 * row['ci95'][0]:+.1f} to {100 * row['ci95'][1]:+.1f}",
                        p_value(row["p"]),
                    ]
                    for row in report["comparisons"]
                ],
            )
        )
    if any(len(row["by_steps"]) > 1 for row in report["rows"]):
        counts = [(group["steps"], group["n"]) for group in report["rows"][0]["by_steps"]]
        tables.append(
            (
                "Accuracy by number of reasoning steps",
                ["steps", "questions", *(METHOD_NAMES[row["method"]] for row in report["rows"])],
                [
                    [str(steps), str(n), *(percent(row["by_steps"][i]["accuracy"]) for row in report["rows"])]
                    for i, (steps, n) in enumerate(counts)
                ],
            )
        )
    if report["by_k"]:
        tables.append(
            (
                "Accuracy by number of implicit tokens",
                ["implicit tokens", "accuracy", "95 % interval"],
                [
                    [str(row["implicit_tokens"]), percent(row["accuracy"]), percent_interval(row["ci95"])]
                    for row in report["by_k"]
                ],
            )
        )
    return tables


def markdown_report(report: dict) -> str:
    """The whole report as markdown."""
    of = f" on {report['dataset']}" if report["dataset"] else ""
    lines = [f"# Evaluation of {report['model']}{of}", ""]
    if report["verdict"]:
        lines += [f"**{report['verdict']}**", ""]
    if report["latency"]:
        size = next(iter(report["latency"]["methods"].values()))[0]["batch_size"]
        lines += [
            f"{report['rows'][0]['n']} questions, greedy decoding, answer type `{report['answer_type']}`. "
            f"Times are per query at batch size {size}, over {report['latency']['samples']} questions; ",
            "tokens are means.",
            "",
        ]
    for title, header, rows in report_tables(report):
        lines += [f"## {title}", "", _markdown_row(header), _markdown_row(["---"] * len(header))]
        lines += [*map(_markdown_row, rows), ""]
    unfinished = [row for row in report["rows"] if row["unfinished"]]
    for row in unfinished:
        lines += [
            f"{METHOD_NAMES[row['method']]}: {row['unfinished']} of {row['n']} answers were cut off at "
            f"{report['max_new_tokens']} new tokens.",
            "",
        ]
    lines += ["## Made with", "", f"`{report['command']}` (seed {report['seed']})", ""]
    lines += [f"- {name}: {value}" for name, value in report["environment"].items()]
    return "\n".join(lines) + "\n"


def print_report(report: dict, console: Console | None = None) -> None:
    """Print the tables and the verdict to the terminal."""
    console = console or Console()
    for title, header, rows in report_tables(report):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for column, name in enumerate(header):
            table.add_column(name, justify="left" if column == 0 else "right", no_wrap=column == 0)
        for row in rows:
            table.add_row(row[0], *(cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row[1:]))
        console.print(table)
    if report["verdict"]:
        console.print(report["verdict"])


def _markdown_row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
