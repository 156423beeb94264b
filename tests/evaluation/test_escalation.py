"""Tests of the curves of escalation and their areas on hand-made questions, and of the intervals for new ones."""

import numpy as np
import pytest

from semcot_hf.evaluation.escalation import (
    Way,
    Ways,
    area_above_random,
    area_difference,
    escalation_curve,
    oracle_curve,
    random_accuracy,
    route,
    share_of_oracle,
)
from semcot_hf.evaluation.statistics import accuracy_interval, expected_difference_interval, expected_interval
from semcot_hf.modeling.escalation_semcot import Escalation

# Two questions that reasoning helps, one that it harms, one that nobody answers, four that both answer.
IMPLICIT = [0, 0, 1, 0, 1, 1, 1, 1]
EXPLICIT = [1, 1, 0, 0, 1, 1, 1, 1]


def ways(seconds=4.0):
    return Ways(Way(IMPLICIT, [1.0] * 8), Way(EXPLICIT, [seconds] * 8), Way([0] * 8, [0.5] * 8))


def drawn_ways(n, seed):
    rng = np.random.default_rng(seed)
    return Ways(Way(rng.random(n) < 0.7, rng.random(n)), Way(rng.random(n) < 0.85, 1 + 5 * rng.random(n)))


def test_every_threshold_of_the_curve_does_what_the_rule_does():
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 11, 60) / 10
    drawn = drawn_ways(60, 1)
    curve = escalation_curve(confidence, drawn)
    finite = np.isfinite(curve.thresholds)
    # Questions of confidence 1 stay: thresholds are at most 1.
    assert not finite[-1] and finite[:-1].all() and len(finite) == len(np.unique(confidence)) + 1
    for threshold, escalated, accuracy, seconds in zip(
        curve.thresholds[finite],
        curve.escalated[finite],
        curve.accuracy[finite],
        curve.seconds[finite],
        strict=True,
    ):
        routed = route(Escalation(threshold), {"answer_probability": confidence}, drawn)
        assert routed.escalated.mean() == pytest.approx(escalated)
        assert routed.way.accuracy == pytest.approx(accuracy) and routed.way.mean_seconds == pytest.approx(seconds)
    assert curve.accuracy[-1] == pytest.approx(drawn.explicit.accuracy)


def test_the_oracle_is_above_every_order():
    drawn, rng = drawn_ways(50, 2), np.random.default_rng(3)
    best = oracle_curve(drawn)
    assert best.accuracy[-1] == np.mean(drawn.implicit.correct | drawn.explicit.correct)
    for _ in range(20):
        curve = escalation_curve(rng.random(50), drawn)
        reached = np.interp(curve.seconds, best.seconds, best.accuracy)
        assert (curve.accuracy <= reached + 1e-12).all()


def test_areas_by_hand():
    """Times from 1 s (none escalated) to 5 s (all): 0.5 s more for each of the 8; chance is at 5/8 + (t - 1) / 24."""
    assert random_accuracy(np.array([1.0, 4.0, 5.0]), ways()).tolist() == [5 / 8, 6 / 8, 6 / 8]
    # Right away the two that are helped, 7/8 at 2 s, then no more: (2/8 rise over 1 s, 7/8 for 3 s) less chance.
    oracle = (5 / 8 + 7 / 8) / 2 + 3 * 7 / 8
    chance = 3 * (5 / 8 + 6 / 8) / 2 + 6 / 8
    assert area_above_random(oracle_curve(ways()), ways()) == pytest.approx((oracle - chance) / 4)
    # The same order, then all others, the one that is harmed last: 7/8 from 2 s to 4.5 s, 6/8 at 5 s.
    good = escalation_curve(np.array([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7]), ways())
    area = (5 / 8 + 7 / 8) / 2 + 2.5 * 7 / 8 + 0.5 * (7 / 8 + 6 / 8) / 2 - chance
    assert area_above_random(good, ways()) == pytest.approx(area / 4)
    assert share_of_oracle(good, ways()) == pytest.approx(area / (oracle - chance))
    assert share_of_oracle(oracle_curve(ways()), ways()) == pytest.approx(1)
    bad = escalation_curve(np.array([0.9, 0.8, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7]), ways())
    assert share_of_oracle(bad, ways()) < 0


def test_a_confidence_that_tells_nothing_pays_for_the_answers_that_it_discards():
    """All questions in one group: the straight line from 5/8 at 1 s to 6/8 at 5 s, 1 s behind a random router's."""
    flat = escalation_curve(np.full(8, 0.5), ways())
    assert flat.thresholds.tolist() == [0.0, 0.75] and flat.seconds.tolist() == [1.0, 5.0]
    chance = 3 * (5 / 8 + 6 / 8) / 2 + 6 / 8
    assert area_above_random(flat, ways()) == pytest.approx((4 * (5 / 8 + 6 / 8) / 2 - chance) / 4)


