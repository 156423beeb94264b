"""Tests of the chosen rule: the least time that reaches the target, and a promise that holds on new questions."""

import numpy as np
import pytest
from drawn_questions import draw_questions

from semcot_hf.calibration import CalibrationOptions, Target, choose_rule, rule
from semcot_hf.evaluation.escalation import Way, Ways, route
from semcot_hf.evaluation.statistics import expected_difference_interval, expected_interval

SIGNALS = ("answer_probability", "thought_entropy")


@pytest.fixture
def one_partition(monkeypatch):
    """Cross-fitting with one partition into five, for speed."""
    monkeypatch.setattr(rule, "REPEATS", 1)
    monkeypatch.setattr(rule, "FOLDS", 5)


def options(target, **changes):
    return CalibrationOptions(Target.parse(target), **{"signals": SIGNALS, **changes})


def by_hand(right_above=20):
    """40 questions: implicit answers are right from a probability of one half on, explicit ones all."""
    probability = np.linspace(0, 0.975, 40)
    ways = Ways(Way(np.arange(40) >= right_above, [1.0] * 40), Way([True] * 40, [4.0] * 40))
    return {"answer_probability": probability}, ways


def test_the_fewest_questions_that_reach_the_target_go_on(one_partition):
    signals, ways = by_hand()
    chosen, reason = choose_rule(signals, ways, options("0.8", signals=("answer_probability",)))
    assert reason is None and chosen.router is None
    routed = route(chosen, signals, ways)
    # 12 of the 20 wrong answers; a margin may add some, and none that are right.
    escalated = int(routed.escalated.sum())
    assert 12 <= escalated <= 20 and routed.escalated.tolist() == [True] * escalated + [False] * (40 - escalated)
    expected = chosen.expected
    assert expected["target"] == "0.8" and expected["target_accuracy"] == 0.8 and expected["questions"] == 40
    assert expected["escalated"] == escalated / 40
    assert expected["seconds"] == pytest.approx(1 + 4 * escalated / 40)
    assert expected["share_of_explicit_seconds"] == pytest.approx(expected["seconds"] / 4)
    assert expected["ways"]["implicit"] == {"accuracy": 0.5, "seconds": 1.0}
    assert expected["wins"] == 0 and expected["difference"] == pytest.approx(-expected["losses"])
    assert 0.95 <= expected["area"] <= 1
    # A target that implicit answers reach by themselves.
    nothing, _ = choose_rule(signals, ways, options("0.5", signals=("answer_probability",)))
    assert nothing.threshold == 0 and nothing.expected["escalated"] == 0


def test_an_unreachable_target_says_what_is_reachable():
    signals, ways = draw_questions(60, 0)
    with pytest.raises(
        ValueError, match="target_accuracy='1', which is 1 on these 60 questions, is out of reach"
    ) as e:
        choose_rule(signals, ways, options("1"))
    reachable = str(e.value).rpartition("at most ")[2].rstrip(".")
    chosen, _ = choose_rule(signals, ways, options(reachable))
    assert route(chosen, signals, ways).way.accuracy >= float(reachable)


def test_a_router_skips_the_thought_where_that_saves_time(one_partition):
    signals, ways = draw_questions(400, 1)
    known = Way(signals["host_probability"] > 0.7, np.full(400, 0.05))
    costly = Ways(Way(ways.implicit.correct, np.full(400, 0.5)), ways.explicit, known)
    with_router = options("cot-1", router_signals=("host_probability",))
    chosen, reason = choose_rule(signals, costly, with_router)
    alone, why = choose_rule(signals, costly, options("cot-1"))
    assert reason is None and chosen.router["sends"] == "at_once" and alone.router is None and why is None
    routed = route(chosen, signals, costly)
    assert 0 < chosen.expected["at_once"] == routed.at_once.mean()
    assert routed.way.mean_seconds < 0.98 * route(alone, signals, costly).way.mean_seconds
    # Where the answer at once takes as long as the implicit one, there is nothing to save.
    slow = Ways(ways.implicit, ways.explicit, Way(ways.at_once.correct & ways.implicit.correct, ways.implicit.seconds))
    assert choose_rule(signals, slow, with_router)[1] == "it would not save time"
    never = Ways(ways.implicit, ways.explicit, Way([False] * 400, ways.at_once.seconds))
    assert "answers at once: 0 answers are right and 400 wrong" in choose_rule(signals, never, with_router)[1]


def test_the_choice_is_repeatable(one_partition):
    signals, ways = draw_questions(80, 2)
    first, again = (choose_rule(signals, ways, options("cot-1")) for _ in range(2))
    assert first == again
    other, _ = choose_rule(signals, ways, options("cot-1", seed=1))
    assert other.expected["accuracy"] != first[0].expected["accuracy"]


def test_folds_have_their_share_of_both_labels():
    labels = np.arange(50) < 7
    folds = rule._folds(labels, np.random.default_rng(0))
    assert np.bincount(folds).tolist() == [5] * 10
    assert sorted(np.bincount(folds[labels], minlength=10).tolist()) == [0] * 3 + [1] * 7


def test_the_promise_holds_on_new_questions_at_its_rate(one_partition):
    """Rules of 40 calibrations on 120 questions, applied to many others, and to 200 as an evaluation would."""
    many, ways = draw_questions(20_000, 99)
    held, differences, evaluated, apparent, true = [], [], [], [], []
    for seed in range(40):
        chosen, _ = choose_rule(*draw_questions(120, seed), options("cot-1"))
        expected, routed = chosen.expected, route(chosen, many, ways)
        low, high = expected["accuracy_ci95"]
        held.append(low <= routed.way.accuracy <= high)
        low, high = expected["difference_ci95"]
        differences.append(low <= routed.way.accuracy - ways.explicit.accuracy <= high)
        rows = np.random.default_rng(seed).integers(0, 20_000, 200)
        right, explicit = routed.way.correct[rows].mean(), ways.explicit.correct[rows].mean()
        low, high = expected_interval(expected["accuracy"], 120, 200)
        below, above = expected_difference_interval(expected["wins"], expected["losses"], 120, 200)
        evaluated.append(low <= right <= high and below <= right - explicit <= above)
        apparent.append(route(chosen, *draw_questions(120, seed)).way.accuracy - expected["accuracy"])
        true.append(routed.way.accuracy - ways.explicit.accuracy)
    # 95 % each, less three standard deviations of 40 draws; the last two together.
    assert np.mean(held) >= 0.85 and np.mean(differences) >= 0.85 and np.mean(evaluated) >= 0.8
    # An interval that always holds would be too wide: its width is that of a share of 120 questions.
    assert high - low < 0.25
    # What is seen on the questions of the choice is too good; the promise is not, and the target is nearly met.
    assert np.mean(apparent) > 0.005 and abs(np.mean(true) + 0.01) < 0.015


@pytest.mark.parametrize("target", ["90", "cot-", "nan", "-0.1", "no_cot-1", "0", "1.01"])
def test_bad_targets(target):
    with pytest.raises(ValueError, match=f"target_accuracy='{target}': must be a fraction above 0 and at most 1"):
        Target.parse(target)


def test_targets():
    ways = draw_questions(50, 3)[1]
    assert Target.parse("cot").on(ways) == ways.explicit.accuracy
    assert Target.parse("cot-2.5").on(ways) == pytest.approx(ways.explicit.accuracy - 0.025)
    assert Target.parse(" cot + 1 ").on(ways) == pytest.approx(ways.explicit.accuracy + 0.01)
    assert Target.parse("0.7").on(ways) == 0.7
