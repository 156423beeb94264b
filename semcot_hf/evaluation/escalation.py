"""Accuracy against mean time of escalation to explicit reasoning: curves over thresholds, and their areas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..modeling.escalation_semcot import Escalation

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Way:
    """What one way of answering gives for each of n questions.

    Args:
        correct: (n,) whether the answer is right.
        seconds: (n,) its time.

    Raises:
        ValueError: when the two differ in length, are empty, or a time is negative or no number.
    """

    correct: Array
    seconds: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", np.asarray(self.correct, dtype=bool))
        object.__setattr__(self, "seconds", np.asarray(self.seconds, dtype=float))
        if self.correct.shape != self.seconds.shape or self.correct.ndim != 1 or not self.correct.size:
            raise ValueError(
                f"correct has shape {self.correct.shape} and seconds {self.seconds.shape}: give one value of each for "
                "every question."
            )
        if not np.all(np.isfinite(self.seconds)) or self.seconds.min() < 0:
            raise ValueError("seconds holds negative values, or values that are no numbers: give times in seconds.")

    def __getitem__(self, rows: Any) -> "Way":
        return Way(self.correct[rows], self.seconds[rows])

    def where(self, rows: Array, other: "Way") -> "Way":
        """Return this way for the questions where `rows` (n,) is true, and another for the rest."""
        return Way(np.where(rows, self.correct, other.correct), np.where(rows, self.seconds, other.seconds))

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def mean_seconds(self) -> float:
        return float(self.seconds.mean())


@dataclass(frozen=True, eq=False)
class Ways:
    """The ways of answering the same n questions: with implicit tokens, with explicit reasoning, and at once.

    An escalated question takes the time of both implicit answer and explicit reasoning.
    """

    implicit: Way
    explicit: Way
    at_once: Way | None = None

    def __post_init__(self) -> None:
        sizes = {len(way.correct) for way in (self.implicit, self.explicit, self.at_once) if way is not None}
        if len(sizes) > 1:
            raise ValueError(f"the ways have {sorted(sizes)} questions: give all the same ones, in the same order.")

    def __len__(self) -> int:
        return len(self.implicit.correct)

    def __getitem__(self, rows: Any) -> "Ways":
        return Ways(self.implicit[rows], self.explicit[rows], None if self.at_once is None else self.at_once[rows])


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of accuracy against mean time, by the number of questions that are reasoned about in words.

    Args:
        thresholds: (points,) confidences below them go on to explicit reasoning; inf where no threshold within [0, 1]
            sends so many, and nan where the order of the questions is not that of a confidence.
        escalated: (points,) share of the questions that go on, increasing.
        accuracy: (points,)
        seconds: (points,) mean time per question.
    """

    thresholds: Array
    escalated: Array
    accuracy: Array
    seconds: Array


def escalation_curve(confidence: Array, ways: Ways) -> Curve:
    """Return accuracy and mean time for every threshold on `confidence`, from no question escalated to all.

    Questions of equal confidence go on together. A threshold lies midway between the confidences that it separates,
    so that rounding does not move a question to the other side.

    Args:
        confidence: (n,) in the implicit answers; values that are no numbers count as 0, as in `Escalation`;
            questions with inf are never escalated.
        ways: of the same questions.

    >>> ways = Ways(Way([0, 1, 1], [1, 1, 1]), Way([1, 1, 0], [4, 6, 5]))
    >>> curve = escalation_curve(np.array([0.2, 0.6, 0.8]), ways)
    >>> curve.thresholds.round(2).tolist(), curve.escalated.round(2).tolist()
    ([0.0, 0.4, 0.7, 0.9], [0.0, 0.33, 0.67, 1.0])
    >>> curve.accuracy.round(2).tolist(), curve.seconds.round(2).tolist()
    ([0.67, 1.0, 1.0, 0.67], [1.0, 2.33, 4.33, 6.0])
    """
    confidence = np.nan_to_num(np.asarray(confidence, dtype=float), nan=0.0, posinf=np.inf)
    if confidence.shape != (len(ways),):
        raise ValueError(f"confidence has shape {confidence.shape}: give one value for each of {len(ways)} questions.")
    order = np.argsort(confidence, kind="stable")
    values = confidence[order]
    # Where another group of equal confidences begins.
    ends = np.append(np.flatnonzero(values[1:] > values[:-1]) + 1, len(values))
    last = (values[-1] + 1) / 2 if values[-1] < 1 else np.inf
    middles = (values[ends[:-1] - 1] + np.minimum(values[ends[:-1]], 1)) / 2
    thresholds = np.concatenate([[0.0], np.where(values[ends[:-1] - 1] < 1, middles, np.inf), [last]])
    return _points(ways, order, np.append(0, ends), thresholds)


def oracle_curve(ways: Ways) -> Curve:
    """Return the best accuracy for each mean time: that of escalating only what it helps, the quickest first.

    >>> ways = Ways(Way([0, 0, 1, 0], [1] * 4), Way([1, 1, 0, 0], [8, 4, 4, 4]))
    >>> oracle_curve(ways).accuracy.tolist(), oracle_curve(ways).seconds.tolist()
    ([0.25, 0.5, 0.75], [1.0, 2.0, 4.0])
    """
    helped = np.flatnonzero(ways.explicit.correct & ~ways.implicit.correct)
    order = helped[np.argsort(ways.explicit.seconds[helped], kind="stable")]
    return _points(ways, order, np.arange(len(order) + 1), np.full(len(order) + 1, np.nan))


