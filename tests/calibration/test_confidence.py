"""Tests of fitted confidences: against scikit-learn's own predictions, and of data that determine none."""

import numpy as np
import pytest
import torch
from drawn_questions import draw_questions
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from semcot_hf.calibration.confidence import fit_confidence
from semcot_hf.modeling.escalation_semcot import Escalation

NAMES = ["answer_probability", "thought_entropy"]


def confidence(calibration, names, signals):
    tensors = {name: torch.tensor(values) for name, values in signals.items()}
    return Escalation(0.5, signals=list(names), calibration=calibration).confidence(tensors).numpy()


def test_the_model_computes_what_scikit_learn_predicts():
    (signals, ways), (new, _) = draw_questions(300, 0), draw_questions(100, 1)
    fitted = fit_confidence(signals, NAMES, ways.implicit.correct)
    seen, unseen = (np.stack([part[name] for name in NAMES], axis=1) for part in (signals, new))
    mean, scale = seen.mean(axis=0), seen.std(axis=0)
    model = LogisticRegression().fit((seen - mean) / scale, ways.implicit.correct)
    wanted = model.predict_proba((unseen - mean) / scale)[:, 1]
    assert confidence(fitted, NAMES, new) == pytest.approx(wanted, abs=1e-3)
    assert fitted["coefficients"][0] > 0 > fitted["coefficients"][1]


@pytest.mark.parametrize(("name", "rises"), [("answer_probability", True), ("thought_entropy", False)])
def test_isotonic_regression_rises_or_falls(name, rises):
    (signals, ways), (new, _) = draw_questions(300, 2), draw_questions(100, 3)
    fitted = fit_confidence(signals, [name], ways.implicit.correct, "isotonic")
    model = IsotonicRegression(increasing=rises, out_of_bounds="clip").fit(signals[name], ways.implicit.correct)
    assert confidence(fitted, [name], new) == pytest.approx(model.predict(new[name]))


def test_a_constant_signal_counts_for_nothing():
    signals, ways = draw_questions(100, 4)
    signals["thought_ended"] = np.full(100, 0.1) + np.array([0, 1e-17] * 50)
    fitted = fit_confidence(signals, ["thought_ended", *NAMES], ways.implicit.correct)
    alone = fit_confidence(signals, NAMES, ways.implicit.correct)
    assert fitted["coefficients"] == [0, *alone["coefficients"]] and fitted["scales"][0] == 1
    with pytest.raises(ValueError, match="signals=.'thought_ended'.: each has the same value for all questions"):
        fit_confidence(signals, ["thought_ended"], ways.implicit.correct)


def test_values_that_are_no_numbers_are_left_out():
    signals, ways = draw_questions(100, 5)
    kept = np.arange(100) % 10 > 0
    broken = {name: np.where(kept, values, np.nan) for name, values in signals.items()}
    fitted = fit_confidence(broken, NAMES, ways.implicit.correct)
    assert fitted == fit_confidence(
        {name: values[kept] for name, values in signals.items()}, NAMES, ways.implicit.correct[kept]
    )
    found = confidence(fitted, NAMES, broken)
    assert (found[~kept] == 0).all() and (found[kept] > 0).all()
    nothing = {"answer_probability": np.full(100, np.nan)}
    with pytest.raises(ValueError, match="0 answers are right and 0 wrong .of 100 questions, 100 of them without"):
        fit_confidence(nothing, ["answer_probability"], ways.implicit.correct)


def test_perfect_separation_stays_finite():
    signals = {"answer_probability": np.linspace(0, 1, 40)}
    fitted = fit_confidence(signals, ["answer_probability"], np.arange(40) >= 20)
    found = confidence(fitted, ["answer_probability"], signals)
    assert np.isfinite(found).all() and (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    ("right", "message"),
    [
        (
            40,
            "40 answers are right and 0 wrong .of 40 questions.: a confidence needs at least 5 of each; calibrate on",
        ),
        (0, "0 answers are right and 40 wrong"),
        (36, "36 answers are right and 4 wrong"),
    ],
)
def test_too_few_of_a_kind_are_refused(right, message):
    signals, _ = draw_questions(40, 6)
    with pytest.raises(ValueError, match=message):
        fit_confidence(signals, NAMES, np.arange(40) < right)


def test_bad_arguments():
    signals, ways = draw_questions(40, 7)
    with pytest.raises(ValueError, match="calibration='forest': must be one of logistic, isotonic"):
        fit_confidence(signals, NAMES, ways.implicit.correct, "forest")
    with pytest.raises(
        ValueError, match="calibration='isotonic' takes one signal, got signals=.'answer_probability',"
    ):
        fit_confidence(signals, NAMES, ways.implicit.correct, "isotonic")
    with pytest.raises(ValueError, match="have no agreement; choose among answer_probability, thought_entropy"):
        fit_confidence(signals, ["agreement"], ways.implicit.correct)
