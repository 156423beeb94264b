"""The report of a sweep of stage 1: tables as Markdown, and all figures as JSON."""

from pathlib import Path

import numpy as np

from ...storage import write_atomically, write_json
from ...tables import markdown_table
from ..summary import paired_p_value
from .embeddings import PLOT
from .settings import FACTORS, shown

REPORT, TABLES = "report.json", "report.md"
_NOTES = (
    "R@1 is the share of texts whose partner is found first among all validation pairs, MRR the mean reciprocal rank, "
    "in both directions: reasoning to condensed reasoning, and the reverse; ties count against the encoder. 'p' "
    "compares a run's reciprocal ranks, the mean of both directions for each pair, with those of the centre (paired "
    "sign-flip test, two-sided). Losses of different temperatures and batches cannot be compared. 'untrained' is the "
    "host's pooled states behind a random linear layer. The runs differ from the centre in one setting each."
)


def save_report(report: dict, folder: Path) -> None:
    """Write the JSON and the Markdown of a report."""
    write_json(folder / REPORT, report)
    write_atomically(folder / TABLES, markdown(report))


def markdown(report: dict) -> str:
    """Format the report as Markdown."""
    machine, pairs = report["rows"][-1]["environment"], report["pairs"]
    lines = [
        "# Stage 1: one setting at a time",
        "",
        f"`{report['command']}`",
        "",
        f"{machine['cpu']}, {machine['threads']} threads, device {machine['device']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}. {pairs['train']} training and {pairs['validation']} validation "
        "pairs.",
        "",
        _NOTES,
        "",
        *sweep_table(report),
        "",
        f"The best encoder is that of: {report['best']}.",
    ]
    if report["alphas"]:
        lines += ["", "## What the alignment loss adds", "", *alphas_table(report["alphas"])]
    lines += ["", "## f's space", "", *_space(report["embeddings"])]
    return "\n".join(lines) + "\n"


def sweep_table(report: dict) -> list[str]:
    """Return the lines of the table of all runs."""
    header = ["setting", "value", "loss", "R@1 to condensed", "MRR", "R@1 to reasoning", "MRR", "mean MRR", "p"]
    header += ["steps", "seconds"]
    centre = next(row for row in report["rows"] if row["factor"] == "centre")
    names = ["top1_reasoning_to_condensed", "mrr_reasoning_to_condensed"]
    names += ["top1_condensed_to_reasoning", "mrr_condensed_to_reasoning", "mrr"]
    lines = []
    for row in report["rows"]:
        metrics, losses = row["retrieval"], row["losses"]
        value = ", ".join(f"{FACTORS[name]} {shown(each)}" for name, each in row["values"].items())
        lines.append(
            [
                FACTORS.get(row["factor"], row["factor"]),
                value if row["value"] is None else shown(row["value"]),
                f"{losses[0][1]:.2f} → {losses[-1][1]:.2f}" if losses else "",
                *(f"{metrics[name]:.3f}" for name in names),
                "" if row is centre else f"{_p_value(row, centre):.4f}",
                str(row["steps"]),
                f"{row['seconds']:.0f}",
            ]
        )
    return markdown_table(header, lines).splitlines()


def alphas_table(alphas: dict) -> list[str]:
    """Return the lines about the weights of the alignment loss."""
    lines = []
    for row in alphas["rows"]:
        low, high = row["ci95"]
        p = "" if row["p"] is None else f"{row['p']:.3f}"
        lines.append([f"{row['alpha']:g}", f"{row['accuracy']:.1%} [{low:.1%}, {high:.1%}]", str(row["n"]), p])
    told = f"Answers to the {alphas['split']} questions; p is McNemar's, exact. Host, no CoT: {alphas['no_cot']:.1%}."
    return [told, "", *markdown_table(["alpha", "accuracy, 95 %", "questions", "p against 0"], lines).splitlines()]


def _space(embeddings: dict) -> list[str]:
    first, second = embeddings["explained"]
    lines = [
        f"![Reasoning, condensed reasoning and implicit tokens]({PLOT})",
        "",
        f"{embeddings['pairs']} validation pairs; the two principal components have {first:.0%} and {second:.0%} of "
        "the variance.",
    ]
    if embeddings["models"]:
        header = ["implicit tokens of", "cosine with their reasoning", "with others'", "R@1 of it", "MRR of it"]
        names = ("cosine_own", "cosine_others", "top1", "mrr")
        rows = [[name, *(f"{each[key]:.3f}" for key in names)] for name, each in embeddings["models"].items()]
        lines += ["", *markdown_table(header, rows).splitlines()]
    return lines


def _p_value(row: dict, centre: dict) -> float:
    one, other = (np.mean(1 / np.array(each["ranks"]), axis=0)[None] for each in (row, centre))
    return paired_p_value(one, other)
