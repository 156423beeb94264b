"""The tables of README and docs that repeat committed results, as Markdown lines."""

import json
from pathlib import Path

from semcot_hf.bench.catalogue import BENCH_METHODS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "examples" / "bench" / "results"
NAMES = {"arithmetic": "equations", "coin_flip": "CoinFlip", "graph": "graph", "multiplication": "multiplication"}


def read(name):
    return json.loads((RESULTS / name).read_text())


def percent(share):
    return "–" if share is None else f"{100 * share:.1f}"


def timed(row):
    """A method's accuracy, and its time per question over that of the untouched host's direct answer."""
    return f"{percent(row['accuracy'])} ({row['latency_ratio']:.2f})"


def results_of_all_tasks():
    """A row per task: the ends of the scale, the best implicit peer, SemCoT, and the generator alone."""
    lines = [
        "| task | no CoT | explicit CoT | best implicit peer | SemCoT (paper) | SemCoT (soft words) "
        "| generator alone |",
        "|---|---|---|---|---|---|---|",
    ]
    audit = read("generator-alone.json")["tasks"]
    for task in read("methods/report.json")["tasks"]:
        rows = {row["method"]: row for row in task["rows"]}
        peer = max((rows[name] for name in rows if BENCH_METHODS[name].peer), key=lambda row: row["accuracy"])
        cells = [
            NAMES[task["task"]],
            *(timed(rows[name]) for name in ("no_cot", "cot")),
            f"{peer['title']} {timed(peer)}",
            *(timed(rows[name]) for name in ("semcot", "semcot_soft_words")),
            audited(audit[task["task"]]["generator_alone"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def audited(row):
    ratio = row["latency_ratio"]
    return percent(row["accuracy"]) + ("" if ratio is None else f" ({ratio:.2f})")


def generator_alone():
    """The audit's row per task."""
    lines = ["| task | generator alone | SemCoT (soft words) |", "|---|---|---|"]
    for task, row in read("generator-alone.json")["tasks"].items():
        cells = [NAMES[task], *(audited(row[name]) for name in ("generator_alone", "semcot_soft_words"))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def results_of_task(task):
    """A row per method of one task of the report."""
    lines = [
        "| method | accuracy [95 %] | sd over seeds | other question's latents | without latents | time / no CoT "
        "| compiled | trained parameters | questions seen | training TFLOP |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in task["rows"]:
        low, high = (percent(bound) for bound in row["ci95"])
        compiled = row["compiled_generator_ratio"]
        cells = [
            row["title"],
            f"{percent(row['accuracy'])} [{low}, {high}]",
            percent(row["sd_over_seeds"]),
            *(percent(row["controls"].get(name)) for name in ("other_question", "none")),
            f"{row['latency_ratio']:.2f}",
            "–" if compiled is None else f"{compiled:.2f}",
            f"{row['trainable_parameters']:,}",
            f"{row['seen_questions']:,}",
            f"{row['training_operations'] / 1e12:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables():
    """Every table by the name that stands in the comments around it."""
    found = {"results": results_of_all_tasks(), "generator-alone": generator_alone()}
    for task in read("methods/report.json")["tasks"]:
        found[task["task"]] = results_of_task(task)
    return found


def block(name, lines):
    """A table between the comments that name it."""
    return "\n".join([f"<!-- table {name} -->", *lines, "<!-- end -->"])
