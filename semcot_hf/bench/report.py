"""The report of the bench: tables for each task, plots, and an overview of all tasks."""

import io
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ..storage import write_atomically, write_json
from ..tables import markdown_table
from .catalogue import BENCH_METHODS, SOFT_WORDS
from .plots import plot_by_difficulty, plot_pareto
from .summary import Run, own_row, summarize_task

# Settings that all runs of a task must share.
BUDGET = (
    "steps",
    "batch_size",
    "train_questions",
    "learning_rates",
    "search_share",
    "validation_questions",
    "eval_questions",
)
_NOTES = (
    "Accuracies are means over seeds. Brackets hold 95 % intervals: Wilson's, for the choice of questions; with "
    "several seeds, widened to the percentiles of resampled seeds and questions, which is a rough bound with two or "
    "three seeds. Milliseconds are medians of one question at a time. Latencies are relative to the untouched host "
    "answering at once, parameters of the generator to the host's. Thoughts not ended reached the limit of tokens; "
    "they are means over seeds. Controls replace the implicit tokens with another question's, their mean, noise, or "
    "none; their p-values compare the first three with none. Further p-values compare a row with SemCoT (soft words),"
    " with the generator alone, and with no CoT (fine-tuned, or where that did not run the untouched host) on the "
    "same questions: McNemar's exact test for one seed, a two-sided paired sign-flip test for several and for "
    "controls."
)


def write_report(runs: Sequence[Run], output: Path, *, command: str) -> dict:
    """Write `report.json`, `report.md`, `pareto-<task>.png` and `difficulty-<task>.png`, and return the report.

    The Pareto plot needs latencies, the plot by difficulty needs questions with `steps`.

    Args:
        runs: as `run_method` returns and stores them.
        output: folder, created when missing.
        command: the command that the report names.

    Raises:
        ValueError: for runs of one task that differ in budget or questions.
    """
    ordered = sorted(runs, key=_section)
    tasks = []
    for (_, factor), grouped in groupby(ordered, key=_section):
        found = list(grouped)
        summary = summarize_task(found)
        tasks.append({**summary, "budget": {**_budget([run for run, _ in found]), "factor": factor}})
    report = {"command": command, "environment": ordered[0][0]["report"]["environment"], "tasks": tasks}
    save_report(report, output)
    return report


def _section(pair: Run) -> tuple[str, float]:
    settings = pair[0]["settings"]
    # Runs of earlier versions had one budget.
    return settings["task"], settings.get("budget", 1.0)


def save_report(report: dict, output: Path) -> None:
    """Write the JSON, the Markdown and the plots of a report."""
    output.mkdir(parents=True, exist_ok=True)
    for task in report["tasks"]:
        figures = {}
        if _has_steps(task["rows"]):
            figures["difficulty"] = plot_by_difficulty(task)
        if all(row["latency_ratio"] is not None for row in task["rows"]):
            figures["pareto"] = plot_pareto(task)
        for name, figure in figures.items():
            image = io.BytesIO()
            figure.savefig(image, format="png")
            file = f"{name}-{folder_name(task['task'])}{_times_text(task, '-x')}.png"
            write_atomically(output / file, image.getvalue())
    write_atomically(output / "report.md", markdown(report))
    write_json(output / "report.json", report)


def markdown(report: dict) -> str:
    """Format the report as Markdown."""
    machine = report["environment"]
    lines = [
        "# Methods on the same host, questions, budget and answer check",
        "",
        f"`{report['command']}`",
        "",
        f"{machine['cpu']}, {machine['threads']} threads, device {machine['device']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, trl {machine['trl']}.",
        "",
        _NOTES,
    ]
    if len(report["tasks"]) > 1:
        lines += ["", "## All tasks", "", *overview(report)]
    for name in dict.fromkeys(task["task"] for task in report["tasks"]):
        sections = [task for task in report["tasks"] if task["task"] == name]
        if len(sections) > 1:
            lines += ["", f"## {name}: accuracy against seen questions", "", by_budget(sections)]
    for task in report["tasks"]:
        title = task["task"] + _times_text(task, ", budget x ")
        lines += ["", f"## {title}", "", _budget_text(task["budget"]), "", _table(task["rows"])]
        if _has_steps(task["rows"]):
            lines += ["", "Accuracy in % by number of reasoning steps:", "", _difficulty(task["rows"])]
    return "\n".join(lines) + "\n"


