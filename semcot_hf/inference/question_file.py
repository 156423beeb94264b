"""Read the questions of a JSONL file, checked line by line, and write the finished file of their answers."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage import write_atomically
from .prompting import Query

# TRL's names of conversations, looked for where the default column is missing.
CHAT_COLUMNS = ("prompt", "messages")
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file.

    Attributes:
        path: the JSONL file.
        output: the file to write.
        column, output_column: fields of a row's question and of its answer.
        queries: a text, or a list of chat messages, for each row.
        digest: hash of the file's content.
    """

    path: Path
    output: Path
    column: str
    output_column: str
    queries: list[Query]
    digest: str

    def write(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Write the output: each row of the input unchanged, in its order, followed by the fields of its answer.

        Raises:
            ValueError: when the input has changed since it was read.
        """
        if _digest(self.path) != self.digest:
            raise ValueError(f"input={str(self.path)!r} has changed since it was read: rerun with --overwrite.")
        rows = []
        for (_, line), answer in zip(_lines(self.path), answers, strict=True):
            # Half a surrogate pair is valid JSON but cannot be encoded as UTF-8.
            fields = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace")
            rows.append(line.strip().removesuffix(b"}").rstrip() + b", " + fields[1:] + b"\n")
        write_atomically(self.output, b"".join(rows))


def read_questions(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    column: str = "query",
    output_column: str = "output",
    overwrite: bool = False,
) -> QuestionFile:
    """Read the questions of a JSONL file and check that their answers can be written.

    Args:
        path: one JSON object per line, UTF-8; empty lines are skipped.
        output: the file for the answers.
        column: field of a row's question, a text or a list of chat messages; messages after the user's last one are
            left out. Where the default column is missing, TRL's `prompt` or `messages` is used.
        output_column: field of the answer. Its number of tokens is stored in `<output_column>_tokens`, with escalation
            its route and confidence in `<output_column>_route` and `<output_column>_confidence`, the reason why a row
            has no answer in `error`.
        overwrite: whether to replace an existing output.

    Raises:
        FileNotFoundError: when the input or the folder of the output is missing.
        ValueError: for lines that are not JSON objects with a question, for fields that the answer would replace, or
            for an existing output.
    """
    path, output = Path(path), Path(output)
    if not path.is_file():
        raise FileNotFoundError(f"input={str(path)!r} is not a file: pass a JSONL file with one question per line.")
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"output={str(output)!r}: the folder {str(output.parent)!r} is missing: create it first."
        )
    if output.is_dir() or output.exists() and output.samefile(path):
        raise ValueError(f"output={str(output)!r} is the input or a folder: name another file.")
    # A work file beside the output is of a run that was killed at its very end, and finishes it.
    if output.exists() and not overwrite and not output.with_name(f"{output.name}.partial").exists():
        raise ValueError(f"output={str(output)!r} already exists: name another file, or pass --overwrite.")
    digest, queries, problems = _digest(path), [], []
    for number, line in _lines(path):
        try:
            queries.append(_question(line, column, output_column))
        except ValueError as problem:
            problems.append(f"{path}, line {number}: {problem}")
    if len(problems) > _PROBLEMS_SHOWN:
        problems[_PROBLEMS_SHOWN:] = [f"... and {len(problems) - _PROBLEMS_SHOWN:,} more such lines."]
    if problems:
        raise ValueError("\n".join(problems))
    if not queries:
        raise ValueError(f"input={str(path)!r} holds no question: pass a JSONL file with one question per line.")
    return QuestionFile(path, output, column, output_column, queries, digest)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers, from 1, and the bytes of the lines that are not empty."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _question(line: bytes, column: str, output_column: str) -> Query:
    """Return the question of one line.

    >>> _question(b'{"query": " 1 + 1? "}', "query", "output")
    '1 + 1?'
    >>> _question(b'{"messages": [{"role": "user", "content": "1 + 1?"}]}', "query", "output")
    [{'role': 'user', 'content': '1 + 1?'}]
    """
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    except ValueError as error:
        raise ValueError(f"is not JSON ({error}). Write one JSON object per line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"is not a JSON object, but {_short(row)}. Write one JSON object per line.")
    names = [column, *CHAT_COLUMNS] if column == "query" else [column]
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"has no column {column!r}, but {', '.join(map(repr, row))}. Name the right one by --column.")
    for taken in (output_column, *(f"{output_column}_{name}" for name in ("tokens", "route", "confidence"))):
        if taken in row:
            raise ValueError(f"already has a column {taken!r}. Name another one for the answers by --output_column.")
    if "error" in row:
        raise ValueError("has a column 'error', which is used for questions that cannot be answered. Rename it.")
    question = _text_or_chat(row[name], name)
    if not question:
        raise ValueError(f"has an empty question in column {name!r}. Fill it in, or remove the line.")
    if re.search("[\ud800-\udfff]", json.dumps(question, ensure_ascii=False)):
        raise ValueError(f"has half a surrogate pair in column {name!r}, which is not a character. Correct the text.")
    return question


def _text_or_chat(value: object, name: str) -> Query:
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, list) or not all(
        isinstance(message, dict) and {"role", "content"} <= set(message) and isinstance(message["content"], str)
        for message in value
    ):
        raise ValueError(
            f"column {name!r} holds {_short(value)}. Make it a text, or a list of messages with role and content."
        )
    users = [index for index, message in enumerate(value) if message["role"] == "user" and message["content"].strip()]
    return value[: users[-1] + 1] if users else []


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
