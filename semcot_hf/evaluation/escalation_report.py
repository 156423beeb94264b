"""Escalation in a report: curves over thresholds, areas, the checkpoint's own threshold and its promise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..modeling.escalation_semcot import Escalation
from .escalation import (
    Array,
    Curve,
    Way,
    Ways,
    area_above_random,
    area_difference,
    as_tensors,
    escalation_curve,
    oracle_curve,
    route,
    share_of_oracle,
)
from .statistics import accuracy_interval, expected_difference_interval, expected_interval

Records = Sequence[Mapping[str, Any]]
# Of the ways, in the order of the table.
WAY_METHODS = {"at_once": "no_cot", "implicit": "semcot", "explicit": "cot"}
# Points of a curve in report.json.
POINTS = 200


def ways_of(records: Mapping[str, Records], latency: Mapping[str, Sequence[Mapping[str, Any]]] | None) -> Ways:
    """Return the ways of answering that the predictions of "semcot", "cot" and perhaps "no_cot" show.

    Args:
        records: predictions in the order of the questions, by method.
        latency: the result of `measure_latency`. A method's mean time at the first batch size counts for each of its
            questions; for explicit reasoning it is shared out by the number of new tokens, on which its time depends.
            Without it, the times of the batches count.
    """

    def way(method: str) -> Way:
        made = records[method]
        seconds = np.array([record["seconds"] for record in made], dtype=float)
        if latency is not None:
            tokens = np.array([record["new_tokens"] for record in made], dtype=float)
            lengths = tokens / tokens.mean() if method == "cot" and tokens.any() else np.ones(len(made))
            seconds = latency[method][0]["mean"] * lengths
        return Way(np.array([record["correct"] for record in made], dtype=bool), seconds)

    return Ways(way("semcot"), way("cot"), way("no_cot") if "no_cot" in records else None)


def signals_of(records: Records) -> dict[str, Array]:
    """Return the signals (n,) that all predictions have, by name; nan where one is missing."""
    names = {name for record in records for name in record.get("signals") or {}}
    found = {}
    for name in sorted(names):
        values = [(record.get("signals") or {}).get(name) for record in records]
        found[name] = np.array([np.nan if value is None else value for value in values], dtype=float)
    return found


def summarize_escalation(
    records: Mapping[str, Records],
    *,
    rule: Escalation | None,
    latency: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    seed: int,
) -> dict[str, Any] | None:
    """Return the figures of escalation; `None` without predictions of "cot", and of "semcot" with signals.

    Args:
        records: predictions in the order of the questions, by the name of their file.
        rule: the checkpoint's own.
        latency: the result of `measure_latency`.
        seed: of the bootstrap.

    Returns:
        `ways` (accuracy and mean seconds of each), `curves` (of the `own` confidence, `answer_probability` and the
        `oracle`: lists of `threshold`, `escalated`, `accuracy`, `seconds`), `areas` (by curve: `points` above a random
        router, as a fraction, and `share_of_oracle`), `comparison` (of the own confidence with the answer's
        probability, see `area_difference`), `point` (the rule's own threshold) and `promise` (see `check_promise`),
        each `None` where it does not apply, and `missing_signals` that the rule reads and the predictions lack.
    """
    signals = signals_of(records.get("semcot", ()))
    if "cot" not in records or "answer_probability" not in signals:
        return None
    ways = ways_of({name: made for name, made in records.items() if name in WAY_METHODS.values()}, latency)
    probability = signals["answer_probability"]
    curves = {"answer_probability": escalation_curve(probability, ways), "oracle": oracle_curve(ways)}
    comparison = point = promise = None
    missing = [] if rule is None else [name for name in _read_by(rule) if name not in signals]
    if rule is not None and rule.router is not None and rule.router["sends"] == "at_once" and ways.at_once is None:
        missing.append("no_cot")
    if rule is not None and not missing:
        own = rule.confidence(as_tensors(signals)).numpy()
        if rule.calibration is not None:
            curves = {"own": escalation_curve(own, ways), **curves}
            comparison = area_difference(own, probability, ways, seed=seed)
        routed = route(rule, signals, ways)
        point = _point(routed.way, ways.explicit, rule.threshold, routed.escalated, routed.at_once)
        promise = check_promise(rule.expected, routed.way, ways.explicit, routed.escalated)
    return {
        "ways": {
            name: {"accuracy": way.accuracy, "seconds": way.mean_seconds}
            for name, way in (("at_once", ways.at_once), ("implicit", ways.implicit), ("explicit", ways.explicit))
            if way is not None
        },
        "curves": {name: _as_lists(curve) for name, curve in curves.items()},
        "areas": {
            name: {"points": area_above_random(curve, ways), "share_of_oracle": share_of_oracle(curve, ways)}
            for name, curve in curves.items()
        },
        "comparison": comparison,
        "point": point,
        "promise": promise,
        "missing_signals": missing,
    }


def check_promise(
    expected: Mapping[str, Any] | None, way: Way, explicit: Way, escalated: Array
) -> dict[str, Any] | None:
    """Return whether what a calibration expects holds on other questions; `None` if it expects nothing.

    Args:
        expected: `Escalation.expected`.
        way: what the rule gives for n questions.
        explicit: what explicit reasoning gives for them.
        escalated: (n,) whether the rule has them reasoned about in words.

    Returns:
        `held`: whether neither accuracy nor difference from explicit reasoning is below its interval. For `accuracy`,
        `difference` and `escalated`: `expected`, the 95 % interval `ci95` for as many new questions as these, and what
        was `found`.
    """
    known = expected or {}
    if not {"accuracy", "escalated", "wins", "losses", "questions"} <= {*known}:
        return None
    calibrated, new = known["questions"], len(way.correct)
    figures = {
        "accuracy": (known["accuracy"], way.accuracy, expected_interval(known["accuracy"], calibrated, new)),
        "difference": (
            known["wins"] - known["losses"],
            way.accuracy - explicit.accuracy,
            expected_difference_interval(known["wins"], known["losses"], calibrated, new),
        ),
        "escalated": (
            known["escalated"],
            float(escalated.mean()),
            expected_interval(known["escalated"], calibrated, new),
        ),
    }
    return {
        "held": all(figures[name][1] >= figures[name][2][0] for name in ("accuracy", "difference")),
        "target": known.get("target"),
        "questions": calibrated,
        **{
            name: {"expected": wanted, "found": found, "ci95": list(interval)}
            for name, (wanted, found, interval) in figures.items()
        },
    }


def _read_by(rule: Escalation) -> list[str]:
    names = rule.signals if rule.calibration is not None else ["answer_probability"]
    return [*names, *(rule.router["signals"] if rule.router is not None else [])]


def _point(way: Way, explicit: Way, threshold: float, escalated: Array, at_once: Array) -> dict[str, Any]:
    n, right = len(way.correct), int(way.correct.sum())
    return {
        "threshold": threshold,
        "accuracy": way.accuracy,
        "ci95": list(accuracy_interval(right, n)),
        "escalated": float(escalated.mean()),
        "at_once": float(at_once.mean()),
        "seconds": way.mean_seconds,
        "share_of_cot_time": way.mean_seconds / explicit.mean_seconds if explicit.mean_seconds else None,
    }


def _as_lists(curve: Curve) -> dict[str, list[float | None]]:
    """Return at most `POINTS` evenly spaced points of a curve as lists; thresholds that do not exist are `None`."""
    chosen = np.unique(np.linspace(0, len(curve.seconds) - 1, POINTS).round().astype(int))
    return {
        "threshold": [float(value) if np.isfinite(value) else None for value in curve.thresholds[chosen]],
        **{name: getattr(curve, name)[chosen].tolist() for name in ("escalated", "accuracy", "seconds")},
    }
