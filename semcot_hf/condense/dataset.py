"""`condense_dataset`: make reasoning and condensed reasoning for a dataset that lacks them, resumable at any point."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict

from ..answers import infer_answer_type
from ..data.loading import write_splits
from ..data.reading import split_files
from ..data.schema import COLUMNS, FEATURES
from ..data.splits import SPLITS
from ..progress import progress_bar
from ..storage import write_json, write_json_lines
from .config import CondenseConfig
from .journal import Reply, ReplyJournal
from .requests import Outcome, Plan, Request, Source, fault_of, finished_row, follow

JOURNAL_FILE = "journal.jsonl"
FAILURES_FILE = "failures.jsonl"
REPORT_FILE = "report.json"

# A row with its split and its index there.
_PlacedRow = tuple[str, int, dict]


@dataclass
class CondenseReport:
    """The result of a condensation, over all runs in its folder.

    Attributes:
        rows: rows of each requested split.
        made: rows of each split that are complete.
        lacking: rows that came without a text that was to be made; all rows with `replace`.
        rejected_rows: rejected rows, by reason.
        failed_rows: rows whose requests got no reply, by problem; the next run asks again.
        wrong_given: rows that came with a reasoning that ends on a wrong answer.
        rejected_replies: rejected replies, by stage and fault, including those that a better reply followed.
        input_tokens, output_tokens: of all replies.
        cost: of the tokens, in the currency of the prices; `None` without prices.
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
    dataset: DatasetDict | Mapping[str, Dataset], source: Source, config: CondenseConfig, *, progress: bool = True
) -> tuple[DatasetDict, CondenseReport]:
    """Make the reasoning and condensed reasoning that the rows of `config.splits` lack.

    Every reply is written to `output_dir/journal.jsonl` when it arrives. Called again after a kill, with the same
    source and data, the function continues from there: no reply is bought or computed twice (only requests that were
    under way when the process was killed are sent again). Rationales whose final answer is wrong are rejected and
    requested again, including those that the dataset came with; over-long condensations are sent back; after
    `max_attempts` replies the row is rejected. Rows that were rejected or got no reply are left out of the result and
    listed in `failures.jsonl`.

    `output_dir` then also holds `<split>.jsonl`, which `load_reasoning_dataset(output_dir)` reads, and `report.json`.
    Other splits are copied unchanged.

    Args:
        dataset: splits by name, in the schema.
        source: makes the texts.
        config: see `CondenseConfig`.
        progress: whether to show a progress bar, on a terminal.

    Returns:
        The completed dataset and the report.

    Raises:
        ValueError: for options that do not fit the source or the data, missing columns, a folder that another run is
            writing or that holds data of another origin, an endpoint that refuses or is down, or a split of which no
            row is complete.
    """
    _check_fit(dataset, source, config)
    folder = Path(config.output_dir)
    own = [folder / f"{name}.jsonl" for name in SPLITS] if (folder / JOURNAL_FILE).exists() else []
    foreign = [file for file in split_files(folder) if file not in own]
    if foreign:
        raise ValueError(
            f"output_dir={str(folder)!r} holds {foreign[0].relative_to(folder)}, data which this command did not "
            "write and would replace or mix with its own: name a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[_PlacedRow] = [
        (split, i, row) for split in config.splits if split in dataset for i, row in enumerate(dataset[split])
    ]
    plan = Plan(
        make=("condensed_reasoning",) if source.is_rule or source.from_question else tuple(config.make),
        replace=config.replace,
        answer_type=config.answer_type
        or infer_answer_type(row["answer"] for *_, row in rows if row["answer"].strip()),
        max_words=None if source.is_rule or source.from_question else config.max_words,
        max_attempts=1 if source.is_rule else config.max_attempts,
        source=source.fingerprint,
        from_question=source.from_question,
    )
    with ReplyJournal(folder / JOURNAL_FILE) as journal:
        outcomes = _complete([row for _, _, row in rows], plan, source, journal, config, progress)
        left_out = _left_out(rows, outcomes, journal)
    report = _report(rows, outcomes, left_out, config)
    write_json_lines(folder / FAILURES_FILE, left_out)
    write_json(folder / REPORT_FILE, asdict(report))
    bad = {(failure["split"], failure["row"]) for failure in left_out}
    completed = dict(dataset)
    for split, count in report.rows.items():
        if not report.made[split]:
            reasons = {**report.rejected_rows, **report.failed_rows}
            raise ValueError(
                f"output_dir={str(folder)!r}: none of the {count} rows of {split} could be completed "
                f"({', '.join(f'{number}: {reason}' for reason, number in reasons.items())}); {FAILURES_FILE} there "
                "lists them."
            )
        made = [
            finished_row(row, outcome)
            for (name, i, row), outcome in zip(rows, outcomes, strict=True)
            if name == split and (name, i) not in bad
        ]
        completed[split] = Dataset.from_list([{c: row[c] for c in COLUMNS} for row in made], features=FEATURES)
    write_splits(completed, folder)
    return DatasetDict(completed), report


