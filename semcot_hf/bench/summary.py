"""The figures of a task across seeds: accuracy, cost, and paired tests against SemCoT (soft words)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..evaluation.predictions import read_predictions
from ..evaluation.statistics import accuracy_interval, summarize_seeds
from .catalogue import BENCH_METHODS, SOFT_WORDS

K = TypeVar("K")
# A finished run, as `run_method` returns it, and its folder.
Run = tuple[dict, Path]


def summarize_task(runs: Sequence[Run]) -> dict:
    """Summarize the finished runs of one task.

    Args:
        runs: as `run_method` returns and stores them.

    Returns:
        `task`, and `rows`, one for each method.
    """
    by_method = defaultdict(list)
    for run, folder in runs:
        by_method[run["settings"]["method"]].append((run, folder))
    verdicts = {name: _verdicts(found) for name, found in by_method.items()}
    rows = [_row(name, by_method[name], verdicts) for name in BENCH_METHODS if name in by_method]
    return {"task": runs[0][0]["settings"]["task"], "rows": rows}


def paired_p_value(a: np.ndarray, b: np.ndarray, *, resamples: int = 9_999, seed: int = 0) -> float:
    """Test the hypothesis of equal accuracy on the same questions: two-sided sign-flip test over questions.

    Under the null hypothesis the sign of each question's difference is random. The seeds of a question are not
    independent, so each question counts once, with the mean over seeds.

    Args:
        a, b: (seeds, questions), 1 for a correct answer and 0 for a wrong one.
        resamples: number of random sign assignments.
        seed: of the resampling.

    >>> paired_p_value(np.ones((1, 50)), np.zeros((1, 50)))
    0.0001
    >>> paired_p_value(np.ones((2, 50)), np.ones((3, 50)))
    1.0
    """
    difference = np.mean(a, axis=0) - np.mean(b, axis=0)
    difference = difference[difference != 0]
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(resamples, len(difference)))
    extreme = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9
    return float((1 + extreme.sum()) / (1 + resamples))


def seeds_interval(verdicts: np.ndarray, *, resamples: int = 4_999, seed: int = 0) -> tuple[float, float]:
    """Compute a 95 % interval of the mean accuracy of one or more trainings on the same questions.

    The interval is Wilson's for the questions, widened to a percentile bootstrap that resamples both trainings and
    questions. With two or three trainings it is a rough bound, since they say little about their spread.

    Args:
        verdicts: (seeds, questions), 1 for a correct answer and 0 for a wrong one.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    >>> [round(bound, 3) for bound in seeds_interval(np.ones((3, 100)))]  # as for one seed
    [0.963, 1.0]
    >>> [round(bound, 1) for bound in seeds_interval(np.repeat([[1], [1], [0]], 100, axis=1))]
    [0.0, 1.0]
    """
    verdicts = np.asarray(verdicts, dtype=float)
    seeds, n = verdicts.shape
    low, high = accuracy_interval(round(verdicts.mean() * n), n)
    if seeds == 1:
        return low, high
    rng = np.random.default_rng(seed)
    trainings = rng.multinomial(seeds, [1 / seeds] * seeds, size=resamples) / seeds
    drawn = np.take_along_axis(trainings @ verdicts, rng.integers(n, size=(resamples, n)), axis=1)
    bounds = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(min(low, bounds[0])), float(max(high, bounds[1]))


def own_row(run: dict) -> dict:
    """Return the method's own row of a run's report; the row without latents precedes it."""
    return run["report"]["rows"][-1]


def _verdicts(found: Sequence[Run], answers: str | None = None) -> np.ndarray:
    """Read the verdicts (seeds, questions) on the method's own answers, or on those of the named control."""
    seeds = []
    for run, folder in found:
        path = folder / "evaluation" / f"predictions-{answers or own_row(run)['method']}.jsonl"
        seeds.append([bool(record["correct"]) for record in read_predictions(path)])
    return np.array(seeds, dtype=float)


def _row(name: str, found: Sequence[Run], verdicts: dict[str, np.ndarray]) -> dict:
    runs = [run for run, _ in found]
    own = [own_row(run) for run in runs]
    mean = summarize_seeds([row["accuracy"] for row in own])
    trainings = [run["training"] for run in runs]
    controls = _means((group["control"], group["accuracy"]) for run in runs for group in run["report"]["controls"])
    by_steps = _means((group["steps"], group["accuracy"]) for row in own for group in row["by_steps"])
    tested = name != SOFT_WORDS and SOFT_WORDS in verdicts
    return {
        "method": name,
        "title": BENCH_METHODS[name].title,
        "accuracy": mean["mean"],
        "sd_over_seeds": mean["sd"],
        "seeds": [run["settings"]["seed"] for run in runs],
        "ci95": list(seeds_interval(verdicts[name])),
        "n": own[0]["n"],
        "latency_ratio": _median_latency(runs, "ratio"),
        "compiled_generator_ratio": _median_latency(runs, "compiled_generator_ratio"),
        "compiled_ratio": _median_latency(runs, "compiled_ratio"),
        "seconds_per_query": _median_latency(runs, "seconds"),
        "new_tokens_per_query": float(np.mean([row["new_tokens_per_query"] for row in own])),
        "implicit_tokens": own[0]["implicit_tokens"],
        "trainable_parameters": trainings[0]["trainable_parameters"],
        "generator_share": trainings[0].get("generator_share"),
        "training_seconds": float(np.mean([training["seconds"] for training in trainings])),
        "seen_questions": trainings[0]["seen_questions"],
        "training_operations": trainings[0].get("operations"),
        "learning_rate": trainings[0]["learning_rate"],
        "by_steps": [{"steps": steps, "accuracy": by_steps[steps]} for steps in sorted(by_steps)],
        "controls": controls,
        "control_p_values": {
            control: paired_p_value(_verdicts(found, control), _verdicts(found, "no_cot"))
            for control in controls
            if control != "none"
        },
        "p_against_soft_words": paired_p_value(verdicts[name], verdicts[SOFT_WORDS]) if tested else None,
        # One string per seed and one digit per question, in the order of the test split, for further tests.
        "verdicts": ["".join(str(int(right)) for right in seed) for seed in verdicts[name]],
    }


def _median_latency(runs: Sequence[dict], name: str) -> float | None:
    """Return the median over the runs that have this figure; only runs with a generator have the compiled ones."""
    found = [run["latency"][name] for run in runs if run["latency"] and name in run["latency"]]
    return float(np.median(found)) if found else None


def _means(pairs: Iterable[tuple[K, float]]) -> dict[K, float]:
    """Return the mean value of each key."""
    groups = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: float(np.mean(values)) for key, values in groups.items()}
