"""The table of verdicts of pairs of pretrained models, as Markdown.

    python examples/real/report.py examples/real/results/*.jsonl.gz

One section for each file <set>--<host>--<generator>--<variant>.jsonl.gz. Verdicts of the host alone on the same
questions (`cot`, `condensed`) stand in <set>--<host>.jsonl.gz and are shown in each section of that host and set.
p-values are McNemar's, exact, over the questions that both rows answered. Seconds are medians; those of another
machine are not compared with explicit CoT's. Columns in which no row of a section has anything are left out.
"""

import sys

from titles import TITLES
from verdicts import Times, read_sections

from semcot_hf.evaluation.statistics import accuracy_interval, mcnemar

# Columns that a table always has: those up to the tokens.
_ALWAYS = 7


def compare(rows: dict[int, dict], others: dict[int, dict] | None) -> str:
    """Return the p-value over the questions that both answered."""
    if others is None or others is rows:
        return ""
    both = sorted(rows.keys() & others.keys())
    p = mcnemar([rows[index]["correct"] for index in both], [others[index]["correct"] for index in both])
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def mean(rows: dict[int, dict], name: str) -> str:
    """Return the mean of a field, where the rows have it."""
    values = [row[name] for row in rows.values() if row.get(name) is not None]
    return f"{sum(values) / len(values):.1f}" if values and any(values) else ""


def table(verdicts: dict[str, dict[int, dict]], times: Times) -> str:
    """Return the Markdown table of one file."""
    rows = [_row(method, verdicts, times) for method in TITLES if method in verdicts]
    names = [name for number, name in enumerate(rows[0]) if number < _ALWAYS or any(row[name] for row in rows)]
    return markdown([names, ["---"] * len(names), *([row[name] for name in names] for row in rows)])


def markdown(lines: list[list[str]]) -> str:
    """Return a table, whose second line is the one below its head."""
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def _row(method: str, verdicts: dict[str, dict[int, dict]], times: Times) -> dict[str, str]:
    rows = verdicts[method]
    right = sum(row["correct"] for row in rows.values())
    low, high = accuracy_interval(right, len(rows))
    row = {
        "row": TITLES[method],
        "right": f"{right} of {len(rows)}",
        "accuracy, 95 % interval": f"{right / len(rows):.1%} [{low:.1%}, {high:.1%}]",
        "p against the generator alone": compare(rows, verdicts.get("generator")),
        "p against no CoT": compare(rows, verdicts.get("no_cot")),
        "new tokens": mean(rows, "new_tokens"),
        "implicit tokens": mean(rows, "implicit_tokens"),
        "thoughts not ended": str(sum(row.get("thought_ended") is False for row in rows.values()) or ""),
    }
    for size, measured in sorted(times.items()):
        batches = "" if size == 1 else f", batches of {size}"
        own, explicit = measured.get(method), measured.get("cot")
        row[f"seconds a question{batches}"] = f"{own[0]:.1f}" if own else ""
        comparable = own and explicit and method != "cot" and own[1] == explicit[1]
        row[f"of explicit CoT's time{batches}"] = f"{own[0] / explicit[0]:.2f}" if comparable else ""
    return row


def budget(training: dict[str, float]) -> str:
    """Return in a sentence what the training took."""
    rows = f" on {training['train_samples']:,} rows" if "train_samples" in training else ""
    after = f", those after step {training['resumed_at_step']:,} in" if "resumed_at_step" in training else ","
    counted = f" and {training['total_flos'] / 1e12:,.3g} TFLOP" if "total_flos" in training else ""
    steps, minutes = training["train_steps"], training["train_runtime"] / 60
    return f"Trained{rows}: {steps:,} steps{after} {minutes:.0f} minutes{counted}."


def main(paths: list[str]) -> None:
    for parts, verdicts, times, training in read_sections(paths):
        print(f"### {', '.join(parts)}\n\n{table(verdicts, times)}\n")
        if training:
            print(budget(training), end="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
