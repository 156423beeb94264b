"""Paired comparison of two evaluation folders, and the spread over folders of several seeds."""

import json
from collections.abc import Sequence
from pathlib import Path

from .generate_answers import METHODS
from .records import read_predictions
from .statistics import summarize_seeds
from .summary import accuracy, compare_verdicts


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
    methods = [method for method in METHODS if method in _methods(dir_a) and method in _methods(dir_b)]
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
        for method in METHODS
        if all(method in run for run in accuracies)
    }


def _methods(folder):
    return [row["method"] for row in _report(folder)["rows"]]


def _report(folder):
    path = Path(folder) / "report.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: finish the evaluation in {folder} first.")
    return json.loads(path.read_text(encoding="utf-8"))
