"""The table of verdicts of pairs of pretrained models, as Markdown.

    python examples/real/report.py examples/real/results/*.jsonl.gz
    python examples/real/report.py --overview examples/real/results/*.jsonl.gz

One section for each file <set>--<host>--<generator>--<variant>.jsonl.gz. Verdicts of the host alone on the same
questions (`cot`, `condensed`) stand in <set>--<host>.jsonl.gz and are shown in each section of that host and set.
p-values are McNemar's, exact, over the questions that both rows answered. Seconds are medians; those of another
machine are not compared with explicit CoT's. Columns in which no row of a section has anything are left out. With
--overview, one table with a row for each file.
"""

import gzip
import json
import sys
from collections.abc import Iterator
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
# The columns of every table.
_ALWAYS = (
    "row", "right", "accuracy, 95 % interval", "p against the generator alone", "p against no CoT", "new tokens",
    "implicit tokens",
)  # fmt: skip
# Those of the overview.
_OVERVIEW = {
    "no_cot": "no CoT",
    "cot": "explicit CoT",
    "condensed": "condensed CoT",
    "semcot": "**SemCoT**",
    "generator": "**generator alone**",
    "words": "words as text",
    "other_question": "another question's thought",
}
# Seconds a question: methods by batch size, each with its median and its machine.
Times = dict[int, dict[str, tuple[float, str]]]
# Set, host, generator and variant; verdicts by method and question; times.
Section = tuple[list[str], dict[str, dict[int, dict]], Times]


def read(path: Path) -> dict[str, dict[int, dict]]:
    """Return verdicts by method and number of the question."""
    rows: dict[str, dict[int, dict]] = {}
    for row in _lines(path):
        if "index" in row:
            rows.setdefault(row["method"], {})[row["index"]] = row
    return rows


def read_times(path: Path) -> Times:
    """Return the times that were measured."""
    times: Times = {}
    for row in _lines(path):
        if "batch_size" in row:
            times.setdefault(row["batch_size"], {})[row["method"]] = (row["median"], row["machine"])
    return times


def _lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


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


def not_ended(rows: dict[int, dict]) -> str:
    """Return how many thoughts were cut off at the limit, where there are any."""
    return str(sum(row.get("thought_ended") is False for row in rows.values()) or "")


def share(times: dict[str, tuple[float, str]], method: str) -> str:
    """Return the part of explicit CoT's time that a method takes on the same machine."""
    explicit, own = times.get("cot"), times.get(method)
    if method == "cot" or explicit is None or own is None or explicit[1] != own[1]:
        return ""
    return f"{own[0] / explicit[0]:.2f}"


def table(verdicts: dict[str, dict[int, dict]], times: Times) -> str:
    """Return the Markdown table of one file."""
    rows = [_row(method, verdicts, times) for method in TITLES if method in verdicts]
    always = len(_ALWAYS)
    columns = [name for number, name in enumerate(rows[0]) if number < always or any(row[name] for row in rows)]
    return _markdown([columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)])


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def _row(method: str, verdicts: dict[str, dict[int, dict]], times: Times) -> dict[str, str]:
    rows = verdicts[method]
    right = sum(row["correct"] for row in rows.values())
    low, high = accuracy_interval(right, len(rows))
    accuracy = f"{right / len(rows):.1%} [{low:.1%}, {high:.1%}]"
    generator, at_once = (compare(rows, verdicts.get(other)) for other in ("generator", "no_cot"))
    tokens = [mean(rows, name) for name in ("new_tokens", "implicit_tokens")]
    values = [TITLES[method], f"{right} of {len(rows)}", accuracy, generator, at_once, *tokens]
    row = dict(zip(_ALWAYS, values, strict=True)) | {"thoughts not ended": not_ended(rows)}
    for size, measured in sorted(times.items()):
        name = "seconds a question" if size == 1 else f"in batches of {size}"
        row[name] = f"{measured[method][0]:.1f}" if method in measured else ""
        row["of explicit CoT's time" if size == 1 else f"in batches of {size}, of explicit CoT's"] = share(
            measured, method
        )
    return row


def overview(sections: list[Section]) -> str:
    """Return one table with a row for each pair: accuracies, and the number of questions where it is another one."""
    columns = ["set", "host", "generator", "variant", *_OVERVIEW.values(), "p against the generator alone"]
    lines = [columns, ["---"] * len(columns)]
    for parts, verdicts, _ in sections:
        own = len(verdicts["semcot"]) if "semcot" in verdicts else 0
        cells = []
        for method in _OVERVIEW:
            right = [row["correct"] for row in verdicts.get(method, {}).values()]
            count = "" if len(right) == own else f" of {len(right)}"
            cells.append(f"{sum(right) / len(right):.1%}{count}" if right else "")
        if own:
            lines.append([*parts, *cells, compare(verdicts["semcot"], verdicts.get("generator"))])
    return _markdown(lines)


def read_sections(paths: list[Path]) -> Iterator[Section]:
    """Yield set, host, generator and variant of each file of a pair, with its verdicts and times and its host's."""
    for path in paths:
        parts = path.name.removesuffix(".jsonl.gz").split("--")
        if len(parts) < 3:
            continue
        host = path.with_name("--".join(parts[:2]) + ".jsonl.gz")
        found = [file for file in (host, path) if file.is_file()]
        times: Times = {}
        for file in found:
            for size, measured in read_times(file).items():
                times.setdefault(size, {}).update(measured)
        yield parts, {method: rows for file in found for method, rows in read(file).items()}, times


def main(paths: list[str]) -> None:
    sections = list(read_sections([Path(path) for path in paths if path != "--overview"]))
    if "--overview" in paths:
        print(overview(sections))
        return
    for parts, verdicts, times in sections:
        print(f"### {', '.join(parts)}\n\n{table(verdicts, times)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