def overview(report: dict) -> list[str]:
    """Return the lines of a table with one row per task: accuracies in %, and latencies relative to no CoT.

    Of the peers (`Method.peer`) it shows the most accurate one.
    """
    header = ["task", "no CoT", "explicit CoT (time)", "best of the implicit peers (time)", "SemCoT (paper)"]
    header += [
        "SemCoT (soft words)",
        "with another question's tokens",
        "its time (compiled)",
        "generator alone (time)",
    ]
    header += ["p over generator alone", "p over no CoT"]
    lines = []
    for task in report["tasks"]:
        rows = {row["method"]: row for row in task["rows"]}
        peers = [row for name, row in rows.items() if name in BENCH_METHODS and BENCH_METHODS[name].peer]
        peer = max(peers, key=lambda row: row["accuracy"], default=None)
        cells = [
            task["task"] + _times_text(task, ", budget x "),
            _accuracy(rows.get("no_cot")),
            _accuracy(rows.get("cot"), timed=True),
            "–" if peer is None else f"{peer['title']} {_accuracy(peer, timed=True)}",
            _accuracy(rows.get("semcot")),
            _accuracy(rows.get(SOFT_WORDS)),
            _percent(rows.get(SOFT_WORDS, {}).get("controls", {}).get("other_question")),
            _times(rows.get(SOFT_WORDS)),
            _accuracy(rows.get(f"{SOFT_WORDS}/generator"), timed=True),
            *(_p_value(rows.get(SOFT_WORDS, {}).get(name)) for name in ("p_over_generator", "p_over_no_cot")),
        ]
        lines.append(cells)
    return markdown_table(header, lines).splitlines()


def by_budget(sections: Sequence[dict]) -> str:
    """Return the table of each method's accuracy with every budget, and the questions that it saw.

    Args:
        sections: the summaries of one task, one for each budget.
    """
    sections = sorted(sections, key=lambda task: task["budget"]["factor"])
    found = [{row["method"]: row for row in task["rows"]} for task in sections]
    titles = {row["method"]: row["title"] for task in sections for row in task["rows"]}
    lines = []
    for method, title in titles.items():
        cells = []
        for row in (rows.get(method) for rows in found):
            if row is None:
                cells.append("–")
                continue
            low, high = (100 * bound for bound in row["ci95"])
            cells.append(f"{100 * row['accuracy']:.1f} % [{low:.1f}, {high:.1f}] ({row['seen_questions']:,})")
        lines.append([title, *cells])
    header = ["method", *(f"budget x {task['budget']['factor']:g}" for task in sections)]
    return markdown_table(header, lines)


def _times_text(task: dict, before: str) -> str:
    """Return a budget other than 1 as text."""
    factor = task["budget"].get("factor", 1.0)
    return "" if factor == 1 else f"{before}{factor:g}"


def _accuracy(row: dict | None, timed: bool = False) -> str:
    if row is None:
        return "–"
    ratio = row["latency_ratio"] if timed else None
    return _percent(row["accuracy"]) + ("" if ratio is None else f" ({ratio:.2f})")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _times(row: dict | None) -> str:
    if row is None or row["latency_ratio"] is None:
        return "–"
    compiled = row["compiled_generator_ratio"]
    return f"{row['latency_ratio']:.2f}" + ("" if compiled is None else f" ({compiled:.2f})")


def folder_name(task: str) -> str:
    """Return the name of a task's folder below `output_dir`; a task may be a path or a Hub id.

    >>> folder_name("coin_flip"), folder_name("/data/gsm8k.jsonl"), folder_name("openai/gsm8k")
    ('coin_flip', 'data-gsm8k.jsonl', 'openai-gsm8k')
    """
    return re.sub(r"[^\w.-]+", "-", task).strip("-.")


def _budget(runs: Sequence[dict]) -> dict:
    """Return the settings that a task's runs share, with the actual numbers of questions."""
    names = [f"{run['settings']['method']}/seed{run['settings']['seed']}" for run in runs]
    shared = [(name, [run["settings"][name] for run in runs]) for name in BUDGET]
    # Runs of earlier versions did not store their questions, or not how they are answered.
    questions = [run.get("questions") for run in runs]
    for split in ("train", "validation", "test"):
        shared.append((f"{split} questions", [found and found[split]["digest"] for found in questions]))
    for name in ("answer_type", "max_new_tokens"):
        shared.append((name, [found and found.get(name) for found in questions]))
    for what, values in shared:
        groups = defaultdict(list)
        for name, value in zip(names, values, strict=True):
            if value is not None:
                groups[str(value)].append(name)
        if len(groups) > 1:
            listed = "; ".join(f"{value}: {', '.join(group)}" for value, group in groups.items())
            raise ValueError(
                f"runs of {runs[0]['settings']['task']} differ in {what} ({listed}) and cannot be compared in one "
                "table: select matching runs with --methods and --seeds, or rerun the others in another output_dir."
            )
    budget = {name: runs[0]["settings"][name] for name in BUDGET}
    stored: dict = next(filter(None, questions), {})
    budget |= {f"{split}_questions": stored[split]["rows"] for split in ("train", "validation") if stored}
    return {**budget, "eval_questions": own_row(runs[0])["n"]}


