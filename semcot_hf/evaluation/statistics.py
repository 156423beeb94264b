"""Statistics of verdicts and times: intervals, paired tests, spread over seeds, latency."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

# The normal distribution's quantile of two-sided 95 % intervals.
_Z = 1.959963984540054


def accuracy_interval(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an accuracy (Wilson 1927), also valid for few questions and near 0 and 1.

    Args:
        correct: number of correct answers.
        n: number of questions.

    Returns:
        The bounds as fractions within [0, 1].

    Raises:
        ValueError: when `n` is not positive or `correct` is not within 0 and `n`.

    >>> [round(bound, 4) for bound in accuracy_interval(8, 10)]
    [0.4902, 0.9433]
    >>> [round(bound, 4) for bound in accuracy_interval(500, 500)]
    [0.9924, 1.0]
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct={correct}, n={n}: need 1 question or more and 0 <= correct <= n.")
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def expected_interval(share: float, n: int, new: float = math.inf) -> tuple[float, float]:
    """Return the 95 % interval in which the share of `new` questions is expected, from a share of `n` others.

    Agresti and Coull's interval (1998), which adds about two right and two wrong answers, with the variance of both
    samples.

    Args:
        share: fraction of the `n` questions, also a mean of fractions.
        n: number of questions that it was estimated on.
        new: number of new questions.

    >>> [round(bound, 3) for bound in expected_interval(0.8, 100)]
    [0.71, 0.867]
    >>> [round(bound, 3) for bound in expected_interval(0.8, 100, new=100)]
    [0.677, 0.901]
    """
    size = n + _Z**2
    middle = (n * share + _Z**2 / 2) / size
    half = _Z * math.sqrt(middle * (1 - middle) * (1 / size + 1 / new))
    return max(0.0, middle - half), min(1.0, middle + half)


def expected_difference_interval(wins: float, losses: float, n: int, new: float = math.inf) -> tuple[float, float]:
    """Return the 95 % interval of a paired difference of accuracies on `new` questions, from `n` others.

    Bonett and Price's interval (2012): one win and one loss are added, so that it has a width also without any.

    Args:
        wins, losses: share of the `n` questions that only the first, and only the second run answers correctly.
        n: number of questions that they were estimated on.
        new: number of new questions.

    >>> [round(bound, 3) for bound in expected_difference_interval(0.1, 0.05, 100)]
    [-0.03, 0.128]
    """
    won, lost = ((n * share + 1) / (n + 2) for share in (wins, losses))
    variance = won + lost - (won - lost) ** 2
    half = _Z * math.sqrt(variance * (1 / (n + 2) + 1 / new))
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the two-sided p-value of McNemar's exact test of whether two runs differ on the same questions.

    The test uses only the questions that exactly one run answers correctly. Under the null hypothesis each of them
    falls to either run with probability one half.

    Args:
        a, b: verdicts of the two runs, question by question.

    Raises:
        ValueError: when the two differ in length.

    >>> mcnemar([True] * 9 + [False], [False] * 8 + [True, True])  # 8 questions against 1: 2 * (1 + 9) / 2**9
    0.0390625
    >>> mcnemar([True, False], [True, False])
    1.0
    """
    wins, losses = _wins_and_losses(a, b)
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired_difference_interval(
    a: Sequence[bool], b: Sequence[bool], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of accuracy(a) - accuracy(b), resampling questions in pairs.

    A question's difference is -1, 0 or 1. Drawing questions with replacement is therefore drawing the three counts
    from a multinomial distribution.

    Args:
        a, b: verdicts of the two runs, question by question.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: when the two differ in length or are empty.

    >>> paired_difference_interval([True] * 60 + [False] * 40, [False] * 20 + [True] * 40 + [False] * 40)
    (0.12, 0.28)
    >>> paired_difference_interval([True, False], [True, False])
    (0.0, 0.0)
    """
    wins, losses = _wins_and_losses(a, b)
    n = len(a)
    if n == 0:
        raise ValueError("a and b are empty: a difference needs at least one question.")
    shares = [wins / n, losses / n, (n - wins - losses) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.percentile((counts[:, 0] - counts[:, 1]) / n, [2.5, 97.5])
    return float(low), float(high)


def summarize_seeds(values: Sequence[float]) -> dict[str, float]:
    """Return the mean, sample standard deviation (0 for one value) and number of several seeds' results.

    Raises:
        ValueError: when there are no values.

    >>> summarize_seeds([0.5, 0.7, 0.9])
    {'mean': 0.7, 'sd': 0.2, 'n': 3}
    """
    if not values:
        raise ValueError("values is empty: give the result of at least one seed.")
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 12), "sd": round(sd, 12), "n": len(values)}


def summarize_latency(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, mean, 95th percentile (linear interpolation) and number of measured times in seconds.

    Raises:
        ValueError: when there are no measurements.

    >>> summarize_latency([0.1, 0.2, 0.3, 0.4, 1.4])
    {'median': 0.3, 'mean': 0.48, 'p95': 1.2, 'n': 5}
    """
    if not len(seconds):
        raise ValueError("seconds is empty: measure at least one question.")
    median, p95 = np.percentile(seconds, [50, 95])
    return {
        "median": round(float(median), 9),
        "mean": round(statistics.fmean(seconds), 9),
        "p95": round(float(p95), 9),
        "n": len(seconds),
    }


def _wins_and_losses(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int]:
    """Return the numbers of questions that only `a` and only `b` answers correctly."""
    if len(a) != len(b):
        raise ValueError(
            f"a has {len(a)} verdicts and b has {len(b)}: a paired comparison needs the same questions in both."
        )
    pairs = list(zip(a, b, strict=True))
    return sum(bool(x) and not y for x, y in pairs), sum(bool(y) and not x for x, y in pairs)
