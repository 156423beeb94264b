"""Figures from predictions: those of one evaluation's report, and comparisons of finished evaluations."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ..inference.settings import ANSWER_METHODS, IMPLICIT_METHODS
from .controls import CONTROLS, verdict
from .predictions import read_predictions
from .statistics import accuracy_interval, mcnemar, paired_difference_interval, summarize_seeds

# Methods all pairs of which are compared; of the others, each is compared with "semcot".
_COMPARED = {"no_cot", "cot", "semcot"}


def count_name(count: int) -> str:
    """Return the name of the predictions of "semcot" with another number of implicit tokens than the model's own."""
    return f"semcot-k{count}"


def summarize(
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    steps: Sequence[int],
    implicit_tokens: int,
    latency: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the report's `rows`, `controls`, `verdict`, `tokens_carry_reasoning`, `comparisons` and `by_k`.

    Args:
        records: predictions in the order of the questions, by the name of their file: methods, controls, and
            `count_name`s.
        steps: number of reasoning steps of each question; 0 where it is unknown.
        implicit_tokens: k of "semcot".
        latency: the result of `measure_latency`; the rows give its first batch size.
        seed: of the bootstrap.
    """
    verdicts = {name: [record["correct"] for record in made] for name, made in records.items()}
    methods = [method for method in ANSWER_METHODS if method in records]
    rows = []
    for method in methods:
        measured = latency[method][0] if latency else {"median": None, "p95": None}
        explicit = latency["cot"][0]["median"] if latency and "cot" in latency else None
        made, right = records[method], verdicts[method]
        by_steps = {
            count: [correct for own, correct in zip(steps, right, strict=True) if own == count]
            for count in sorted({*steps})
            if count > 0
        }
        rows.append(
            {
                "method": method,
                **accuracy(right),
                "seconds_per_query": measured["median"],
                "new_tokens_per_query": sum(record["new_tokens"] for record in made) / len(made),
                "implicit_tokens": _tokens_per_query(made, implicit_tokens)
                if method in (*IMPLICIT_METHODS, "escalated")
                else 0,
                "seconds_per_query_p95": measured["p95"],
                "share_of_cot_time": measured["median"] / explicit if explicit else None,
                **{
                    f"p_vs_{other}": mcnemar(right, verdicts[other])
                    for other in ("no_cot", "generator")
                    if other in methods and other != method
                },
                "unfinished": sum(not record["finished"] for record in made),
                "by_steps": [{"steps": count, **accuracy(group)} for count, group in by_steps.items()],
            }
        )
        if method == "escalated":
            routes = [record["route"] for record in made]
            rows[-1] |= {f"share_{route}": routes.count(route) / len(made) for route in ("explicit", "at_once")}
        if all("thought_ended" in record for record in made):
            rows[-1]["thoughts_not_ended"] = sum(not record["thought_ended"] for record in made)
        if all("thought" in record for record in made):
            judged = [record["thought_right"] for record in made if record["thought_right"] is not None]
            rows[-1] |= {
                "thought_tokens_per_query": sum(record["thought_tokens"] for record in made) / len(made),
                "thoughts_judged": len(judged),
                "thoughts_right": sum(judged),
            }
        if all("lost_probability" in record for record in made):
            means, largest = zip(*(record["lost_probability"] for record in made), strict=True)
            rows[-1]["lost_probability"] = {"mean": sum(means) / len(made), "max": max(largest)}
            rows[-1]["thoughts_as_text"] = sum(record["thought_as_text"] for record in made)
    controls, carries, sentence = {}, None, None
    if any(control in records for control in CONTROLS):
        others = {control: verdicts[control] for control in CONTROLS if control != "none"}
        carries, sentence = verdict(verdicts["semcot"], verdicts["no_cot"], others)
        # Without implicit tokens, SemCoT is no_cot.
        controls = {"none": verdicts["no_cot"], **others}
    found = {int(match[1]): name for name in verdicts if (match := re.fullmatch(r"semcot-k(\d+)", name))}
    if found:
        found[implicit_tokens] = "semcot"
    return {
        "rows": rows,
        "controls": [
            {
                "control": control,
                **accuracy(run),
                "p_vs_semcot": mcnemar(run, verdicts["semcot"]),
                "p_vs_no_cot": mcnemar(run, verdicts["no_cot"]),
            }
            for control, run in controls.items()
        ],
        "verdict": sentence,
        "tokens_carry_reasoning": carries,
        "comparisons": [
            {"a": a, "b": b, **compare_verdicts(verdicts[a], verdicts[b], seed=seed)}
            for b, a in combinations(methods, 2)
            if {a, b} <= _COMPARED or "semcot" in (a, b)
        ],
        "by_k": [{"implicit_tokens": count, **accuracy(verdicts[found[count]])} for count in sorted(found)],
    }


def _tokens_per_query(records: Sequence[Mapping[str, Any]], implicit_tokens: int) -> float:
    """Return the mean number of implicit tokens; `implicit_tokens` where all questions have as many."""
    if "implicit_tokens" not in records[0]:
        return implicit_tokens
    return sum(record["implicit_tokens"] for record in records) / len(records)


def accuracy(verdicts: Sequence[bool]) -> dict[str, Any]:
    """Return the accuracy, its 95 % interval and the number of questions.

    >>> accuracy([True] * 8 + [False] * 2)["accuracy"]
    0.8
    """
    n, correct = len(verdicts), sum(verdicts)
    return {"accuracy": correct / n, "ci95": list(accuracy_interval(correct, n)), "n": n}


def compare_verdicts(a: Sequence[bool], b: Sequence[bool], *, seed: int = 0) -> dict[str, Any]:
    """Return the difference of accuracies a - b, its bootstrap interval and the p-value of McNemar's exact test.

    >>> compare_verdicts([True] * 6 + [False] * 4, [False] * 10)
    {'difference': 0.6, 'ci95': [0.3, 0.9], 'p': 0.03125}
    """
    return {
        "difference": (sum(a) - sum(b)) / len(a),
        "ci95": list(paired_difference_interval(a, b, seed=seed)),
        "p": mcnemar(a, b),
    }


def compare_runs(dir_a: str | Path, dir_b: str | Path, *, seed: int = 0) -> list[dict[str, Any]]:
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
    in_a, in_b = _accuracies(dir_a), _accuracies(dir_b)
    methods = [method for method in ANSWER_METHODS if method in in_a and method in in_b]
    if not methods:
        raise ValueError(
            f"{dir_a} has {', '.join(in_a)} and {dir_b} has {', '.join(in_b)}: evaluate both with a method in common."
        )
    compared = []
    for method in methods:
        a, b = (read_predictions(Path(folder) / f"predictions-{method}.jsonl") for folder in (dir_a, dir_b))
        if [(row["question"], row["answer"]) for row in a] != [(row["question"], row["answer"]) for row in b]:
            raise ValueError(
                f"{dir_a} ({len(a)} questions) and {dir_b} ({len(b)}) are not about the same questions in the same "
                "order: a paired comparison needs both evaluated on one dataset."
            )
        right_a, right_b = ([row["correct"] for row in rows] for rows in (a, b))
        compared.append(
            {
                "method": method,
                "accuracy_a": sum(right_a) / len(a),
                "accuracy_b": sum(right_b) / len(b),
                **compare_verdicts(right_a, right_b, seed=seed),
                "n": len(a),
            }
        )
    return compared


def summarize_runs(folders: Sequence[str | Path]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of the accuracies of several seeds' evaluations, by method."""
    runs = [_accuracies(folder) for folder in folders]
    shared = [method for method in ANSWER_METHODS if all(method in run for run in runs)]
    return {method: summarize_seeds([run[method] for run in runs]) for method in shared}


def _accuracies(folder: str | Path) -> dict[str, float]:
    """Return the accuracies in a finished evaluation's report, by method."""
    path = Path(folder) / "report.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: finish the evaluation in {folder} first.")
    report = json.loads(path.read_text(encoding="utf-8"))
    return {row["method"]: row["accuracy"] for row in report["rows"]}
