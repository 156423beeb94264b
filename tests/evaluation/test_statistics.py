"""Tests of the evaluation's statistics against hand computation and other formulas."""

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest

from semcot_hf.evaluation import accuracy_interval, mcnemar, paired_difference_interval, summarize_latency


@pytest.mark.parametrize(("correct", "n"), [(0, 7), (1, 1), (37, 80), (973, 1000)])
def test_accuracy_interval_is_wilsons(correct, n):
    wanted = binomtest(correct, n).proportion_ci(method="wilson")
    assert accuracy_interval(correct, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_accuracy_interval_refuses_impossible_counts():
    with pytest.raises(ValueError, match="correct=3, n=2"):
        accuracy_interval(3, 2)


@pytest.mark.parametrize(("wins", "losses", "both"), [(0, 0, 5), (5, 5, 0), (1, 9, 40), (700, 100, 900), (3000, 0, 9)])
def test_mcnemar_is_the_exact_binomial_test(wins, losses, both):
    a = [True] * wins + [False] * losses + [True] * both
    b = [False] * wins + [True] * losses + [True] * both
    wanted = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(a, b) == pytest.approx(wanted, rel=1e-9, abs=1e-300)
    assert mcnemar(b, a) == mcnemar(a, b)


def test_paired_functions_refuse_runs_of_different_length():
    with pytest.raises(ValueError, match="a has 2 verdicts and b has 1"):
        mcnemar([True, False], [True])


def test_bootstrap_equals_resampling_the_questions():
    rng = random.Random(1)
    a = [rng.random() < 0.8 for _ in range(300)]
    b = [x if rng.random() < 0.7 else rng.random() < 0.5 for x in a]
    difference = np.array(a, dtype=float) - np.array(b, dtype=float)
    drawn = np.random.default_rng(5).integers(0, 300, size=(10_000, 300))
    wanted = np.percentile(difference[drawn].mean(axis=1), [2.5, 97.5])
    assert paired_difference_interval(a, b) == pytest.approx(tuple(wanted), abs=0.01)
    assert paired_difference_interval(a, b, seed=3) == paired_difference_interval(a, b, seed=3)


def test_latency_percentiles():
    times = [0.01 * i for i in range(1, 101)]
    assert summarize_latency(times) == {"median": 0.505, "mean": 0.505, "p95": 0.9505, "n": 100}
    assert math.isclose(summarize_latency([2.0])["p95"], 2.0)
