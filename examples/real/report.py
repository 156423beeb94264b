"""The table of verdicts of pairs of pretrained models, as Markdown.

    python examples/real/report.py examples/real/results/*.jsonl.gz

One section for each file <set>--<host>--<generator>--<variant>.jsonl.gz. Verdicts of the host alone on the same
questions (`cot`, `condensed`) stand in <set>--<host>.jsonl.gz and are shown in each section of that host and set.
p-values are McNemar's, exact, over the questions that both rows answered.
"""

import gzip
import json
import sys
from pathlib import Path

from semcot_hf.evaluation.statistics import accuracy_interval, mcnemar

TITLES = {
    "no_cot": "host, no CoT",
    "cot": "host, explicit CoT",
    "condensed": "host, its own condensed CoT (prompted)",
    "prompt_tuning": "host with five learned tokens, the same for every question (prompt tuning)",
    "semcot": "**SemCoT**",
    "no_cot_prompted": 'host, no CoT, after the answer prompt " = ?\\nAnswer:"',
    "semcot_prompted": '**SemCoT**, after the answer prompt " = ?\\nAnswer:"',
    "escalated": "SemCoT, escalated by its calibrated rule",
    "joint_answer": "SemCoT after 24 steps through the host, by the answer's loss",
    "joint_kl": "SemCoT after 24 steps through the host, by the answer's loss and the KL",
    "joint_aligned": "SemCoT after 24 steps through the host, by the answer's loss and the alignment",
    "merged": "SemCoT, two words a token, without further steps",
    "joint_merged": "SemCoT, two words a token, after 24 steps through the host, by the answer's loss",
    "semcot_hard": "SemCoT, the most probable words as tokens",
    "words": "host that reads the same words as text",
    "generator": "**the generator alone**, in words",
    "generator_no_cot": "the generator alone, at once",
    "none": "SemCoT without its tokens",
    "other_question": "SemCoT with another question's thought",
    "mean": "SemCoT with the mean of all thoughts",
    "noise": "SemCoT with noise of the thoughts' scale",
}
HEAD = """| row | right | accuracy, 95 % interval | p against the generator alone | p against no CoT | new tokens | \
implicit tokens |
|---|---|---|---|---|---|---|"""


def read(path: Path) -> dict[str, dict[int, dict]]:
    """Return verdicts by method and number of the question."""
    rows: dict[str, dict[int, dict]] = {}
    with gzip.open(path, "rt") as file:
        for line in file:
            row = json.loads(line)
            rows.setdefault(row["method"], {})[row["index"]] = row
    return rows


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


def table(verdicts: dict[str, dict[int, dict]]) -> str:
    """Return the Markdown table of one file."""
    lines = [HEAD]
    for method in [name for name in TITLES if name in verdicts]:
        rows = verdicts[method]
        right = sum(row["correct"] for row in rows.values())
        low, high = accuracy_interval(right, len(rows))
        lines.append(
            f"| {TITLES[method]} | {right} of {len(rows)} | {right / len(rows):.1%} [{low:.1%}, {high:.1%}] | "
            f"{compare(rows, verdicts.get('generator'))} | {compare(rows, verdicts.get('no_cot'))} | "
            f"{mean(rows, 'new_tokens')} | {mean(rows, 'implicit_tokens')} |"
        )
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        parts = path.name.removesuffix(".jsonl.gz").split("--")
        if len(parts) > 2:
            host = path.with_name("--".join(parts[:2]) + ".jsonl.gz")
            verdicts = {**(read(host) if host.is_file() else {}), **read(path)}
            print(f"### {', '.join(parts)}\n\n{table(verdicts)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
