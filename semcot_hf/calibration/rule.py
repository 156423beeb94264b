"""The choice of a rule that reaches a target accuracy in the least time, and what to expect of it on new questions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..evaluation.escalation import Array, Curve, Routed, Ways, as_tensors, escalation_curve, route, share_of_oracle
from ..evaluation.statistics import expected_difference_interval, expected_interval
from ..modeling.escalation_semcot import MAX_REASONING_TOKENS, Escalation
from .confidence import LEAST, Signals, fit_confidence

# Thresholds of the router that are tried.
ROUTER_THRESHOLDS = 20
# A router costs time for the questions that it does not answer; it must save more than this share of all.
LEAST_SAVING = 0.02
FOLDS, REPEATS = 10, 4
# By how much the target may be raised, as fractions.
MARGINS = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05)
_EPSILON = 1e-9


@dataclass(frozen=True)
class Target:
    """The accuracy that is asked for: a fraction, or explicit reasoning's and some points.

    >>> Target.parse("0.9"), Target.parse("cot-1")
    (Target(accuracy=0.9, points=None), Target(accuracy=None, points=-1.0))
    >>> str(Target.parse("cot")), str(Target.parse("cot-0.5")), str(Target.parse(0.9))
    ('cot', 'cot-0.5', '0.9')
    >>> Target.parse("90")
    Traceback (most recent call last):
    ...
    ValueError: target_accuracy='90': must be a fraction above 0 and at most 1, such as 0.9, or explicit reasoning's \
accuracy and some points, such as cot or cot-1.
    """

    accuracy: float | None = None
    points: float | None = None

    @classmethod
    def parse(cls, text: str | float) -> "Target":
        """Return the target of a text such as "0.9", "cot" or "cot-1"."""
        found = re.fullmatch(r"cot(?:([+-]\d+(?:\.\d+)?))?", str(text).replace(" ", ""))
        if found:
            return cls(points=float(found[1] or 0))
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise ValueError(
                f"target_accuracy={text!r}: must be a fraction above 0 and at most 1, such as 0.9, or explicit "
                "reasoning's accuracy and some points, such as cot or cot-1."
            )
        return cls(accuracy=value)

    def __str__(self) -> str:
        return f"{self.accuracy:g}" if self.points is None else f"cot{self.points:+g}" if self.points else "cot"

    def on(self, ways: Ways) -> float:
        """Return the accuracy that is asked for on these questions."""
        if self.points is None:
            assert self.accuracy is not None
            return self.accuracy
        return ways.explicit.accuracy + self.points / 100


@dataclass(frozen=True)
class CalibrationOptions:
    """What is fitted.

    Args:
        target: the accuracy to reach.
        signals: those of an implicit answer that the confidence in it reads.
        kind: "logistic" or "isotonic".
        router_signals: those of a question that the router reads; none for no router.
        max_reasoning_tokens: that the explicit answers were made with.
        seed: of the partitions.
    """

    target: Target
    signals: Sequence[str] = ("answer_probability",)
    kind: str = "logistic"
    router_signals: Sequence[str] = ()
    max_reasoning_tokens: int = MAX_REASONING_TOKENS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A rule whose threshold is open, and accuracy and time for each threshold."""

    rule: Escalation
    curve: Curve

    def at(self, wanted: float) -> tuple[Escalation, float, float]:
        """Return the rule with the threshold of the fewest escalated questions that reach an accuracy.

        Where none reaches it, that of the highest accuracy is returned.

        Returns:
            The rule, its accuracy and its mean time.
        """
        curve = self.curve
        usable = np.isfinite(curve.thresholds)
        reached = np.flatnonzero(usable & (curve.accuracy >= wanted - _EPSILON))
        index = int(reached[0]) if len(reached) else int(np.argmax(np.where(usable, curve.accuracy, -1)))
        rule = replace(self.rule, threshold=float(curve.thresholds[index]))
        return rule, float(curve.accuracy[index]), float(curve.seconds[index])


