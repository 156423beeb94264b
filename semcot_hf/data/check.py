"""`check_dataset` reports faulty rows and overlapping splits as tables; `clean_dataset` removes them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ..answers import check_answer, infer_answer_type
from ..tables import markdown_table
from .rationale import rationale_agrees
from .splits import SPLITS, normalise_question

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One fault in one split.

    Attributes:
        split: the split of the faulty rows.
        fault: the fault.
        severity: "error" (not fit for training or evaluation), "warning" or "info".
        rows: indices of the faulty rows.
        size: number of rows of the split.
    """

    split: str
    fault: str
    severity: str
    rows: tuple[int, ...]
    size: int

    def to_json(self) -> dict:
        """Return the finding with the number of rows and the first ones as examples."""
        about = {"split": self.split, "fault": self.fault, "severity": self.severity}
        return {**about, "count": len(self.rows), "of": self.size, "examples": list(self.rows[:_SHOWN])}


@dataclass
class DataReport:
    """The result of `check_dataset`.

    Attributes:
        answer_type: "numeric", "choice", "yes_no", "sequence" or "expression", as given or inferred.
        sizes: rows of each split.
        findings: the faults, by split.
        token_lengths: median, 95th percentile and maximum of tokens per row (query, reasoning and answer), by split;
            empty without a tokenizer.
    """

    answer_type: str
    sizes: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    token_lengths: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def count(self, fault: str, split: str | None = None) -> int:
        """Return the rows with `fault`, in `split` or in all splits."""
        return sum(len(f.rows) for f in self.findings if f.fault == fault and split in (None, f.split))

    def summary(self) -> str:
        """Return the sizes and the answer type as a sentence, and whether there are faults."""
        sizes = ", ".join(f"{split} {size:,}" for split, size in self.sizes.items())
        return f"Rows: {sizes}. Answer type: {self.answer_type}." + ("" if self.findings else "\n\nNo faults found.")

    def tables(self, shown: int = _SHOWN) -> list[tuple[list[str], list[list[str]], list[str]]]:
        """Return header, rows and right-aligned columns of the tables of faults and of token lengths.

        Args:
            shown: number of row indices to list for each fault.
        """
        tables = []
        if self.findings:
            rows = []
            for f in self.findings:
                first = ", ".join(map(str, f.rows[:shown])) + (", ..." if len(f.rows) > shown else "")
                rows.append([f.split, f.fault, f.severity, f"{len(f.rows):,}", f"{f.size:,}", first])
            tables.append((["split", "fault", "severity", "rows", "of", "first rows"], rows, ["rows", "of"]))
        if self.token_lengths:
            rows = [
                [split, *(f"{lengths[key]:g}" for key in ("median", "p95", "max"))]
                for split, lengths in self.token_lengths.items()
            ]
            header = ["split", "median tokens", "p95", "longest"]
            tables.append((header, rows, header[1:]))
        return tables

    def to_markdown(self) -> str:
        """Return the sizes, the faults and the token lengths as markdown."""
        return "\n\n".join([self.summary(), *(markdown_table(*table) for table in self.tables())]) + "\n"

    def to_json(self) -> dict:
        """Return the report as a dictionary for `json.dump`."""
        return {
            "answer_type": self.answer_type,
            "has_errors": self.has_errors,
            "sizes": self.sizes,
            "findings": [f.to_json() for f in self.findings],
            "token_lengths": self.token_lengths,
        }


