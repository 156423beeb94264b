"""The questions of a JSONL file and the file of their answers: read line by line, written whole or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Looked for where the default column is missing: the names that TRL gives to conversations.
CHAT_COLUMNS = ("prompt", "messages")
_TOLD = 5


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file.

    Attributes:
        path: the JSONL file; output: the file to write.
        column, output_column: where a row's question stands, and where its answer goes.
        queries: a text, or a list of chat messages, for each row.
        digest: hash of the file's content.
    """

    path: Path
    output: Path
    column: str
    output_column: str
    queries: list[str | list[dict]]
    digest: str

    def write(self, answers: Sequence[Mapping]) -> None:
        """Write the output: each row of the input as it stands, in its order, with the fields of its answer behind.

        Raises:
            ValueError: when the input is no longer what was read.
        """
        if _digest(self.path) != self.digest:
            raise ValueError(f"input={str(self.path)!r} has changed since it was read: rerun with --overwrite.")
        temporary = self.output.with_name(f".{self.output.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                for (_, line), answer in zip(_lines(self.path), answers, strict=True):
                    # Half a surrogate pair is valid JSON, but no UTF-8.
                    fields = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace")
                    file.write(line.strip().removesuffix(b"}").rstrip() + b", " + fields[1:] + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.output)
        finally:
            temporary.unlink(missing_ok=True)


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
        path: one JSON object a line, UTF-8; empty lines are passed over.
        output: the file that the answers are for.
        column: a row's question, a text or a list of chat messages, of which those behind the last one of the user
            are left out. Where the default column is missing, TRL's `prompt` or `messages` stands in.
        output_column: field of the answer; its tokens go to `<output_column>_tokens`, what kept a row from being
            answered to `error`.
        overwrite: whether an output that is there already may be replaced.

    Raises:
        FileNotFoundError: when the input or the folder of the output is missing.
        ValueError: for lines that are no JSON objects with a question, for fields that the answer would replace, or
            an output that is there already.
    """
    path, output = Path(path), Path(output)
    if not path.is_file():
        raise FileNotFoundError(f"input={str(path)!r} is no file: pass a JSONL file with one question a line.")
    if not output.parent.is_dir():
        raise FileNotFoundError(
            f"output={str(output)!r}: the folder {str(output.parent)!r} is missing: make it first."
        )
    if output.is_dir() or output.exists() and output.samefile(path):
        raise ValueError(f"output={str(output)!r} is the input or a folder: name another file.")
    if output.exists() and not overwrite:
        raise ValueError(f"output={str(output)!r} is there already: name another file, or pass --overwrite.")
    digest, queries, problems = _digest(path), [], []
    for number, line in _lines(path):
        try:
            queries.append(_question(line, column, output_column))
        except ValueError as problem:
            problems.append(f"{path}, line {number}: {problem}")
    if problems:
        more = [f"... and {len(problems) - _TOLD:,} more such lines."] if len(problems) > _TOLD else []
        raise ValueError("\n".join([*problems[:_TOLD], *more]))
    if not queries:
        raise ValueError(f"input={str(path)!r} holds no question: pass a JSONL file with one question a line.")
    return QuestionFile(path, output, column, output_column, queries, digest)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbers, from 1, and the bytes of the lines that are not empty."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _question(line: bytes, column: str, output_column: str) -> str | list[dict]:
    """The question of one line.

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
        raise ValueError(f"is no JSON ({error}). Write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"is no JSON object, but {_short(row)}. Write one JSON object a line.")
    names = [column, *CHAT_COLUMNS] if column == "query" else [column]
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"has no column {column!r}, but {', '.join(map(repr, row))}. Name the right one by --column.")
    for taken in (output_column, f"{output_column}_tokens"):
        if taken in row:
            raise ValueError(f"has a column {taken!r} already. Name another one for the answers by --output_column.")
    if "error" in row:
        raise ValueError("has a column 'error', which is for questions that cannot be answered. Rename it.")
    question = _text_or_chat(row[name], name)
    if not question:
        raise ValueError(f"has an empty question in column {name!r}. Fill it in, or take the line out.")
    if re.search("[\ud800-\udfff]", json.dumps(question, ensure_ascii=False)):
        raise ValueError(f"has half a surrogate pair in column {name!r}, which is no character. Correct the text.")
    return question


def _text_or_chat(value: object, name: str) -> str | list[dict]:
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