def choose_rule(signals: Signals, ways: Ways, options: CalibrationOptions) -> tuple[Escalation, str | None]:
    """Fit the confidence and choose the threshold, and a router's, that reach the target in the least mean time.

    Without a router that is the smallest share of escalated questions; a router becomes part of the rule if that saves
    time. The best of many thresholds does better on the questions that it was chosen on than on new ones. Therefore
    cross-fitting repeats fit and choice on nine tenths of the questions and applies the result to the tenth that was
    left out. The target is raised by the smallest of `MARGINS` with which accuracy on the questions that were left out
    reaches the target itself.

    Args:
        signals: (n,) by name.
        ways: of answering the n questions.
        options: see there.

    Returns:
        The rule, and why it has no router (`None` if it has one). Its `expected` says what to expect of new questions
        of the same kind: `target`, `target_accuracy`, `questions` (n); `accuracy` and `difference` from explicit
        reasoning, by cross-fitting; `escalated` and `at_once`, the shares on these questions, on which labels have
        hardly any influence; intervals (95 %) as `..._ci95`; `wins` and `losses`, the shares of questions that only
        the rule, and only explicit reasoning answers right; `seconds`, `share_of_explicit_seconds`; `area`
        (`share_of_oracle`, by cross-fitting); and accuracy and time of the single `ways`.

    Raises:
        ValueError: for a target that no threshold reaches, and what `fit_confidence` refuses.
    """
    candidates, reason = _candidates(signals, ways, options, LEAST)
    wanted = options.target.on(ways)
    best = _pick(candidates, 2.0)
    if best[1] < wanted - _EPSILON:
        raise ValueError(
            f"target_accuracy={str(options.target)!r}, which is {wanted:.4g} on these {len(ways)} questions, is out "
            f"of reach: the most accurate rule has {best[1]:.4g} (implicit answers {ways.implicit.accuracy:.4g}, "
            f"explicit reasoning {ways.explicit.accuracy:.4g}). Pass at most {np.floor(1e4 * best[1]) / 1e4:g}."
        )
    correct, area = _cross_fit(signals, ways, options)
    found = []
    # Without a router, and with any.
    for part, answers in zip((candidates[:1], candidates), correct, strict=True):
        reached = np.flatnonzero(answers.mean(axis=1) >= wanted - _EPSILON)
        index = int(reached[0]) if len(reached) else int(np.argmax(answers.mean(axis=1)))
        rule, _, seconds = _pick(part, wanted + MARGINS[index])
        found.append((rule, answers[index], seconds))
    alone, routed = found
    as_good = routed[1].mean() >= min(wanted, alone[1].mean()) - _EPSILON
    saves = as_good and routed[2] < (1 - LEAST_SAVING) * alone[2]
    rule, answers, _ = routed if saves else alone
    expected = {
        "target": str(options.target),
        "target_accuracy": wanted,
        **_expected(answers, ways, route(rule, signals, ways)),
        "area": area,
    }
    return replace(rule, expected=expected), None if rule.router is not None else reason


def _pick(candidates: Sequence[_Candidate], wanted: float) -> tuple[Escalation, float, float]:
    """Return the quickest rule that reaches an accuracy, its accuracy and time; the most accurate where none does."""
    found = [candidate.at(wanted) for candidate in candidates]
    reach = [entry for entry in found if entry[1] >= wanted - _EPSILON]
    return min(reach, key=lambda entry: entry[2]) if reach else max(found, key=lambda entry: (entry[1], -entry[2]))


def _cross_fit(signals: Signals, ways: Ways, options: CalibrationOptions) -> tuple[Array, float | None]:
    """Return how often each question that was left out was answered right, by rules without a router and with any.

    Returns:
        (2, margins, n), and the mean over partitions of `share_of_oracle`.
    """
    n, areas = len(ways), []
    correct, confidence = np.zeros((2, len(MARGINS), n)), np.zeros(n)
    rng = np.random.default_rng(options.seed)
    for _ in range(REPEATS):
        folds = _folds(ways.implicit.correct, rng)
        for fold in range(folds.max() + 1):
            seen, new = folds != fold, np.flatnonzero(folds == fold)
            candidates, _ = _candidates(_rows(signals, seen), ways[seen], options, 1)
            before, goal = None, options.target.on(ways[seen])
            for with_routers, margin in np.ndindex(2, len(MARGINS)):
                rule, _, _ = _pick(candidates if with_routers else candidates[:1], goal + MARGINS[margin])
                # Often the same as with the margin before.
                if rule != before:
                    before, routed = rule, route(rule, _rows(signals, new), ways[new])
                correct[with_routers, margin, new] += routed.way.correct / REPEATS
            confidence[new] = routed.confidence
        areas.append(share_of_oracle(escalation_curve(confidence, ways), ways))
    known = [area for area in areas if area is not None]
    return correct, float(np.mean(known)) if known else None


