"""Confidence in answers, fitted to signals by scikit-learn: logistic regression, or isotonic regression over one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ..evaluation.escalation import Array

KINDS = ("logistic", "isotonic")
# Fewer of either kind determine no confidence; cross-fitting leaves a tenth of them out.
LEAST = 5

Signals = Mapping[str, Array]


def fit_confidence(
    signals: Signals, names: Sequence[str], correct: Array, kind: str = "logistic", *, least: int = LEAST
) -> dict[str, Any]:
    """Return a calibration in the form of `Escalation`: how signals become the probability that an answer is right.

    Questions with a signal that is no number are left out; their confidence is 0. A signal that is the same for all
    questions gets the coefficient 0.

    Args:
        signals: (n,) by name.
        names: those that are used, in the order of the calibration.
        correct: (n,) whether the answers are right.
        kind: "logistic" (logistic regression over the standardized signals, with scikit-learn's default penalty), or
            "isotonic" (isotonic regression over one signal, rising or falling, as the two correlate).
        least: fewest right and wrong answers.

    Raises:
        ValueError: for signals that are missing or all alike, several signals with "isotonic", or fewer than `least`
            right or wrong answers.
    """
    if kind not in KINDS:
        raise ValueError(f"calibration={kind!r}: must be one of {', '.join(KINDS)}.")
    missing = [name for name in names if name not in signals]
    if missing:
        raise ValueError(
            f"signals={list(names)}: this model's answers have no {', '.join(missing)}; choose among "
            f"{', '.join(signals)}."
        )
    if kind == "isotonic" and len(names) != 1:
        raise ValueError(f"calibration='isotonic' takes one signal, got signals={list(names)}: use 'logistic'.")
    values = np.stack([np.asarray(signals[name], dtype=float) for name in names], axis=1)
    known = np.isfinite(values).all(axis=1)
    values, labels = values[known], np.asarray(correct, dtype=bool)[known]
    right, wrong = int(labels.sum()), int((~labels).sum())
    if min(right, wrong) < least:
        without = f", {len(known) - len(labels)} of them without a value of a signal" if not known.all() else ""
        raise ValueError(
            f"{right} answers are right and {wrong} wrong (of {len(known)} questions{without}): a confidence needs at "
            f"least {least} of each; calibrate on more questions."
        )
    scales = values.std(axis=0)
    # Rounding gives equal values a tiny deviation.
    varies = scales > 1e-9 * np.maximum(1, np.abs(values).max(axis=0))
    if not varies.any():
        raise ValueError(
            f"signals={list(names)}: each has the same value for all questions, which says nothing; choose others."
        )
    with config_context(assume_finite=True, skip_parameter_validation=True):
        if kind == "isotonic":
            rises = bool(np.corrcoef(values[:, 0], labels)[0, 1] >= 0)
            found = IsotonicRegression(increasing=rises).fit(values[:, 0], labels)
            return {"kind": kind, "x": found.X_thresholds_.tolist(), "y": found.y_thresholds_.tolist()}
        means, scales = values.mean(axis=0), np.where(varies, scales, 1.0)
        model = LogisticRegression(max_iter=1000).fit(((values - means) / scales)[:, varies], labels)
    coefficients = np.zeros(len(names))
    coefficients[varies] = model.coef_[0]
    return {
        "kind": kind,
        "coefficients": coefficients.tolist(),
        "intercept": float(model.intercept_[0]),
        "means": means.tolist(),
        "scales": scales.tolist(),
    }
