"""Statistics of judged answers: intervals, paired tests, spread over seeds, latency."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

_Z95 = NormalDist().inv_cdf(0.975)


def accuracy_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy (Wilson 1927), which holds for few questions and near 0 and 1 too.

    Args:
        correct: number of right answers.
        n: number of questions.

    Returns:
        The bounds as fractions within [0, 1].

    Raises:
        ValueError: when `n` is not positive or `correct` not within 0 and `n`.

    >>> [round(bound, 4) for bound in accuracy_interval(8, 10)]
    [0.4902, 0.9433]
    >>> [round(bound, 4) for bound in accuracy_interval(500, 500)]
    [0.9924, 1.0]
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct={correct}, n={n}: need 1 question or more and 0 <= correct <= n.")
    share, spread = correct / n, _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return low, high


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test: do two runs differ on the same questions?

    Only questions that one run answers rightly and the other does not tell anything; under the null hypothesis each
    falls to either side with probability one half.

    Args:
        a, b: verdicts of the two runs, question by question.

    Raises:
        ValueError: when the two are not of one length.

    >>> mcnemar([True] * 9 + [False], [False] * 8 + [True, True])  # 8 questions against 1: 2 * (1 + 9) / 2**9
    0.0390625
    >>> mcnemar([True, False], [True, False])
    1.0
    """
    _check_paired(a, b)
    wins = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    losses = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n, fewer = wins + losses, min(wins, losses)
    term = tail = 1
    for i in range(1, fewer + 1):
        term = term * (n - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / 2**n)


def paired_difference_interval(
    a: Sequence[bool], b: Sequence[bool], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of accuracy(a) - accuracy(b), resampling questions in pairs.

    Each question's difference is -1, 0 or 1, so drawing questions with replacement is drawing the three counts from
    a multinomial distribution.

    Args:
        a, b: verdicts of the two runs, question by question.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: when the two are not of one length, or empty.

    >>> paired_difference_interval([True] * 60 + [False] * 40, [False] * 20 + [True] * 40 + [False] * 40)
    (0.12, 0.28)
    >>> paired_difference_interval([True, False], [True, False])
    (0.0, 0.0)
    """
    _check_paired(a, b)
    n = len(a)
    if n == 0:
        raise ValueError("a and b are empty: a difference needs at least one question.")
    wins = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    losses = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    shares = [wins / n, losses / n, (n - wins - losses) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.percentile((counts[:, 0] - counts[:, 1]) / n, [2.5, 97.5])
    return float(low), float(high)


def summarize_seeds(values: Sequence[float]) -> dict:
    """Mean, sample standard deviation (0 for one value) and number of the results of several seeds.

    Raises:
        ValueError: when there are no values.

    >>> summarize_seeds([0.5, 0.7, 0.9])
    {'mean': 0.7, 'sd': 0.2, 'n': 3}
    """
    if not values:
        raise ValueError("values is empty: give the result of at least one seed.")
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    sd = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
    return {"mean": round(mean, 12), "sd": round(sd, 12), "n": len(values)}


def summarize_latency(seconds: Sequence[float]) -> dict:
    """Median and 95th percentile (linear interpolation) of measured times, in seconds, and their number.

    Raises:
        ValueError: when there are no measurements.

    >>> summarize_latency([0.1, 0.2, 0.3, 0.4, 1.4])
    {'median': 0.3, 'p95': 1.2, 'n': 5}
    """
    if not len(seconds):
        raise ValueError("seconds is empty: measure at least one question.")
    median, p95 = np.percentile(seconds, [50, 95])
    return {"median": round(float(median), 9), "p95": round(float(p95), 9), "n": len(seconds)}


def _check_paired(a, b):
    if len(a) != len(b):
        raise ValueError(
            f"a has {len(a)} verdicts and b has {len(b)}: a paired comparison needs the same questions in both."
        )
