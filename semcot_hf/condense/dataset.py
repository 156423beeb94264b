"""`condense_dataset` makes reasoning and condensed reasoning for a dataset that lacks them; resumable at any point."""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from datasets import Dataset, DatasetDict

from ..answers import infer_answer_type
from ..data.files import write_lines, write_splits, write_text
from ..data.loading import split_files
from ..data.schema import COLUMNS, FEATURES
from ..data.splits import SPLITS
from ..progress import progress_bar
from .journal import Journal, Reply
from .requests import STAGES, Outcome, Plan, Request, fault_of, finished_row, follow

JOURNAL_FILE = "journal.jsonl"
FAILURES_FILE = "failures.jsonl"
REPORT_FILE = "report.json"


class Source(Protocol):
    """What answers requests: `EndpointSource`, `LocalSource`, `EquationSource`, `SurprisalSource`.

    Attributes:
        is_rule: whether it condenses by a rule: it makes no reasoning, has one answer, and keeps whole steps or
            equations however long.
        fingerprint: what decides its replies; those made under another one are not used.
    """

    is_rule: bool
    fingerprint: Mapping

    def complete(
        self,
        requests: Sequence[Request],
        keep: Callable[[Request, Reply], None],
        fail: Callable[[Request, str], None],
    ) -> None: ...


@dataclass
class CondenseReport:
    """What came of a condensation, over all runs in its folder.

    Attributes:
        rows: rows of each split that was gone through.
        made: rows of each split that are complete.
        lacking: rows that came without what was to be made; with `replace`, all.
        rejected_rows: rows that were given up, by reason.
        failed_rows: rows whose requests got no reply, by problem; the next run asks again.
        wrong_given: rows that came with a reasoning that ends on a wrong answer.
        rejected_replies: replies that were not good enough, by stage and fault, also where a later one was.
        input_tokens, output_tokens: of all replies.
        cost: of them, in the currency of the prices; None without prices.
    """

    rows: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    lacking: int = 0
    rejected_rows: dict[str, int] = field(default_factory=dict)
    failed_rows: dict[str, int] = field(default_factory=dict)
    wrong_given: int = 0
    rejected_replies: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None