def _expected(correct: Array, ways: Ways, routed: Routed) -> dict[str, Any]:
    """Return the figures of `choose_rule`'s `expected`, from how often each question was answered right (n,)."""
    n, accuracy, explicit = len(ways), float(correct.mean()), ways.explicit.correct
    wins, losses = float((correct * ~explicit).mean()), float(((1 - correct) * explicit).mean())
    escalated, seconds = float(routed.escalated.mean()), routed.way.mean_seconds
    return {
        "questions": n,
        "accuracy": accuracy,
        "accuracy_ci95": list(expected_interval(accuracy, n)),
        "difference": wins - losses,
        "difference_ci95": list(expected_difference_interval(wins, losses, n)),
        "wins": wins,
        "losses": losses,
        "escalated": escalated,
        "escalated_ci95": list(expected_interval(escalated, n)),
        "at_once": float(routed.at_once.mean()),
        "seconds": seconds,
        "share_of_explicit_seconds": seconds / ways.explicit.mean_seconds if ways.explicit.mean_seconds else None,
        "ways": {
            name: {"accuracy": way.accuracy, "seconds": way.mean_seconds}
            for name, way in (("at_once", ways.at_once), ("implicit", ways.implicit), ("explicit", ways.explicit))
            if way is not None
        },
    }


def _candidates(
    signals: Signals, ways: Ways, options: CalibrationOptions, least: int
) -> tuple[list[_Candidate], str | None]:
    """Return the fitted rule without a router and with routers, and why none of the latter may be chosen."""
    fitted = fit_confidence(signals, options.signals, ways.implicit.correct, options.kind, least=least)
    rule = Escalation(
        0.0, signals=list(options.signals), calibration=fitted, max_reasoning_tokens=options.max_reasoning_tokens
    )
    tensors = as_tensors(signals)
    confidence = rule.confidence(tensors).numpy()
    found = [_Candidate(rule, escalation_curve(confidence, ways))]
    if not options.router_signals or ways.at_once is None:
        return found, None if not options.router_signals else "there are no answers at once"
    try:
        # Isotonic regression takes one signal.
        kind = options.kind if len(options.router_signals) == 1 else "logistic"
        fitted = fit_confidence(signals, options.router_signals, ways.at_once.correct, kind, least=least)
    except ValueError as error:
        return found, f"answers at once: {error}"
    router = {"signals": list(options.router_signals), "calibration": fitted, "threshold": 0.0, "sends": "at_once"}
    known = replace(rule, router=router).router_confidence(tensors).numpy()
    values = np.unique(known)
    middles = (values[1:] + values[:-1]) / 2
    for value in middles[np.unique(np.linspace(0, len(middles) - 1, ROUTER_THRESHOLDS).round().astype(int))]:
        at_once = known >= value
        rest = Ways(ways.at_once.where(at_once, ways.implicit), ways.explicit)
        routed = replace(rule, router={**router, "threshold": float(value)})
        found.append(_Candidate(routed, escalation_curve(np.where(at_once, np.inf, confidence), rest)))
    return found, "it would not save time"


def _folds(labels: Array, rng: np.random.Generator) -> Array:
    """Return the number of each question's fold (n,): at most ten, each with its share of both labels."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=int)
    folds[order] = np.arange(len(labels)) % min(FOLDS, len(labels))
    return folds


def _rows(signals: Signals, rows: Any) -> dict[str, Array]:
    return {name: np.asarray(values, dtype=float)[rows] for name, values in signals.items()}