def random_accuracy(seconds: Array, ways: Ways) -> Array:
    """Return the expected accuracy of a router that reasons about a random share of the questions in words.

    It chooses before an answer is made, so that its mean time lies between those of implicit answers and of explicit
    reasoning: it pays for no question twice. Its accuracy is on the line between the two.

    Args:
        seconds: mean times (points,); beyond that of explicit reasoning, its accuracy holds.
        ways: the outcomes.

    >>> ways = Ways(Way([0, 1], [1, 1]), Way([1, 1], [5, 5]))
    >>> random_accuracy(np.array([1.0, 3.0, 6.0]), ways).tolist()
    [0.5, 0.75, 1.0]
    """
    start, end = ways.implicit.mean_seconds, ways.explicit.mean_seconds
    share = np.clip((seconds - start) / (end - start), 0, 1) if end > start else np.ones_like(seconds)
    return ways.implicit.accuracy + share * (ways.explicit.accuracy - ways.implicit.accuracy)


def area_above_random(curve: Curve, ways: Ways) -> float:
    """Return by how much a curve's accuracy exceeds a random router's, averaged over the range of mean times.

    The range goes from implicit answers alone to escalating every question. Between two points the curve is straight
    (a share of the questions between two thresholds), and behind the last its accuracy holds.

    Returns:
        The difference of accuracies, a fraction; 0 for a router no better than chance, negative for a worse one.

    >>> ways = Ways(Way([0, 1], [1, 1]), Way([1, 1], [4, 4]))
    >>> round(area_above_random(oracle_curve(ways), ways), 6)  # (2 s + 1 s) * (1 - 5 / 6) / 2, over 4 s
    0.0625
    """
    start, width = ways.implicit.mean_seconds, ways.explicit.mean_seconds
    if width == 0:
        return 0.0
    corners = [start, max(start, width), start + width]
    grid = np.unique(np.concatenate([curve.seconds, corners]))
    grid = grid[(grid >= start) & (grid <= start + width)]
    above = np.interp(grid, curve.seconds, curve.accuracy) - random_accuracy(grid, ways)
    return float(np.trapezoid(above, grid) / width)


def share_of_oracle(curve: Curve, ways: Ways) -> float | None:
    """Return the area between a curve and a random router's as a share of the oracle's.

    Returns:
        1 for the oracle's curve, 0 for a random router's; `None` where the oracle has nothing to gain either.
    """
    best = area_above_random(oracle_curve(ways), ways)
    return area_above_random(curve, ways) / best if best > 1e-12 else None


def area_difference(
    confidence: Array, other: Array, ways: Ways, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare the areas of two confidences, resampling questions in pairs.

    Returns:
        `difference` of `area_above_random` (confidence - other), and its percentile bootstrap interval `ci95`.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = rng.integers(0, len(ways), len(ways))
        drawn = ways[rows]
        found.append(
            area_above_random(escalation_curve(confidence[rows], drawn), drawn)
            - area_above_random(escalation_curve(other[rows], drawn), drawn)
        )
    difference = area_above_random(escalation_curve(confidence, ways), ways) - area_above_random(
        escalation_curve(other, ways), ways
    )
    low, high = np.percentile(found, [2.5, 97.5])
    return {"difference": difference, "ci95": [float(low), float(high)]}


@dataclass(frozen=True, eq=False)
class Routed:
    """What becomes of n questions under a rule.

    Args:
        confidence: (n,) in the implicit answers.
        escalated, at_once: (n,) whether a question is reasoned about in words, and whether the router has it answered
            without implicit tokens.
        way: the answers and times, those of the escalated included.
    """

    confidence: Array
    escalated: Array
    at_once: Array
    way: Way


def as_tensors(signals: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Return signals as `Escalation` reads them."""
    return {name: torch.as_tensor(np.asarray(values, dtype=float)) for name, values in signals.items()}


def route(rule: Escalation, signals: Mapping[str, Array], ways: Ways) -> Routed:
    """Return what becomes of questions whose signals (n,) and ways of answering are known.

    Raises:
        ValueError: when a signal of the rule is missing, or the router's way of answering.
    """
    tensors = as_tensors(signals)
    confidence = rule.confidence(tensors).numpy()
    escalated = confidence < rule.threshold
    at_once, direct = np.zeros_like(escalated), np.zeros_like(escalated)
    if rule.router is not None:
        chosen = rule.routed(tensors)[0].numpy()
        if rule.router["sends"] == "explicit":
            direct = chosen
        else:
            at_once = chosen
    if at_once.any() and ways.at_once is None:
        raise ValueError("the rule's router answers questions at once, and their answers are missing: add 'no_cot'.")
    first = ways.implicit if ways.at_once is None else ways.at_once.where(at_once, ways.implicit)
    escalated = (escalated | direct) & ~at_once
    seconds = np.where(direct, 0.0, first.seconds) + np.where(escalated, ways.explicit.seconds, 0.0)
    return Routed(confidence, escalated, at_once, Way(ways.explicit.where(escalated, first).correct, seconds))


def _points(ways: Ways, order: Array, counts: Array, thresholds: Array) -> Curve:
    """Return the curve of escalating the first `counts` questions of `order`."""
    n = len(ways)
    gains = ways.explicit.correct.astype(int) - ways.implicit.correct.astype(int)
    gained = np.append(0, np.cumsum(gains[order]))[counts]
    added = np.append(0.0, np.cumsum(ways.explicit.seconds[order]))[counts]
    return Curve(
        thresholds=thresholds,
        escalated=counts / n,
        accuracy=(ways.implicit.correct.sum() + gained) / n,
        seconds=ways.implicit.mean_seconds + added / n,
    )
