"""The bench's report: tables by task, the goal condition by condition, plots."""

import io
import re
from collections import defaultdict
from itertools import groupby

from matplotlib.backends.backend_agg import FigureCanvasAgg

from ..storage import write_atomically, write_json
from .catalogue import BENCH_METHODS
from .plots import plot_by_difficulty, plot_pareto
from .summary import SOFT_WORDS, own_row, summarize_task

# What a task's methods have alike.
BUDGET = (
    "steps",
    "batch_size",
    "train_questions",
    "learning_rates",
    "search_share",
    "validation_questions",
    "eval_questions",
)
_INTERVALS = (
    "Accuracies are means over seeds. Brackets hold 95 %: Wilson's interval, which covers other questions; with "
    "several seeds, widened to the percentiles of resampled seeds and questions, which cover another training too, "
    "roughly where seeds are two or three."
)


def write_report(runs, output, *, command) -> dict:
    """Write `report.json`, `report.md`, `pareto-<task>.png` and `difficulty-<task>.png`; returns the report.

    Without latency there is no Pareto plot, and none by difficulty for questions that do not tell their steps.

    Args:
        runs: (run, folder) pairs, as `run_method` returns and keeps them.
        output: folder.
        command: what made them.

    Raises:
        ValueError: for runs of one task that differ in budget or questions.
    """
    ordered = sorted(runs, key=lambda pair: pair[0]["settings"]["task"])
    tasks = []
    for _, grouped in groupby(ordered, key=lambda pair: pair[0]["settings"]["task"]):
        found = list(grouped)
        tasks.append({**summarize_task(found), "budget": _budget([run for run, _ in found])})
    report = {
        "command": command,
        "environment": ordered[0][0]["report"]["environment"],
        "tasks": tasks,
    }
    output.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        figures = {}
        if _has_steps(task["rows"]):
            figures["difficulty"] = plot_by_difficulty(task)
        if all(row["latency_ratio"] is not None for row in task["rows"]):
            figures["pareto"] = plot_pareto(task)
        for name, figure in figures.items():
            image = io.BytesIO()
            FigureCanvasAgg(figure).print_png(image)
            write_atomically(output / f"{name}-{folder_name(task['task'])}.png", image.getvalue())
    write_atomically(output / "report.md", markdown(report))
    write_json(output / "report.json", report)
    return report


def markdown(report) -> str:
    """The report as Markdown."""
    machine = report["environment"]
    lines = [
        "# Methods on the same host, questions, budget and checker",
        "",
        f"`{report['command']}`",
        "",
        f"{machine['cpu']}, {machine['threads']} threads, device {machine['device']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, trl {machine['trl']}.",
        "",
        _INTERVALS,
    ]
    if len(report["tasks"]) > 1:
        lines += ["", "## All tasks", "", *overview(report)]
    for task in report["tasks"]:
        lines += ["", f"## {task['task']}", "", _told(task["budget"]), ""]
        lines += _table(task["rows"])
        if _has_steps(task["rows"]):
            lines += ["", *_difficulty(task["rows"])]
        if task["goal"]:
            lines += ["", "SemCoT (soft words) against its goal:", ""]
            lines += [f"- {'met' if goal['met'] else 'MISSED'}: {goal['condition']}" for goal in task["goal"]]
    return "\n".join(lines) + "\n"


