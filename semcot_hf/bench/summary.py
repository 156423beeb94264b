"""The figures of a task across seeds: accuracy, cost, and paired tests against SemCoT (soft words)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..evaluation.predictions import read_predictions
from ..evaluation.statistics import accuracy_interval, mcnemar, summarize_seeds
from .catalogue import BENCH_METHODS, PARTS, SOFT_WORDS

K = TypeVar("K")
# A finished run, as `run_method` returns it, and its folder.
Run = tuple[dict, Path]


def summarize_task(runs: Sequence[Run]) -> dict:
    """Summarize the finished runs of one task.

    Args:
        runs: as `run_method` returns and stores them.

    Returns:
        `task`, and `rows`: one for each method, and before that of SemCoT (soft words) those of `PARTS`.
    """
    by_method = defaultdict(list)
    for run, folder in runs:
        by_method[run["settings"]["method"]].append((run, folder))
    verdicts = {name: _verdicts(found) for name, found in by_method.items()}
    parts = [part for part in PARTS if all(_has_row(run, part) for run, _ in by_method.get(SOFT_WORDS, []))]
    if SOFT_WORDS in by_method:
        verdicts |= {f"{SOFT_WORDS}/{part}": _verdicts(by_method[SOFT_WORDS], part) for part in parts}
    rows = []
    for name in BENCH_METHODS:
        if name == SOFT_WORDS and name in by_method:
            rows += [_row(name, by_method[name], verdicts, part) for part in parts]
        if name in by_method:
            rows.append(_row(name, by_method[name], verdicts))
    return {"task": runs[0][0]["settings"]["task"], "rows": rows}


def _has_row(run: dict, method: str) -> bool:
    return any(row["method"] == method for row in run["report"]["rows"])


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """Test the hypothesis of equal accuracy on the same questions: McNemar's exact test for one training of each.

    With several trainings it is `paired_p_value`, of which McNemar's test is the case of one.

    Args:
        a, b: (seeds, questions), 1 for a correct answer and 0 for a wrong one.

    >>> paired_p(np.array([[1, 1, 1, 1, 1, 1, 0]]), np.array([[0, 0, 0, 0, 0, 0, 0]]))
    0.03125
    """
    if len(a) == len(b) == 1:
        return mcnemar([bool(right) for right in a[0]], [bool(right) for right in b[0]])
    return paired_p_value(a, b)


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
    """Return the method's own row of a run's report: that with implicit tokens, or the only one."""
    return next((row for row in run["report"]["rows"] if row["method"] == "semcot"), run["report"]["rows"][-1])


def _part_row(run: dict, part: str | None) -> dict:
    """Return the row of a part of SemCoT (soft words), or the method's own."""
    return own_row(run) if part is None else next(row for row in run["report"]["rows"] if row["method"] == part)


def _verdicts(found: Sequence[Run], answers: str | None = None) -> np.ndarray:
    """Read the verdicts (seeds, questions) on the method's own answers, or on those of the named control."""
    seeds = []
    for run, folder in found:
        path = folder / "evaluation" / f"predictions-{answers or own_row(run)['method']}.jsonl"
        seeds.append([bool(record["correct"]) for record in read_predictions(path)])
    return np.array(seeds, dtype=float)


def _row(name: str, found: Sequence[Run], verdicts: dict[str, np.ndarray], part: str | None = None) -> dict:
    runs = [run for run, _ in found]
    own = [_part_row(run, part) for run in runs]
    mean = summarize_seeds([row["accuracy"] for row in own])
    trainings = [run["training"] for run in runs]
    controls = {} if part else _means((g["control"], g["accuracy"]) for run in runs for g in run["report"]["controls"])
    by_steps = _means((group["steps"], group["accuracy"]) for row in own for group in row["by_steps"])
    key = f"{name}/{part}" if part else name
    mine = verdicts[key]
    # What is tuned to answer at once is the harder baseline.
    at_once = "no_cot" if "no_cot" in verdicts else f"{SOFT_WORDS}/no_cot"
    untouched = part == "no_cot"
    return {
        "method": key,
        "title": PARTS[part] if part else BENCH_METHODS[name].title,
        "accuracy": mean["mean"],
        "sd_over_seeds": mean["sd"],
        "seeds": [run["settings"]["seed"] for run in runs],
        "ci95": list(seeds_interval(mine)),
        "n": own[0]["n"],
        "latency_ratio": _latency_of(runs, part),
        "compiled_generator_ratio": None if part else _median_latency(runs, "compiled_generator_ratio"),
        "compiled_ratio": None if part else _median_latency(runs, "compiled_ratio"),
        "seconds_per_query": None if part else _median_latency(runs, "seconds"),
        "new_tokens_per_query": float(np.mean([row["new_tokens_per_query"] for row in own])),
        "implicit_tokens": float(np.mean([row["implicit_tokens"] for row in own])),
        "thoughts_not_ended": _thoughts_not_ended(own),
        "trainable_parameters": 0 if untouched else trainings[0]["trainable_parameters"],
        "generator_share": None if untouched else trainings[0].get("generator_share"),
        "training_seconds": 0.0 if untouched else float(np.mean([training["seconds"] for training in trainings])),
        "seen_questions": 0 if untouched else trainings[0]["seen_questions"],
        "training_operations": 0.0 if untouched else trainings[0].get("operations"),
        "learning_rate": 0.0 if untouched else trainings[0]["learning_rate"],
        "by_steps": [{"steps": steps, "accuracy": by_steps[steps]} for steps in sorted(by_steps)],
        "controls": controls,
        "control_p_values": {
            control: paired_p_value(_verdicts(found, control), _verdicts(found, "no_cot"))
            for control in controls
            if control != "none"
        },
        "p_against_soft_words": _p_against(mine, verdicts, SOFT_WORDS, key),
        "p_over_generator": _p_against(mine, verdicts, f"{SOFT_WORDS}/generator", key),
        "p_over_no_cot": _p_against(mine, verdicts, at_once, key),
        # One string per seed and one digit per question, in the order of the test split, for further tests.
        "verdicts": ["".join(str(int(right)) for right in seed) for seed in mine],
    }


def _p_against(mine: np.ndarray, verdicts: dict[str, np.ndarray], other: str, key: str) -> float | None:
    return None if other == key or other not in verdicts else paired_p(mine, verdicts[other])


def _thoughts_not_ended(rows: Sequence[dict]) -> float | None:
    """Return the mean number of thoughts that were not ended at the limit, where rows count them."""
    counts = [row["thoughts_not_ended"] for row in rows if "thoughts_not_ended" in row]
    return float(np.mean(counts)) if counts else None


def _latency_of(runs: Sequence[dict], part: str | None) -> float | None:
    if part is None:
        return _median_latency(runs, "ratio")
    if part == "no_cot":
        # What all latencies are relative to.
        return 1.0 if any(run["latency"] for run in runs) else None
    found = [run["latency"]["parts"][part] for run in runs if run["latency"]]
    return float(np.median(found)) if found else None


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