def _has_steps(rows: Sequence[dict]) -> bool:
    return all(row["by_steps"] for row in rows)


def _budget_text(budget: dict) -> str:
    rates = ", ".join(f"{rate:g}" for rate in budget["learning_rates"])
    searched = (
        f"searched over {max(1, round(budget['steps'] * budget['search_share']))} steps each on "
        f"{budget['validation_questions']} validation questions"
        if len(budget["learning_rates"]) > 1
        else "not searched"
    )
    steps = max(1, round(budget["steps"] * budget.get("factor", 1.0)))
    return (
        f"{steps} steps of {budget['batch_size']} of {budget['train_questions']:,} training questions, "
        f"learning rate {rates} ({searched}); {budget['eval_questions']} test questions."
    )


def _table(rows: Sequence[dict]) -> str:
    header = ["method", "accuracy [95 %]", "of explicit CoT's accuracy", "sd over seeds"]
    header += ["controls: other, mean, noise, none"]
    header += ["p of controls", "ms a question", "latency / no CoT", "of explicit CoT's time"]
    header += ["compiled: generator, all", "new tokens", "implicit tokens", "thoughts not ended"]
    header += ["generator / host", "trained parameters", "training s", "training TFLOP", "seen questions"]
    header += ["learning rate", "p against soft words", "p over generator alone", "p over no CoT"]
    lines = []
    reasoning: dict = next((row for row in rows if row["method"] == "cot"), {})
    explicit, chain = reasoning.get("accuracy"), reasoning.get("latency_ratio")
    for row in rows:
        low, high = (100 * bound for bound in row["ci95"])
        operations, seconds, ratio = row["training_operations"], row["seconds_per_query"], row["latency_ratio"]
        # Reports of earlier versions did not count them.
        unended = row.get("thoughts_not_ended")
        controls = [row["controls"].get(name) for name in ("other_question", "mean", "noise", "none")]
        lines.append(
            [
                row["title"],
                f"{100 * row['accuracy']:.1f} % [{low:.1f}, {high:.1f}]",
                f"{100 * row['accuracy'] / explicit:.1f} %" if explicit else "",
                f"{100 * row['sd_over_seeds']:.1f} ({len(row['seeds'])})",
                "" if controls[0] is None else ", ".join(map(_percent, controls)),
                ", ".join(f"{value:.4f}" for value in row["control_p_values"].values()),
                "" if seconds is None else f"{1000 * seconds:.1f}",
                _ratios(row, "latency_ratio"),
                f"{ratio / chain:.2f}" if ratio and chain else "",
                _ratios(row, "compiled_generator_ratio", "compiled_ratio"),
                f"{row['new_tokens_per_query']:.1f}",
                f"{row['implicit_tokens']:g}" if row["implicit_tokens"] % 1 == 0 else f"{row['implicit_tokens']:.1f}",
                "" if unended is None else f"{unended:.3g} of {row['n']}",
                _ratios(row, "generator_share"),
                f"{row['trainable_parameters']:,}",
                f"{row['training_seconds']:.0f}",
                "" if operations is None else f"{operations / 1e12:.1f}",
                f"{row['seen_questions']:,}",
                f"{row['learning_rate']:g}",
                *(_p_value(row[name]) for name in ("p_against_soft_words", "p_over_generator", "p_over_no_cot")),
            ]
        )
    return markdown_table(header, lines)


def _ratios(row: dict, *names: str) -> str:
    return ", ".join(f"{row[name]:.2f}" for name in names if row[name] is not None)


def _difficulty(rows: Sequence[dict]) -> str:
    steps = [group["steps"] for group in rows[0]["by_steps"]]
    lines = []
    for row in rows:
        values = {group["steps"]: group["accuracy"] for group in row["by_steps"]}
        lines.append([row["title"], *(f"{100 * values[count]:.0f}" for count in steps)])
    return markdown_table(["method", *map(str, steps)], lines)