def condense_dataset(
    dataset: DatasetDict | Mapping[str, Dataset],
    source: Source,
    *,
    output_dir: str | os.PathLike,
    splits: Sequence[str] = ("train", "validation"),
    make: Sequence[str] = STAGES,
    replace: bool = False,
    answer_type: str | None = None,
    max_words: int = 10,
    max_attempts: int = 3,
    prices: tuple[float, float] | None = None,
    progress: bool = True,
) -> tuple[DatasetDict, CondenseReport]:
    """Make the reasoning and condensed reasoning that the rows of `splits` lack.

    Every reply is written to `output_dir/journal.jsonl` as it comes. Called again there after a kill, with the same
    source and data, it goes on where it was: no reply is bought or computed twice (requests that were under way when
    the process was killed are the only ones sent again). Rationales whose final answer is wrong are rejected and asked
    for again, also those that the dataset came with; over-long condensations are sent back; after `max_attempts`
    replies the row is given up. Rows that were given up or got no reply are left out of the result and told in
    `failures.jsonl`.

    `output_dir` then also holds `<split>.jsonl`, which `load_reasoning_dataset(output_dir)` reads, and `report.json`.
    Splits that were not asked for are handed on as they are.

    Args:
        dataset: splits by name, in the schema.
        source: what makes the texts.
        output_dir: made when missing.
        splits: those of the dataset to go through; of these, the dataset need not have all.
        make: "reasoning", "condensed_reasoning" or both.
        replace: makes them also where a row has them.
        answer_type: "numeric", "choice", "yes_no" or "sequence"; told from the answers by default.
        max_words: most words of a condensed reasoning from a language model.
        max_attempts: replies that are asked for before a row is given up.
        prices: per million of input and of output tokens, for the cost.
        progress: whether to show a progress bar, on a terminal.

    Returns:
        The completed dataset and the report.

    Raises:
        ValueError: for arguments out of range, columns that are missing, a folder that another run writes or that
            holds data of another origin, an endpoint that refuses or is down, or when nothing of a split remains.
    """
    _check_arguments(dataset, source, splits, make, max_words, max_attempts)
    folder = Path(output_dir)
    own = [folder / f"{name}.jsonl" for name in SPLITS] if (folder / JOURNAL_FILE).exists() else []
    foreign = [file for file in split_files(folder) if file not in own]
    if foreign:
        raise ValueError(
            f"output_dir={str(folder)!r} holds {foreign[0].relative_to(folder)}, data which this command did not "
            "write and would replace or mix with its own: name a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(split, i, row) for split in splits if split in dataset for i, row in enumerate(dataset[split])]
    if answer_type is None:
        answer_type = infer_answer_type(row["answer"] for _, _, row in rows if row["answer"].strip())
    plan = Plan(
        make=("condensed_reasoning",) if source.is_rule else tuple(make),
        replace=replace,
        answer_type=answer_type,
        max_words=None if source.is_rule else max_words,
        max_attempts=1 if source.is_rule else max_attempts,
        source=source.fingerprint,
    )
    with Journal(folder / JOURNAL_FILE) as journal:
        outcomes = _complete([row for _, _, row in rows], plan, source, journal, prices, progress)
        left_out = _left_out(rows, outcomes, journal)
    report = _report(rows, outcomes, left_out, prices)
    write_lines(folder / FAILURES_FILE, left_out)
    write_text(folder / REPORT_FILE, json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    for split in report.rows:
        if not report.made[split]:
            raise ValueError(
                f"output_dir={str(folder)!r}: none of the {report.rows[split]} rows of {split} could be completed "
                f"({_reasons(report)}); {FAILURES_FILE} there tells of each."
            )
    bad = {(failure["split"], failure["row"]) for failure in left_out}
    completed = dict(dataset)
    for split in report.rows:
        completed[split] = Dataset.from_list(
            [
                {column: made[column] for column in COLUMNS}
                for (name, i, row), outcome in zip(rows, outcomes, strict=True)
                if name == split and (name, i) not in bad and (made := finished_row(row, outcome))
            ],
            features=FEATURES,
        )
    write_splits(completed, folder)
    return DatasetDict(completed), report


def _check_arguments(dataset, source, splits, make, max_words, max_attempts):
    for name, value in (("max_words", max_words), ("max_attempts", max_attempts)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if not make or set(make) - set(STAGES):
        raise ValueError(f"make={list(make)} must be one or both of {', '.join(STAGES)}.")
    if source.is_rule and "condensed_reasoning" not in make:
        raise ValueError(f"make={list(make)}: a rule makes no reasoning. Add 'condensed_reasoning' or use a model.")
    present = [split for split in splits if split in dataset and len(dataset[split])]
    if not present:
        raise ValueError(f"splits={list(splits)}: the dataset has rows in none of them, but {', '.join(dataset)}.")
    for split in present:
        missing = [column for column in COLUMNS if column not in dataset[split].column_names]
        if missing:
            raise ValueError(f"dataset: {split} has no column {missing[0]!r}. Load it by load_reasoning_dataset.")


def _complete(rows, plan, source, journal, prices, progress) -> list[Outcome]:
    """Ask round by round whatever the rows need next, until no row needs anything that can be had."""
    outcomes = [follow(row, plan, journal.replies) for row in rows]
    total = sum(_stages(outcome, plan) for outcome in outcomes)
    counts = Counter()
    lock = threading.Lock()

    with progress_bar("condense", total, show=progress) as advance:

        def show():
            cost = cost_of(counts["input"], counts["output"], prices)
            tokens = tokens_text(counts["input"], counts["output"], cost)
            advance(counts["done"] - counts["shown"], f"{counts['done']:,}/{total:,}, {tokens}")
            counts["shown"] = counts["done"]

        def keep(request: Request, reply: Reply) -> None:
            journal.keep(request.key, reply, _about(request))
            with lock:
                counts["input"] += reply.input_tokens
                counts["output"] += reply.output_tokens
                last = len(request.earlier) + 1 >= plan.max_attempts
                counts["done"] += last or fault_of(request, reply) is None
                show()

        def fail(request: Request, problem: str) -> None:
            journal.fail(request.key, problem, _about(request))

        while True:
            counts["done"] = sum(_stages(outcome, plan) - _open(outcome) for outcome in outcomes)
            show()
            asked = {
                outcome.request.key: outcome.request
                for outcome in outcomes
                if outcome.request is not None and outcome.request.key not in journal.failures
            }
            if not asked:
                return outcomes
            source.complete(list(asked.values()), keep, fail)
            for place, outcome in enumerate(outcomes):
                if outcome.request is not None and outcome.request.key in asked:
                    outcomes[place] = follow(rows[place], plan, journal.replies)


def _about(request):
    return {"stage": request.stage, "question": request.query[:80]}


def _stages(outcome, plan):
    """Stages of a row that the bar counts; a row whose fault shows beforehand has none."""
    return len(plan.make) if outcome.request is not None or outcome.replies else 0


def _open(outcome):
    return outcome.open if outcome.request is not None else 0


def _left_out(rows, outcomes, journal) -> list[dict]:
    failures = []
    for (split, i, row), outcome in zip(rows, outcomes, strict=True):
        if outcome.rejected is None and outcome.request is None:
            continue
        failed = outcome.request is not None
        replies = [entry for entries in outcome.replies.values() for entry in entries]
        failures.append(
            {
                "split": split,
                "row": i,
                "query": row["query"],
                "answer": row["answer"],
                "status": "failed" if failed else "rejected",
                "reason": journal.failures[outcome.request.key] if failed else outcome.rejected,
                "last_reply": replies[-1][1].text if replies else None,
            }
        )
    return failures


def _report(rows, outcomes, left_out, prices) -> CondenseReport:
    report = CondenseReport(rows=dict(Counter(split for split, _, _ in rows)))
    lost = Counter(failure["split"] for failure in left_out)
    report.made = {split: count - lost[split] for split, count in report.rows.items()}
    for status, counted in (("rejected", report.rejected_rows), ("failed", report.failed_rows)):
        counted.update(Counter(failure["reason"] for failure in left_out if failure["status"] == status))
    replies = {key: entries for outcome in outcomes for key, entries in outcome.replies.items()}
    faults = Counter()
    for entries in replies.values():
        for stage, reply, fault in entries:
            report.input_tokens += reply.input_tokens
            report.output_tokens += reply.output_tokens
            if fault is not None:
                faults[f"{stage.replace('_', ' ')}: {fault}"] += 1
    report.rejected_replies = dict(faults)
    report.lacking = sum(bool(outcome.replies or outcome.request or outcome.rejected) for outcome in outcomes)
    report.wrong_given = sum(outcome.given_wrong for outcome in outcomes)
    report.cost = cost_of(report.input_tokens, report.output_tokens, prices)
    return report


def _reasons(report):
    reasons = {**report.rejected_rows, **report.failed_rows}
    return ", ".join(f"{count}: {reason}" for reason, count in reasons.items())


def cost_of(input_tokens: int, output_tokens: int, prices: tuple[float, float] | None) -> float | None:
    """Return the price of tokens, with `prices` per million of input and of output tokens; None without prices.

    >>> cost_of(2_000_000, 500_000, (0.15, 0.6))
    0.6
    """
    if prices is None:
        return None
    return round((input_tokens * prices[0] + output_tokens * prices[1]) / 1e6, 6)


def tokens_text(input_tokens: int, output_tokens: int, cost: float | None) -> str:
    """Return the numbers of tokens and their cost as text.

    >>> tokens_text(12_345, 678, 0.0123)
    '12,345 + 678 tokens, cost 0.0123'
    """
    tokens = f"{input_tokens:,} + {output_tokens:,} tokens"
    return tokens if cost is None else f"{tokens}, cost {cost:,.4f}"
