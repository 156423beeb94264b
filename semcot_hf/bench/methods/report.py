"""The bench's report: tables by task, the goal condition by condition, plots."""

import io
import re
from itertools import groupby

from matplotlib.backends.backend_agg import FigureCanvasAgg

from ...evaluation.records import to_json, write_atomically
from .plots import plot_by_difficulty, plot_pareto
from .summary import summarize_task

# What a task's methods had alike.
BUDGET = (
    "steps",
    "batch_size",
    "train_questions",
    "learning_rates",
    "search_share",
    "validation_questions",
    "eval_questions",
)


def write_report(runs, output, *, command) -> dict:
    """Write `report.json`, `report.md`, `pareto-<task>.png` and `difficulty-<task>.png`; returns the report.

    Args:
        runs: (run, folder) pairs, as `run_method` returns and keeps them.
        output: folder.
        command: what made them.
    """
    ordered = sorted(runs, key=lambda pair: pair[0]["settings"]["task"])
    tasks = []
    for _, grouped in groupby(ordered, key=lambda pair: pair[0]["settings"]["task"]):
        found = list(grouped)
        settings = found[0][0]["settings"]
        tasks.append({**summarize_task(found), "budget": {name: settings[name] for name in BUDGET}})
    report = {
        "command": command,
        "environment": ordered[0][0]["report"]["environment"],
        "tasks": tasks,
    }
    output.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        figures = {"difficulty": plot_by_difficulty(task)}
        if all(row["latency_ratio"] is not None for row in task["rows"]):
            figures["pareto"] = plot_pareto(task)
        for name, figure in figures.items():
            image = io.BytesIO()
            FigureCanvasAgg(figure).print_png(image)
            write_atomically(output / f"{name}-{folder_name(task['task'])}.png", image.getvalue())
    write_atomically(output / "report.md", markdown(report))
    write_atomically(output / "report.json", to_json(report))
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
    ]
    for task in report["tasks"]:
        lines += ["", f"## {task['task']}", "", _told(task["budget"]), ""]
        lines += [*_table(task["rows"]), "", *_difficulty(task["rows"])]
        if task["goal"]:
            lines += ["", "SemCoT at its best against its goal:", ""]
            lines += [f"- {'met' if goal['met'] else 'MISSED'}: {goal['condition']}" for goal in task["goal"]]
    return "\n".join(lines) + "\n"


def folder_name(task):
    """A task's folder below `output_dir`, whatever path or id names the task.

    >>> folder_name("coin_flip"), folder_name("/data/gsm8k.jsonl"), folder_name("openai/gsm8k")
    ('coin_flip', 'data-gsm8k.jsonl', 'openai-gsm8k')
    """
    return re.sub(r"[^\w.-]+", "-", task).strip("-.")


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
        "| seen questions | learning rate | p against best |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        low, high = (100 * bound for bound in row["ci95"])
        spread = f"{100 * row['sd_over_seeds']:.1f} ({len(row['seeds'])})"
        controls = [row["controls"].get(name) for name in ("other_question", "mean", "noise", "none")]
        p_value, operations = row["p_against_best"], row["training_operations"]
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