def test_areas_where_nothing_is_to_be_gained_or_reasoning_is_quicker():
    alike = Ways(Way(EXPLICIT, [1] * 8), Way(EXPLICIT, [4] * 8))
    assert share_of_oracle(escalation_curve(np.arange(8) / 8, alike), alike) is None
    free = Ways(Way(IMPLICIT, [1] * 8), Way(EXPLICIT, [0] * 8))
    assert area_above_random(oracle_curve(free), free) == 0
    # Reasoning takes less time than an implicit answer: a random router takes no implicit answers at all.
    quick = ways(seconds=0.5)
    assert random_accuracy(np.array([1.0]), quick).tolist() == [6 / 8]
    assert area_above_random(oracle_curve(quick), quick) < 1 / 8


def test_areas_are_compared_in_pairs():
    drawn, rng = drawn_ways(200, 4), np.random.default_rng(5)
    useful = np.where(drawn.implicit.correct, 0.6, 0.3) + 0.3 * rng.random(200)
    found = area_difference(useful, rng.random(200), drawn, resamples=200)
    low, high = found["ci95"]
    assert 0 < low < found["difference"] < high
    assert area_difference(useful, useful, drawn, resamples=20) == {"difference": 0.0, "ci95": [0.0, 0.0]}


def test_routers():
    signals = {"answer_probability": np.full(8, 0.5), "host_probability": np.arange(8) / 8}
    router = {"signals": ["host_probability"], "calibration": None, "threshold": 0.5, "sends": "at_once"}
    rule = Escalation(0.7, router=router)
    routed = route(rule, signals, ways())
    assert routed.at_once.tolist() == [False] * 4 + [True] * 4 and (routed.escalated == ~routed.at_once).all()
    assert routed.way.correct.tolist() == [*map(bool, EXPLICIT[:4]), *[False] * 4]
    assert routed.way.seconds.tolist() == [5.0] * 4 + [0.5] * 4
    direct = route(Escalation(0.0, router={**router, "sends": "explicit"}), signals, ways())
    assert direct.escalated.tolist() == [True] * 4 + [False] * 4
    assert direct.way.seconds.tolist() == [4.0] * 4 + [1.0] * 4
    with pytest.raises(ValueError, match="their answers are missing: add 'no_cot'"):
        route(rule, signals, Ways(ways().implicit, ways().explicit))


def test_bad_input():
    with pytest.raises(ValueError, match=r"correct has shape \(2,\) and seconds \(1,\)"):
        Way([True, False], [1.0])
    with pytest.raises(ValueError, match="seconds holds negative values"):
        Way([True, False], [1.0, np.nan])
    with pytest.raises(ValueError, match=r"the ways have \[1, 2\] questions"):
        Ways(Way([True], [1.0]), Way([True, False], [1.0, 1.0]))
    with pytest.raises(ValueError, match=r"confidence has shape \(3,\): give one value for each of 8 questions"):
        escalation_curve(np.zeros(3), ways())
    assert escalation_curve(np.full(8, np.nan), ways()).thresholds.tolist() == [0.0, 0.5]


def test_the_interval_for_infinitely_many_questions_contains_wilsons():
    for correct, n in [(0, 7), (37, 80), (500, 500)]:
        low, high = expected_interval(correct / n, n)
        wilson = accuracy_interval(correct, n)
        assert low <= wilson[0] and wilson[1] <= high and high - low <= 1.3 * (wilson[1] - wilson[0])


def test_intervals_contain_new_results_at_their_rate():
    """Shares and paired differences of 80 questions, and what 120 new ones give, over 3000 draws."""
    rng, n, new, draws = np.random.default_rng(6), 80, 120, 3000
    for wins, losses in [(0.1, 0.05), (0.02, 0.03), (0.0, 0.0)]:
        shares = [wins, losses, 1 - wins - losses]
        before, after = (rng.multinomial(size, shares, draws) / size for size in (n, new))
        held = [
            low <= b[0] - b[1] <= high
            for a, b in zip(before, after, strict=True)
            for low, high in [expected_difference_interval(a[0], a[1], n, new)]
        ]
        assert np.mean(held) >= 0.94
    for share in (0.6, 0.95):
        before, after = (rng.binomial(size, share, draws) / size for size in (n, new))
        held = [
            low <= b <= high
            for a, b in zip(before, after, strict=True)
            for low, high in [expected_interval(a, n, new)]
        ]
        assert 0.94 <= np.mean(held) <= 0.99
