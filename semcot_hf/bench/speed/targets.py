"""The targets, and whether the measured figures meet them."""

from collections.abc import Sequence

from .settings import COMPILED, COMPILED_PARALLEL, FACTORS, METHOD_NAMES, SHARED
from .slopes import LINEAR, SUBLINEAR

OVERHEAD = {"cpu": 1.05, "cuda": 1.10}
OVERHEAD_BATCHES = (1, 32)
TOKENS_IN_DECODE_STEPS = 1.3
SEQUENTIAL_OVER_PARALLEL = 1.5
DECODE_BANDWIDTH_SHARE = 0.8
MEMORY, LEAST_WEIGHTS = 1.05, 100e6


def check_targets(rows: Sequence[dict], parts: Sequence[dict], slopes: Sequence[dict]) -> list[dict]:
    """Each target with its figure: the centre's of each size, the overhead at batch 1 and 32, and SemCoT's growth.

    Args:
        rows: the methods' rows.
        parts: the rows of the derived figures, one for each size and way to run it.
        slopes: the fits of `growth_of_rows`.

    Returns:
        Dicts of `size`, `figure`, `measured`, `target`, `at_most` (else at least), `met`, `note`.
    """
    judged = []
    for part in parts:
        centre = part["setting"]
        size, gpu = centre["size"], centre["device"].startswith("cuda")
        same = ("size", "prompt", "k", "answer", "dtype", "device", "threads")
        near = [
            row
            for row in rows
            if row["setting"]["method"].startswith("semcot")
            and row["environment"] == part["environment"]
            and all(row["setting"][name] == centre[name] for name in same)
            # Without a static cache Python is what a GPU waits for.
            and (not gpu or row["setting"]["cache"] == "static")
        ]
        for row in near:
            name, batch = METHOD_NAMES[row["setting"]["method"]], row["setting"]["batch"]
            if batch in OVERHEAD_BATCHES:
                figure = f"{name}, batch {batch}: time over the limit"
                target = OVERHEAD["cuda" if gpu else "cpu"]
                judged.append(_judged(size, figure, row["overhead"]["median"], target))
            # Beside smaller weights, what the libraries allocate for themselves counts; so does the compiler.
            measurable = row["memory"]["weights_bytes"] >= LEAST_WEIGHTS
            measurable &= row["setting"]["method"] not in (COMPILED, COMPILED_PARALLEL)
            if batch == centre["batch"] and measurable:
                figure = f"{name}, batch {batch}: peak memory over weights and caches"
                judged.append(_judged(size, figure, row["memory"]["ratio"], MEMORY))
        figure = f"generator and {centre['k']} tokens, in decode steps of the host"
        note = "" if gpu else "the target is for 7B on a GPU"
        judged.append(
            _judged(size, figure, part["tokens_in_decode_steps"]["median"], TOKENS_IN_DECODE_STEPS, note=note)
        )
        compiled = part.get("compiled_tokens_in_decode_steps")
        if compiled:
            judged.append(_judged(size, f"{figure}, generator compiled", compiled["median"], TOKENS_IN_DECODE_STEPS))
        figure = f"sequential over parallel at k = {part['sequential_k']}, end to end"
        judged.append(_judged(size, figure, part["sequential_over_parallel"]["median"], SEQUENTIAL_OVER_PARALLEL))
        figure = "decode: share of the bandwidth of a plain copy"
        share = part["decode_bandwidth_share"]
        judged.append(_judged(size, figure, share, DECODE_BANDWIDTH_SHARE, at_most=False, note=note))
    for slope in slopes:
        method, factor = slope["setting"]["method"], slope["factor"]
        if method == SHARED and factor == "prompt":
            target, growth = SUBLINEAR, "sublinear"
        elif method.startswith("semcot") and factor in ("batch", "k"):
            target, growth = LINEAR, "at most linear"
        else:
            continue
        figure = f"{METHOD_NAMES[method]}: exponent of the growth with {FACTORS[factor]}, {growth}"
        judged.append(_judged(slope["setting"]["size"], figure, slope["exponent"], target))
    return judged


def _judged(size, figure, measured, target, *, at_most=True, note=""):
    met = measured <= target if at_most else measured >= target
    return {
        "size": size,
        "figure": figure,
        "measured": measured,
        "target": target,
        "at_most": at_most,
        "met": met,
        "note": note,
    }
