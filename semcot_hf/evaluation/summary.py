"""The figures of a report: accuracies, controls and comparisons from judged answers."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from ..inference.settings import ANSWER_METHODS
from .controls import CONTROLS, verdict
from .predictions import read_predictions
from .statistics import accuracy_interval, mcnemar, paired_difference_interval, summarize_seeds


def count_name(count: int) -> str:
    """Name of the predictions of "semcot" with another number of implicit tokens than the model's own."""
    return f"semcot-k{count}"


def summarize(
    records: Mapping[str, Sequence[Mapping]],
    *,
    steps: Sequence[int],
    implicit_tokens: int,
    latency: Mapping[str, Sequence[Mapping]] | None,
    seed: int,
) -> dict:
    """The report's `rows`, `controls`, `verdict`, `tokens_carry_reasoning`, `comparisons` and `by_k`.

    Args:
        records: predictions in the order of the questions, by the name of their file: methods, controls, and
            `count_name`s.
        steps: number of reasoning steps of each question; 0 where it is not known.
        implicit_tokens: k of "semcot".
        latency: what `measure_latency` returned; the rows give its first batch size.
        seed: of the bootstrap.
    """
    verdicts = {name: [record["correct"] for record in made] for name, made in records.items()}
    methods = [method for method in ANSWER_METHODS if method in records]
    rows = []
    for method in methods:
        measured = latency[method][0] if latency else {"median": None, "p95": None}
        made = records[method]
        rows.append(
            {
                "method": method,
                **accuracy(verdicts[method]),
                "seconds_per_query": measured["median"],
                "new_tokens_per_query": sum(record["new_tokens"] for record in made) / len(made),
                "implicit_tokens": implicit_tokens if method == "semcot" else 0,
                "seconds_per_query_p95": measured["p95"],
                "unfinished": sum(not record["finished"] for record in made),
                "by_steps": _by_steps(verdicts[method], steps),
            }
        )
    controlled = any(control in records for control in CONTROLS)
    judged = {}
    if controlled:
        # No implicit tokens at all is what no_cot is.
        judged = {control: verdicts["no_cot" if control == "none" else control] for control in CONTROLS}
    carries = sentence = None
    if controlled:
        others = {control: run for control, run in judged.items() if control != "none"}
        carries, sentence = verdict(verdicts["semcot"], verdicts["no_cot"], others)
    return {
        "rows": rows,
        "controls": [
            {
                "control": control,
                **accuracy(run),
                "p_vs_semcot": mcnemar(run, verdicts["semcot"]),
                "p_vs_no_cot": mcnemar(run, verdicts["no_cot"]),
            }
            for control, run in judged.items()
        ],
        "verdict": sentence,
        "tokens_carry_reasoning": carries,
        "comparisons": [
            {"a": a, "b": b, **compare_verdicts(verdicts[a], verdicts[b], seed=seed)}
            for b, a in combinations(methods, 2)
        ],
        "by_k": _by_count(verdicts, implicit_tokens),
    }


def accuracy(verdicts: Sequence[bool]) -> dict:
    """Accuracy, its 95 % interval and the number of questions.

    >>> accuracy([True] * 8 + [False] * 2)["accuracy"]
    0.8
    """
    n, correct = len(verdicts), sum(verdicts)
    return {"accuracy": correct / n, "ci95": list(accuracy_interval(correct, n)), "n": n}


def compare_verdicts(a: Sequence[bool], b: Sequence[bool], *, seed: int = 0) -> dict:
    """Difference of accuracies a - b with its bootstrap interval and the p-value of McNemar's exact test.

    >>> compare_verdicts([True] * 6 + [False] * 4, [False] * 10)
    {'difference': 0.6, 'ci95': [0.3, 0.9], 'p': 0.03125}
    """
    return {
        "difference": (sum(a) - sum(b)) / len(a),
        "ci95": list(paired_difference_interval(a, b, seed=seed)),
        "p": mcnemar(a, b),
    }


def _by_steps(verdicts, steps):
    groups = defaultdict(list)
    for count, right in zip(steps, verdicts, strict=True):
        groups[count].append(right)
    return [{"steps": count, **accuracy(groups[count])} for count in sorted(groups) if count > 0]


def _by_count(verdicts, own):
    found = {int(match[1]): name for name in verdicts if (match := re.fullmatch(r"semcot-k(\d+)", name))}
    if not found:
        return []
    found[own] = "semcot"
    return [{"implicit_tokens": count, **accuracy(verdicts[found[count]])} for count in sorted(found)]


def compare_runs(dir_a: str | Path, dir_b: str | Path, *, seed: int = 0) -> list[dict]:
    """Compare two finished evaluations of the same questions, method by method.

    Args:
        dir_a, dir_b: folders written by `evaluate`.
        seed: of the bootstrap.

    Returns:
        For each method that both have: `method`, `accuracy_a`, `accuracy_b`, `difference` (a - b), its bootstrap
        `ci95`, `p` of McNemar's exact test, and `n`.

    Raises:
        FileNotFoundError: when a folder has no report.
        ValueError: when the two have no method in common, or other questions.
    """
    methods = [method for method in ANSWER_METHODS if method in _methods(dir_a) and method in _methods(dir_b)]
    if not methods:
        raise ValueError(
            f"{dir_a} has {', '.join(_methods(dir_a))} and {dir_b} has {', '.join(_methods(dir_b))}: evaluate both "
            "with a method in common."
        )
    compared = []
    for method in methods:
        a, b = (read_predictions(Path(folder) / f"predictions-{method}.jsonl") for folder in (dir_a, dir_b))
        if [(row["question"], row["answer"]) for row in a] != [(row["question"], row["answer"]) for row in b]:
            raise ValueError(
                f"{dir_a} ({len(a)} questions) and {dir_b} ({len(b)}) are not about the same questions in the same "
                "order: a paired comparison needs both evaluated on one dataset."
            )
        a, b = ([row["correct"] for row in rows] for rows in (a, b))
        compared.append(
            {
                "method": method,
                "accuracy_a": accuracy(a)["accuracy"],
                "accuracy_b": accuracy(b)["accuracy"],
                **compare_verdicts(a, b, seed=seed),
                "n": len(a),
            }
        )
    return compared


def summarize_runs(folders: Sequence[str | Path]) -> dict[str, dict]:
    """Mean, standard deviation and number of the accuracies of several seeds' evaluations, by method."""
    reports = [_report(folder) for folder in folders]
    accuracies = [{row["method"]: row["accuracy"] for row in report["rows"]} for report in reports]
    return {
        method: summarize_seeds([run[method] for run in accuracies])
        for method in ANSWER_METHODS
        if all(method in run for run in accuracies)
    }


def _methods(folder):
    return [row["method"] for row in _report(folder)["rows"]]


def _report(folder):
    path = Path(folder) / "report.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: finish the evaluation in {folder} first.")
    return json.loads(path.read_text(encoding="utf-8"))
