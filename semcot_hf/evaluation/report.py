"""Reports for people: markdown, and tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..tables import markdown_table, print_table
from .controls import CONTROL_NAMES

METHOD_NAMES = {
    "no_cot": "no CoT",
    "cot": "explicit CoT",
    "condensed": "condensed CoT of the host",
    "semcot": "SemCoT",
    "escalated": "SemCoT, escalated",
    "semcot_hard": "SemCoT, single words",
    "words": "host reads the words",
    "generator": "generator alone",
    "generator_no_cot": "generator alone, no CoT",
}

WAY_NAMES = {"at_once": "no CoT", "implicit": "SemCoT", "explicit": "explicit CoT"}
ORDER_NAMES = {
    "own": "the checkpoint's confidence",
    "answer_probability": "the answer's probability",
    "oracle": "oracle",
}

Report = dict[str, Any]
TextTable = tuple[str, list[str], list[list[str]]]


def percent(share: float) -> str:
    """Return a fraction as a percentage.

    >>> percent(0.954)
    '95.4 %'
    """
    return f"{100 * share:.1f} %"


def percent_interval(interval: Sequence[float], signed: bool = False) -> str:
    """Return bounds given as fractions in percent.

    >>> percent_interval([0.91, 0.985]), percent_interval([-0.03, 0.1], signed=True)
    ('91.0–98.5', '-3.0 to +10.0')
    """
    low, high = (100 * bound for bound in interval)
    return f"{low:+.1f} to {high:+.1f}" if signed else f"{low:.1f}–{high:.1f}"


def duration(seconds: float | None) -> str:
    """Return a time in milliseconds or seconds; a dash for one that was not measured.

    >>> duration(0.0123), duration(2.5), duration(None)
    ('12.3 ms', '2.50 s', '-')
    """
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def p_value(value: float) -> str:
    """Return a p-value with three decimals.

    >>> p_value(0.0312), p_value(1e-9)
    ('0.031', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def report_tables(report: Report) -> list[TextTable]:
    """Return the title, header and rows of each table that the report has figures for."""

    def accuracy(row: Report) -> list[str]:
        return [percent(row["accuracy"]), percent_interval(row["ci95"])]

    def over(row: Report, other: str) -> str:
        """Return the difference of accuracies from another method, and its p-value."""
        if f"p_vs_{other}" not in row:
            return "-"
        base = next(base for base in methods if base["method"] == other)
        return f"{100 * (row['accuracy'] - base['accuracy']):+.1f}, p {p_value(row[f'p_vs_{other}'])}"

    methods, interval = report["rows"], "95 % interval"
    alone = any(row["method"] == "generator" for row in methods)
    share = any(row.get("share_of_cot_time") for row in methods)
    # The first batch size has columns of its own.
    measured = report["latency"]["methods"] if report["latency"] else {}
    larger = [row["batch_size"] for row in next(iter(measured.values()), [])[1:]]
    names = [METHOD_NAMES[row["method"]] for row in methods]
    by_method = [
        [
            name,
            *accuracy(row),
            *([over(row, "no_cot"), over(row, "generator")] if alone else []),
            duration(row["seconds_per_query"]),
            duration(row["seconds_per_query_p95"]),
            *([f"{row['share_of_cot_time']:.2f}"] if share else []),
            *(duration(timed["median"]) for timed in measured.get(row["method"], [])[1:]),
            f"{row['new_tokens_per_query']:.1f}",
            f"{row['implicit_tokens']:.1f}"
            if isinstance(row["implicit_tokens"], float)
            else str(row["implicit_tokens"]),
        ]
        for name, row in zip(names, methods, strict=True)
    ]
    controls = [
        [CONTROL_NAMES[row["control"]], *accuracy(row), p_value(row["p_vs_semcot"]), p_value(row["p_vs_no_cot"])]
        for row in report["controls"]
    ]
    thoughts = [
        [
            name,
            f"{row['thought_tokens_per_query']:.1f}",
            str(row["thoughts_not_ended"]),
            f"{row['thoughts_right']} of {row['n']}",
            str(row["n"] - row["thoughts_judged"]),
        ]
        for name, row in zip(names, methods, strict=True)
        if "thoughts_judged" in row
    ]
    comparisons = [
        [
            f"{METHOD_NAMES[row['a']]} - {METHOD_NAMES[row['b']]}",
            f"{100 * row['difference']:+.1f}",
            percent_interval(row["ci95"], signed=True),
            p_value(row["p"]),
        ]
        for row in report["comparisons"]
    ]
    groups = list(zip(*(row["by_steps"] for row in methods), strict=True))
    by_steps = [
        [str(group[0]["steps"]), str(group[0]["n"]), *(percent(row["accuracy"]) for row in group)] for group in groups
    ]
    by_k = [[str(row["implicit_tokens"]), *accuracy(row)] for row in report["by_k"]]
    tables: list[TextTable] = [
        (
            "Methods",
            [
                *("method", "accuracy", interval),
                *(["over no CoT", "over the generator alone"] if alone else []),
                *("median per query", "p95"),
                *(["of explicit CoT's time"] if share else []),
                *(f"median at batch {size}" for size in larger),
                *("new tokens", "k"),
            ],
            by_method,
        ),
        ("Thoughts in words", ["method", "tokens", "not ended", "end right", "not judged"], thoughts),
        (
            "Controls: SemCoT with other implicit tokens",
            ["control", "accuracy", interval, "p against SemCoT", "p against no CoT"],
            controls,
        ),
        ("Comparisons, paired", ["", "difference in points", interval, "p"], comparisons),
        (
            "Accuracy by number of reasoning steps",
            ["steps", "questions", *names],
            by_steps if len(by_steps) > 1 else [],
        ),
        ("Accuracy by number of implicit tokens", ["implicit tokens", "accuracy", interval], by_k),
        *_escalation_tables(report.get("escalation")),
    ]
    return [table for table in tables if table[2]]


def _escalation_tables(escalation: Report | None) -> list[TextTable]:
    """Return the tables of ways of answering, and of areas."""
    if not escalation:
        return []
    explicit = escalation["ways"]["explicit"]["seconds"]

    def row(name: str, way: Report) -> list[str]:
        share = f"{way['seconds'] / explicit:.2f}" if explicit else "-"
        return [name, percent(way["accuracy"]), way.get("gone", "-"), duration(way["seconds"]), share]

    rows = [row(WAY_NAMES[name], way) for name, way in escalation["ways"].items()]
    if point := escalation["point"]:
        rows.append(
            row(
                f"escalation, threshold {point['threshold']:.3g}",
                {**point, "gone": percent(point["escalated"])},
            )
        )
    areas = [
        [
            ORDER_NAMES[name],
            f"{100 * area['points']:+.1f}",
            "-" if area["share_of_oracle"] is None else f"{area['share_of_oracle']:.2f}",
        ]
        for name, area in escalation["areas"].items()
    ]
    return [
        ("Escalation", ["way", "accuracy", "escalated", "mean time", "of explicit CoT's"], rows),
        ("Escalation: over a random router, all thresholds", ["by", "points", "share of the oracle's"], areas),
    ]


def escalation_sentences(report: Report) -> list[str]:
    """Return what the report says of the checkpoint's calibration: its lead over the simplest one, and its promise."""
    escalation = report.get("escalation")
    found: list[str] = []
    if not escalation:
        return found
    if missing := escalation["missing_signals"]:
        found.append(f"The checkpoint's rule of escalation was not evaluated: {', '.join(missing)} are missing.")
    if compared := escalation["comparison"]:
        found.append(
            "Over all thresholds, accuracy by the calibrated confidence differs from that by the answer's probability "
            f"alone by {100 * compared['difference']:+.2f} points (95 % interval "
            f"{percent_interval(compared['ci95'], signed=True)})."
        )
    if promise := escalation["promise"]:
        parts = [
            f"{name} {100 * figure['found']:{sign}.1f}{unit} (expected {100 * figure['expected']:{sign}.1f}, "
            f"{percent_interval(figure['ci95'], signed=bool(sign))})"
            for name, figure, sign, unit in (
                ("accuracy", promise["accuracy"], "", " %"),
                ("difference from explicit CoT", promise["difference"], "+", " points"),
                ("escalated", promise["escalated"], "", " %"),
            )
        ]
        verdict = "holds" if promise["held"] else "does not hold"
        found.append(
            f"What the calibration on {promise['questions']} questions promised {verdict} on these "
            f"{report['rows'][0]['n']}: {', '.join(parts)}."
        )
    return found


def _limit(report: Report, method: str) -> str:
    """Return the most new tokens of a method's answers, in words where it differs from answer to answer."""
    if method == "escalated":
        return "their limit of"
    # Older reports have one limit.
    name = "max_reasoning_tokens" if method == "cot" and "max_reasoning_tokens" in report else "max_new_tokens"
    return str(report[name])


def markdown_report(report: Report) -> str:
    """Return the whole report as markdown."""
    of = f" on {report['dataset']}" if report["dataset"] else ""
    paragraphs = [f"# Evaluation of {report['model']}{of}"]
    if report["verdict"]:
        paragraphs.append(f"**{report['verdict']}**")
    if report.get("cot_instruction"):
        paragraphs.append(f"Explicit CoT was told: {report['cot_instruction']}")
    if report["latency"]:
        size = next(iter(report["latency"]["methods"].values()))[0]["batch_size"]
        paragraphs.append(
            f"{report['rows'][0]['n']} questions, greedy decoding, answer type `{report['answer_type']}`. Times are "
            f"per query at batch size {size}, over {report['latency']['samples']} questions; tokens are means."
        )
    for title, header, rows in report_tables(report):
        paragraphs += [f"## {title}", markdown_table(header, rows)]
    paragraphs += [
        f"{METHOD_NAMES[row['method']]}: {row['unfinished']} of {row['n']} answers were cut off at "
        f"{_limit(report, row['method'])} new tokens."
        for row in report["rows"]
        if row["unfinished"]
    ]
    paragraphs += [
        f"{METHOD_NAMES[row['method']]}: {100 * row['share_explicit']:.1f} % of the answers by explicit reasoning, "
        f"{100 * row['share_at_once']:.1f} % at once."
        for row in report["rows"]
        if "share_explicit" in row
    ]
    paragraphs += [
        f"{METHOD_NAMES[row['method']]}: {row['thoughts_not_ended']} of {row['n']} thoughts were not ended at the "
        "limit of implicit tokens."
        for row in report["rows"]
        if row.get("thoughts_not_ended")
    ]
    paragraphs += [
        f"{METHOD_NAMES[row['method']]}: on average {100 * row['lost_probability']['mean']:.2f} % of a mixture are on "
        f"words that the host lacks, at most {100 * row['lost_probability']['max']:.1f} % of one; "
        f"{row['thoughts_as_text']} of {row['n']} thoughts were handed over as text."
        for row in report["rows"]
        if "lost_probability" in row
    ]
    paragraphs += escalation_sentences(report)
    machine = "\n".join(f"- {name}: {value}" for name, value in report["environment"].items())
    paragraphs += ["## Made with", f"`{report['command']}` (seed {report['seed']})", machine]
    return "\n\n".join(paragraphs) + "\n"


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the tables and the verdict to the terminal."""
    console = console or Console()
    for title, header, rows in report_tables(report):
        cells = [[row[0], *(cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row[1:])] for row in rows]
        print_table(header, cells, header[1:], header[:1], title=title, console=console, unbroken=True)
    for sentence in [*([report["verdict"]] if report["verdict"] else []), *escalation_sentences(report)]:
        console.print(sentence)