def check_dataset(
    dataset: DatasetDict | Mapping[str, Dataset],
    *,
    answer_type: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    max_condensed_words: int = 10,
) -> DataReport:
    """Find the faults of a dataset in the schema.

    Errors: an empty query or answer; an answer that is not of `answer_type`; one question with two answers; in train
    and validation also a question that occurs in a later split (in the same words, or apart from case and
    punctuation), a reasoning or condensed reasoning that is empty while other rows have one, a rationale that ends on
    a wrong answer, and a row longer than the context; the last three are warnings in test, whose rationales are not
    used for training. Warnings: repeated questions and condensed reasoning of more than `max_condensed_words` words.
    Information: a field that is empty throughout a split, and rationales that state no answer.

    Args:
        dataset: splits by name ("train", "validation", "test").
        answer_type: of all answers; inferred from them by default.
        tokenizer: of the model that the data is for; without it no lengths are measured.
        max_length: tokens of the context; the tokenizer's `model_max_length` by default.
        max_condensed_words: words above which a condensed reasoning is over-long.

    Raises:
        ValueError: for an unknown split, a missing column or no rows at all.
    """
    _check_splits(dataset)
    columns = {split: {name: rows[name][:] for name in rows.column_names} for split, rows in dataset.items()}
    if answer_type is None:
        answer_type = infer_answer_type([answer for rows in columns.values() for answer in rows["answer"] if answer])
    report = DataReport(answer_type, {split: len(rows) for split, rows in dataset.items()})
    questions = {split: [normalise_question(query) for query in rows["query"]] for split, rows in columns.items()}
    if tokenizer is not None and max_length is None and tokenizer.model_max_length < 10**9:
        max_length = tokenizer.model_max_length

    for split in (split for split in SPLITS if split in columns):
        rows = columns[split]
        in_test = "warning" if split == "test" else "error"

        def add(fault: str, severity: str, found: Iterable[int], split: str = split) -> None:
            if indices := tuple(found):
                report.findings.append(Finding(split, fault, severity, indices, report.sizes[split]))

        for name in ("query", "answer", "reasoning", "condensed_reasoning"):
            empty = [i for i, text in enumerate(rows[name]) if not text.strip()]
            if len(empty) == len(rows[name]) and name not in ("query", "answer"):
                add(f"no {name} in the whole split", "info", empty)
            else:
                add(f"empty {name}", "error" if name in ("query", "answer") else in_test, empty)

        judged = [_is_judged(answer, answer_type) for answer in rows["answer"]]
        unjudged = (i for i, answer in enumerate(rows["answer"]) if answer.strip() and not judged[i])
        add(f"answer cannot be judged as {answer_type}", "error", unjudged)
        repeated, contradicting = _repeated(questions[split], rows["answer"], judged, answer_type)
        add("repeated question", "warning", repeated)
        add("same question, other answer", "error", contradicting)
        for later in SPLITS[SPLITS.index(split) + 1 :]:
            if later in columns:
                exact, normalised = set(columns[later]["query"]), set(questions[later])
                same = [i for i, query in enumerate(rows["query"]) if query in exact]
                add(f"question also in {later}", "error", same)
                close = [
                    i for i, q in enumerate(questions[split]) if q in normalised and rows["query"][i] not in exact
                ]
                add(f"question also in {later}, but for case or punctuation", "error", close)

        verdicts = [
            rationale_agrees(reasoning, answer, answer_type) if judgeable else None
            for reasoning, answer, judgeable in zip(rows["reasoning"], rows["answer"], judged, strict=True)
        ]
        add("rationale ends on a wrong answer", in_test, (i for i, v in enumerate(verdicts) if v is False))
        unstated = (i for i, v in enumerate(verdicts) if v is None and judged[i] and rows["reasoning"][i].strip())
        add("rationale states no answer", "info", unstated)
        long = (i for i, text in enumerate(rows["condensed_reasoning"]) if len(text.split()) > max_condensed_words)
        add(f"condensed reasoning over {max_condensed_words} words", "warning", long)

        if tokenizer is not None:
            lengths = _token_lengths(rows, tokenizer)
            report.token_lengths[split] = {
                "median": float(np.median(lengths)),
                "p95": float(np.quantile(lengths, 0.95)),
                "max": float(np.max(lengths)),
            }
            if max_length is not None:
                over = (i for i, length in enumerate(lengths) if length > max_length)
                add(f"over {max_length} tokens", in_test, over)
    return report


def clean_dataset(dataset: DatasetDict | Mapping[str, Dataset], report: DataReport) -> DatasetDict:
    """Return a copy of `dataset` without the train and validation rows that `report` lists as errors or repeated.

    Test rows are unchanged: a question that occurs in train and in test is removed from train.

    Raises:
        ValueError: when `report` is of other data, or no row of a split would remain.
    """
    _check_splits(dataset)
    if report.sizes != {split: len(rows) for split, rows in dataset.items()}:
        raise ValueError(f"report: it is about {report.sizes} rows, not this dataset. Pass check_dataset(dataset).")
    cleaned = {}
    for split, rows in dataset.items():
        bad = {
            row
            for f in report.findings
            if f.split == split != "test" and (f.severity == "error" or f.fault == "repeated question")
            for row in f.rows
        }
        if len(bad) == len(rows):
            raise ValueError(f"dataset: all {len(rows)} rows of {split} are faulty, so that nothing would remain.")
        cleaned[split] = rows.select([row for row in range(len(rows)) if row not in bad]) if bad else rows
    return DatasetDict(cleaned)


def _check_splits(dataset: Mapping[str, Dataset]) -> None:
    for split, rows in dataset.items():
        if split not in SPLITS:
            raise ValueError(f"dataset has a split {split!r}: name its splits {', '.join(SPLITS)}.")
        for name in ("query", "reasoning", "condensed_reasoning", "answer"):
            if name not in rows.column_names:
                raise ValueError(
                    f"dataset: {split} has no column {name!r}, but {', '.join(rows.column_names)}. Load it with "
                    "load_reasoning_dataset."
                )
    if not any(len(rows) for rows in dataset.values()):
        raise ValueError(f"dataset: none of its splits ({', '.join(dataset)}) has a row. Pass a dataset with rows.")


@lru_cache(maxsize=10_000)
def _is_judged(answer: str, answer_type: str) -> bool:
    """Return whether an output that equals the answer would be judged correct."""
    try:
        return check_answer(answer, answer, answer_type)
    except ValueError:
        return False


def _repeated(
    questions: list[str], answers: list[str], judged: list[bool], answer_type: str
) -> tuple[list[int], list[int]]:
    """Return the rows that repeat an earlier one, and those whose question also occurs with another answer."""

    def same(row: int, other: int) -> bool:
        if judged[row] and judged[other]:
            return check_answer(answers[row], answers[other], answer_type)
        return answers[row] == answers[other]

    groups = defaultdict(list)
    for row, question in enumerate(questions):
        groups[question].append(row)
    repeated, contradicting = [], []
    for first, *others in groups.values():
        if all(same(row, first) for row in others):
            repeated += others
        else:
            contradicting += [first, *others]
    return sorted(repeated), sorted(contradicting)


def _token_lengths(rows: Mapping[str, list[str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    texts = [f"{q}\n{r}\n{a}" for q, r, a in zip(rows["query"], rows["reasoning"], rows["answer"], strict=True)]
    lengths: list[int] = []
    for start in range(0, len(texts), 1000):
        encoded = tokenizer(texts[start : start + 1000], truncation=False, verbose=False)["input_ids"]
        lengths += map(len, encoded)
    return lengths
