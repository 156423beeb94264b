"""Made-up questions of which all is known: how hard they are, who answers them, and noisy signals of it."""

import numpy as np

from semcot_hf.evaluation.escalation import Way, Ways


def draw_questions(n, seed):
    """Signals and ways of n questions; explicit reasoning is right more often, and takes ten times as long."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=n)

    def chance(shift, slope):
        return 1 / (1 + np.exp(-shift - slope * ease))

    signals = {
        "answer_probability": 1 / (1 + np.exp(-1 - ease - rng.normal(size=n))),
        "thought_entropy": np.exp(-ease + rng.normal(size=n)),
        "host_probability": 1 / (1 + np.exp(-2 * ease - rng.normal(size=n))),
    }
    ways = Ways(
        implicit=Way(rng.random(n) < chance(1.0, 1.5), np.full(n, 0.2)),
        explicit=Way(rng.random(n) < chance(2.2, 0.8), rng.gamma(4, 0.5, n)),
        at_once=Way(rng.random(n) < chance(-0.5, 3.0), np.full(n, 0.05)),
    )
    return signals, ways
