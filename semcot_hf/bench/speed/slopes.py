"""How latency grows with one quantity: a straight line with its R^2, and the exponent of a power law."""

from collections.abc import Sequence

import numpy as np

# Exponents between the two count as linear.
SUBLINEAR, LINEAR = 0.9, 1.1


def fit_growth(xs: Sequence[float], seconds: Sequence[float]) -> dict:
    """Fit a least-squares line to (x, seconds), and a power law to the points with positive x.

    Args:
        xs: at least three values, of which at least two are positive.
        seconds: the median latency at each.

    Returns:
        `slope` (seconds per unit), `intercept` (seconds), `r2`, `exponent`, and `growth`: "sublinear" below an
        exponent of 0.9, "linear" up to 1.1, "superlinear" above.

    Raises:
        ValueError: for fewer points.

    >>> fit_growth([1, 2, 4, 8], [3.0, 5.0, 9.0, 17.0])  # 1 + 2 x
    {'points': 4, 'slope': 2.0, 'intercept': 1.0, 'r2': 1.0, 'exponent': 0.8355, 'growth': 'sublinear'}
    >>> fit_growth([1, 10, 100], [2.0, 20.0, 200.0])["growth"], fit_growth([1, 2, 3], [1.0, 4.0, 9.0])["growth"]
    ('linear', 'superlinear')
    """
    x, y = np.asarray(xs, dtype=float), np.asarray(seconds, dtype=float)
    positive = x > 0
    if len(x) < 3 or positive.sum() < 2:
        raise ValueError(f"xs={list(xs)}: a fit needs at least three values, two of them positive.")
    slope, intercept = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    rest = ((y - intercept - slope * x) ** 2).sum()
    exponent = float(np.polyfit(np.log(x[positive]), np.log(y[positive]), 1)[0])
    growth = "sublinear" if exponent < SUBLINEAR else "linear" if exponent <= LINEAR else "superlinear"
    return {
        "points": len(x),
        "slope": float(f"{slope:.6g}"),
        # Rounding leaves a tiny intercept of a line through the origin.
        "intercept": float(f"{intercept:.6g}") if abs(intercept) > 1e-9 * np.abs(y).max() else 0.0,
        "r2": round(float(1 - rest / spread), 4) if spread > 0 else 1.0,
        "exponent": round(exponent, 4),
        "growth": growth,
    }


def growth_of_rows(rows: Sequence[dict], factors: Sequence[str]) -> list[dict]:
    """Fit the growth of every sweep: three or more rows of one machine whose settings differ in one factor only.

    Args:
        rows: rows of a report, with `setting`, `environment` and `latency_s`.
        factors: names within `setting` that may be swept.

    Returns:
        For each sweep its `setting` without the factor, `environment`, `factor`, and the figures of `fit_growth`.
    """
    fits = []
    for factor in factors:
        groups: dict[tuple, list[dict]] = {}
        for row in rows:
            rest = tuple((name, value) for name, value in row["setting"].items() if name != factor)
            groups.setdefault((row["environment"], rest), []).append(row)
        for (environment, rest), group in groups.items():
            points = sorted((row["setting"][factor], row["latency_s"]) for row in group)
            if len(points) >= 3:
                where = {"setting": dict(rest), "environment": environment, "factor": factor}
                fits.append({**where, **fit_growth(*zip(*points, strict=True))})
    return fits
