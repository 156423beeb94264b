"""The bench's figures across seeds: accuracy, cost, paired tests against SemCoT (soft words), and the goal."""

from collections import defaultdict

import numpy as np

from ..evaluation.controls import SIGNIFICANCE
from ..evaluation.statistics import accuracy_interval, summarize_seeds
from ..storage import read_json_lines
from .catalogue import BENCH_METHODS

SOFT_WORDS = "semcot_soft_words"
# Share of explicit CoT's accuracy that SemCoT (soft words) aims at, and its latency against no CoT.
ACCURACY_GOAL, COIN_FLIP_GOAL, LATENCY_GOAL = 0.95, 0.99, 1.3
# The largest generator, in the host's parameters.
SIZE_GOAL = 1 / 3
LATENCIES = {
    "latency_ratio": "",
    "compiled_generator_ratio": ", generator compiled",
    "compiled_ratio": ", generator and both hosts compiled",
}


def summarize_task(runs) -> dict:
    """One task's rows, paired tests and goal from its finished runs.

    Args:
        runs: (run, folder) pairs of one task, as `run_method` returns and keeps them.

    Returns:
        `task`, `rows` (a method each), `goal` (conditions with whether they are met).
    """
    by_method = defaultdict(list)
    for run, folder in runs:
        by_method[run["settings"]["method"]].append((run, folder))
    verdicts = {name: _verdicts(found, _answered) for name, found in by_method.items()}
    rows = [_row(name, by_method[name], verdicts, by_method) for name in BENCH_METHODS if name in by_method]
    task = runs[0][0]["settings"]["task"]
    return {"task": task, "rows": rows, "goal": _goal(task, rows, by_method, verdicts)}


def paired_p_value(a, b, *, resamples=9_999, seed=0) -> float:
    """Two-sided sign-flip test of equal accuracy on the same questions, each question's seeds taken together.

    Under the null hypothesis each question's difference is as likely to fall to either side; seeds of one question
    are not independent, so they count once, by their mean.

    Args:
        a, b: (seeds, questions) arrays of verdicts.

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


def seeds_interval(verdicts, *, resamples=4_999, seed=0) -> tuple[float, float]:
    """95 % interval of the mean accuracy of one or more trainings on the same questions.

    Wilson's interval of the questions, widened to what a percentile bootstrap gives that draws both trainings and
    questions anew. Two or three trainings tell little of their spread: it is a rough bound then.

    Args:
        verdicts: (seeds, questions) array.

    >>> [round(bound, 3) for bound in seeds_interval(np.ones((3, 100)))]  # as of one seed
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


def _verdicts(found, name_of):
    """Verdicts (seeds, questions) of the runs' predictions in the file that `name_of` names."""
    seeds = []
    for run, folder in found:
        path = folder / "evaluation" / f"predictions-{name_of(run)}.jsonl"
        records = sorted(read_json_lines(path), key=lambda record: record["index"])
        seeds.append([bool(record["correct"]) for record in records])
    return np.array(seeds, dtype=float)


def own_row(run):
    """The row of a run's report that is the method's own, behind the one without latents."""
    return run["report"]["rows"][-1]


def _answered(run):
    return own_row(run)["method"]


def _row(name, found, verdicts, by_method):
    runs = [run for run, _ in found]
    own = [own_row(run) for run in runs]
    mean = summarize_seeds([row["accuracy"] for row in own])
    trainings = [run["training"] for run in runs]
    tested = name != SOFT_WORDS and SOFT_WORDS in by_method
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
        "by_steps": _by_steps(own),
        "controls": _controls(found),
        "p_against_soft_words": paired_p_value(verdicts[name], verdicts[SOFT_WORDS]) if tested else None,
        # A string a seed, a digit a question in the order of the test split: whoever has the report can test again.
        "verdicts": ["".join(str(int(right)) for right in seed) for seed in verdicts[name]],
    }


def _median_latency(runs, name):
    """Over the runs that have this figure; runs without a generator have no compiled one."""
    found = [run["latency"][name] for run in runs if run["latency"] and name in run["latency"]]
    return float(np.median(found)) if found else None


def _by_steps(rows):
    groups = defaultdict(list)
    for row in rows:
        for group in row["by_steps"]:
            groups[group["steps"]].append(group["accuracy"])
    return [{"steps": steps, "accuracy": float(np.mean(groups[steps]))} for steps in sorted(groups)]


def _controls(found):
    groups = defaultdict(list)
    for run, _ in found:
        for control in run["report"]["controls"]:
            groups[control["control"]].append(control["accuracy"])
    return {name: float(np.mean(accuracies)) for name, accuracies in groups.items()}


def _goal(task, rows, by_method, verdicts):
    """The goal's conditions as (text, met) pairs, those that can be told from the finished runs."""
    known = {row["method"]: row for row in rows}
    if SOFT_WORDS not in known:
        return []
    best, conditions = known[SOFT_WORDS], _size_goals(known[SOFT_WORDS])
    if "cot" in known:
        share = COIN_FLIP_GOAL if task == "coin_flip" else ACCURACY_GOAL
        text = f"at least {100 * share:.0f} % of explicit CoT's accuracy: {_ratio(best, known['cot'])}"
        conditions.append((text, best["accuracy"] >= share * known["cot"]["accuracy"]))
    for row in rows:
        if BENCH_METHODS[row["method"]].peer:
            ahead = best["accuracy"] > row["accuracy"] and row["p_against_soft_words"] < SIGNIFICANCE
            conditions.append((f"ahead of {row['title']} (p = {row['p_against_soft_words']:.4f})", ahead))
    for name, how in LATENCIES.items():
        if best[name] is not None:
            text = f"at most {LATENCY_GOAL} times no CoT's latency{how}: {best[name]:.2f}"
            conditions.append((text, best[name] <= LATENCY_GOAL))
    for control in best["controls"]:
        if control != "none":
            judged = _verdicts(by_method[SOFT_WORDS], lambda run, control=control: control)
            none = _verdicts(by_method[SOFT_WORDS], lambda run: "no_cot")
            p_value = paired_p_value(judged, none)
            at_level = judged.mean() <= none.mean() or p_value >= SIGNIFICANCE
            text = f"control {control} at the level without tokens: {judged.mean():.3f} to {none.mean():.3f}"
            conditions.append((f"{text} (p = {p_value:.4f})", bool(at_level)))
    return [{"condition": text, "met": bool(met)} for text, met in conditions]


def _size_goals(best):
    conditions = []
    if best["generator_share"] is not None:
        text = f"a generator of at most a third of the host's parameters: {100 * best['generator_share']:.1f} %"
        conditions.append((text, best["generator_share"] <= SIZE_GOAL))
    if best["by_steps"]:
        tokens, longest = best["implicit_tokens"], best["by_steps"][-1]["steps"]
        text = f"at most one token per reasoning step of the longest questions: {tokens} tokens, {longest} steps"
        conditions.append((text, tokens <= longest))
    return conditions


def _ratio(best, cot):
    return f"{100 * best['accuracy'] / cot['accuracy']:.1f} %" if cot["accuracy"] else "explicit CoT answers nothing"