def overview(report) -> list[str]:
    """Lines of a table with a task in each row: accuracies in %, and the time per question over no CoT's.

    Of the methods of others that answer without reasoning in words it has the most accurate one.
    """
    lines = [
        "| task | no CoT | explicit CoT (time) | best of the implicit peers (time) | SemCoT (paper) "
        "| SemCoT (soft words) | with another question's tokens | its time (compiled) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in report["tasks"]:
        rows = {row["method"]: row for row in task["rows"]}
        peers = [row for name, row in rows.items() if BENCH_METHODS[name].peer]
        peer = max(peers, key=lambda row: row["accuracy"], default=None)
        cells = [
            task["task"],
            _accuracy(rows.get("no_cot")),
            _accuracy(rows.get("cot"), timed=True),
            "–" if peer is None else f"{peer['title']} {_accuracy(peer, timed=True)}",
            _accuracy(rows.get("semcot")),
            _accuracy(rows.get(SOFT_WORDS)),
            _percent(rows.get(SOFT_WORDS, {}).get("controls", {}).get("other_question")),
            _times(rows.get(SOFT_WORDS)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _accuracy(row, timed=False):
    if row is None:
        return "–"
    ratio = row["latency_ratio"] if timed else None
    return _percent(row["accuracy"]) + ("" if ratio is None else f" ({ratio:.2f})")


def _percent(share):
    return "–" if share is None else f"{100 * share:.1f}"


def _times(row):
    if row is None or row["latency_ratio"] is None:
        return "–"
    compiled = row["compiled_generator_ratio"]
    return f"{row['latency_ratio']:.2f}" + ("" if compiled is None else f" ({compiled:.2f})")


def folder_name(task):
    """A task's folder below `output_dir`, whatever path or id names the task.

    >>> folder_name("coin_flip"), folder_name("/data/gsm8k.jsonl"), folder_name("openai/gsm8k")
    ('coin_flip', 'data-gsm8k.jsonl', 'openai-gsm8k')
    """
    return re.sub(r"[^\w.-]+", "-", task).strip("-.")


def _budget(runs):
    """What a task's runs have alike, with the questions that there were rather than those asked for."""
    names = [f"{run['settings']['method']}/seed{run['settings']['seed']}" for run in runs]
    alike = [(name, [run["settings"][name] for run in runs]) for name in BUDGET]
    # Runs of earlier versions do not tell their questions.
    questions = [run.get("questions") for run in runs]
    for split in ("train", "validation", "test"):
        alike.append((f"{split} questions", [told and told[split]["digest"] for told in questions]))
    for what, values in alike:
        groups = defaultdict(list)
        for name, value in zip(names, values, strict=True):
            if value is not None:
                groups[str(value)].append(name)
        if len(groups) > 1:
            listed = "; ".join(f"{value}: {', '.join(group)}" for value, group in groups.items())
            raise ValueError(
                f"runs of {runs[0]['settings']['task']} differ in {what} ({listed}), so that no table can compare "
                "them: name alike ones by --methods and --seeds, or run the others anew in another output_dir."
            )
    budget = {name: runs[0]["settings"][name] for name in BUDGET}
    told = next(filter(None, questions), {})
    budget |= {f"{split}_questions": told[split]["rows"] for split in ("train", "validation") if told}
    return {**budget, "eval_questions": own_row(runs[0])["n"]}


def _has_steps(rows):
    return all(row["by_steps"] for row in rows)


def _told(budget):
    rates = ", ".join(f"{rate:g}" for rate in budget["learning_rates"])
    searched = (
        f"searched over {max(1, round(budget['steps'] * budget['search_share']))} steps each on "
        f"{budget['validation_questions']} validation questions"
        if len(budget["learning_rates"]) > 1
        else "not searched"
    )
    return (
        f"{budget['steps']} steps of {budget['batch_size']} of {budget['train_questions']:,} training questions, "
        f"learning rate {rates} ({searched}); {budget['eval_questions']} test questions."
    )


def _table(rows):
    yield (
        "| method | accuracy [95 %] | sd over seeds | controls: other, mean, noise, none | latency / no CoT "
        "| compiled: generator, all | new tokens | implicit tokens | trained parameters | training s | training TFLOP "
        "| seen questions | learning rate | p against soft words |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        low, high = (100 * bound for bound in row["ci95"])
        spread = f"{100 * row['sd_over_seeds']:.1f} ({len(row['seeds'])})"
        controls = [row["controls"].get(name) for name in ("other_question", "mean", "noise", "none")]
        p_value, operations = row["p_against_soft_words"], row["training_operations"]
        cells = [
            row["title"],
            f"{100 * row['accuracy']:.1f} % [{low:.1f}, {high:.1f}]",
            spread,
            "" if controls[0] is None else ", ".join(f"{100 * value:.1f}" for value in controls),
            _ratios(row, "latency_ratio"),
            _ratios(row, "compiled_generator_ratio", "compiled_ratio"),
            f"{row['new_tokens_per_query']:.1f}",
            str(row["implicit_tokens"]),
            f"{row['trainable_parameters']:,}",
            f"{row['training_seconds']:.0f}",
            "" if operations is None else f"{operations / 1e12:.1f}",
            f"{row['seen_questions']:,}",
            f"{row['learning_rate']:g}",
            "" if p_value is None else f"{p_value:.4f}",
        ]
        yield f"| {' | '.join(cells)} |"


def _ratios(row, *names):
    return ", ".join(f"{row[name]:.2f}" for name in names if row[name] is not None)


def _difficulty(rows):
    steps = [group["steps"] for group in rows[0]["by_steps"]]
    yield "Accuracy in % by number of reasoning steps:"
    yield ""
    yield f"| method | {' | '.join(map(str, steps))} |"
    yield "|---" * (len(steps) + 1) + "|"
    for row in rows:
        values = {group["steps"]: group["accuracy"] for group in row["by_steps"]}
        yield f"| {row['title']} | {' | '.join(f'{100 * values[count]:.0f}' for count in steps)} |"