def _check_fit(dataset: Mapping[str, Dataset], source: Source, config: CondenseConfig) -> None:
    if source.is_rule and "condensed_reasoning" not in config.make:
        raise ValueError(
            f"make={list(config.make)}: a rule makes no reasoning. Add 'condensed_reasoning' or use a model."
        )
    if source.from_question and "condensed_reasoning" not in config.make:
        raise ValueError(
            f"make={list(config.make)}: a thought prompt makes no reasoning. Add 'condensed_reasoning', or leave "
            "thought_prompt out."
        )
    present = [split for split in config.splits if split in dataset and len(dataset[split])]
    if not present:
        raise ValueError(
            f"splits={list(config.splits)}: the dataset has rows in none of them, but {', '.join(dataset)}."
        )
    for split in present:
        missing = [column for column in COLUMNS if column not in dataset[split].column_names]
        if missing:
            raise ValueError(f"dataset: {split} has no column {missing[0]!r}. Load it with load_reasoning_dataset.")


def _complete(
    rows: list[dict],
    plan: Plan,
    source: Source,
    journal: ReplyJournal,
    config: CondenseConfig,
    progress: bool,
) -> list[Outcome]:
    """Send requests round by round until every row is finished, rejected or failed."""
    outcomes = [follow(row, plan, journal.replies) for row in rows]
    total = sum(outcome.stages for outcome in outcomes)
    tokens_read = tokens_written = shown = 0
    lock = threading.Lock()

    with progress_bar("condense", total, show=progress) as advance:

        def show(done: int) -> None:
            nonlocal shown
            tokens = tokens_text(tokens_read, tokens_written, config.cost(tokens_read, tokens_written))
            advance(done - shown, f"{done:,}/{total:,}, {tokens}")
            shown = done

        def keep(request: Request, reply: Reply) -> None:
            nonlocal tokens_read, tokens_written
            journal.add_reply(request.key, reply, _about(request))
            with lock:
                tokens_read += reply.input_tokens
                tokens_written += reply.output_tokens
                last = len(request.earlier) + 1 >= plan.max_attempts
                show(shown + (last or fault_of(request, reply) is None))

        def fail(request: Request, problem: str) -> None:
            journal.add_failure(request.key, problem, _about(request))

        while True:
            show(sum(outcome.stages - outcome.open for outcome in outcomes))
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


def _about(request: Request) -> dict[str, str]:
    return {"stage": request.stage, "question": request.query[:80]}


def _left_out(rows: list[_PlacedRow], outcomes: list[Outcome], journal: ReplyJournal) -> list[dict]:
    """Describe the rows that are not part of the result."""
    failures = []
    for (split, i, row), outcome in zip(rows, outcomes, strict=True):
        if outcome.rejected is None and outcome.request is None:
            continue
        replies = [entry for entries in outcome.replies.values() for entry in entries]
        failures.append(
            {
                "split": split,
                "row": i,
                "query": row["query"],
                "answer": row["answer"],
                "status": "failed" if outcome.request else "rejected",
                "reason": journal.failures[outcome.request.key] if outcome.request else outcome.rejected,
                "last_reply": replies[-1][1].text if replies else None,
            }
        )
    return failures


def _report(
    rows: list[_PlacedRow], outcomes: list[Outcome], left_out: list[dict], config: CondenseConfig
) -> CondenseReport:
    counts = Counter(split for split, _, _ in rows)
    lost = Counter(failure["split"] for failure in left_out)
    # Rows with the same question share replies, which are counted once.
    replies = {key: entries for outcome in outcomes for key, entries in outcome.replies.items()}
    entries = [entry for shared in replies.values() for entry in shared]
    read = sum(reply.input_tokens for _, reply, _ in entries)
    written = sum(reply.output_tokens for _, reply, _ in entries)

    def reasons(status: str) -> dict[str, int]:
        return dict(Counter(failure["reason"] for failure in left_out if failure["status"] == status))

    return CondenseReport(
        rows=dict(counts),
        made={split: count - lost[split] for split, count in counts.items()},
        lacking=sum(bool(outcome.replies or outcome.request or outcome.rejected) for outcome in outcomes),
        rejected_rows=reasons("rejected"),
        failed_rows=reasons("failed"),
        wrong_given=sum(outcome.given_wrong for outcome in outcomes),
        rejected_replies=dict(Counter(f"{stage.replace('_', ' ')}: {fault}" for stage, _, fault in entries if fault)),
        input_tokens=read,
        output_tokens=written,
        cost=config.cost(read, written),
    )


def tokens_text(input_tokens: int, output_tokens: int, cost: float | None) -> str:
    """Return the numbers of tokens and their cost as text.

    >>> tokens_text(12_345, 678, 0.0123)
    '12,345 + 678 tokens, cost 0.0123'
    """
    tokens = f"{input_tokens:,} + {output_tokens:,} tokens"
    return tokens if cost is None else f"{tokens}, cost {cost:,.4f}"
