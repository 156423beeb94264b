"""How a run is kept on disk: files written as a whole, digests, a journal of rows, and the check for the same run."""

import hashlib
import json
import os
import re
import threading
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from .modeling.offloading_semcot import read_parameter

# A killed process loses nothing that was written; a machine that loses power loses at most this much.
_SYNC_SECONDS = 5.0
_MARKED_LINE = re.compile(rb'(.*), "crc32": "([0-9a-f]{8})"\}\n', re.DOTALL)
_Self = TypeVar("_Self", bound="Journal")


@contextmanager
def name_path(path: str | os.PathLike) -> Iterator[None]:
    """Give an OSError a path if it has none, as errors of writing to an open file have."""
    try:
        yield
    except OSError as error:
        # One without a number has a message instead, which a path would replace.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path, and move it to `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with name_path(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is present as a whole or not at all; text is encoded as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping]) -> None:
    """Write one JSON object per line, atomically."""
    write_atomically(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def as_json(value: object) -> object:
    """Return `value` as it reads back from JSON.

    >>> as_json({"rates": (0.1, 0.2)})
    {'rates': [0.1, 0.2]}
    """
    return json.loads(json.dumps(value))


def text_digest(texts: Iterable[object]) -> str:
    """Return a short hash of JSON-like values in their order.

    >>> text_digest(["a", [1, 2]]) == text_digest(["a", [1, 3]])
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()[:16]


def weights_digest(model: torch.nn.Module, samples: int | None = 256) -> str:
    """Return a short hash of a model's weights, from about `samples` evenly spaced values of each tensor.

    Training changes nearly all values, so the default distinguishes two checkpoints of one architecture in
    milliseconds; `None` reads every value.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        weight = read_parameter(model, name, weight)
        if not weight.is_meta and weight.numel():
            flat = weight.detach().reshape(-1)
            step = 1 if samples is None else max(1, len(flat) // samples)
            digest.update(cast(Any, flat[::step].cpu().contiguous().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def config_digest(model: PreTrainedModel) -> str:
    """Return a short hash of a model's configuration and generation defaults.

    Neither its path counts, nor its calibration (`config.escalation`), which changes no answer unless it is asked for.
    """
    config = {k: value for k, value in model.config.to_dict().items() if k not in ("_name_or_path", "escalation")}
    return text_digest([json.dumps([config, model.generation_config.to_dict()], sort_keys=True, default=str)])


def check_same_run(found: Mapping, wanted: Mapping, *, place: str, remedy: str) -> None:
    """Raise a ValueError that lists the differences when stored settings are not the present ones.

    Args:
        found: the settings stored with an earlier run, as read from JSON.
        wanted: the settings of this run.
        place: what holds the earlier run, with its name: the beginning of the message.
        remedy: what the user can do: the end of the message.

    >>> check_same_run({"seed": 0}, {"seed": 1}, place="output_dir='runs'", remedy="Choose another folder.")
    Traceback (most recent call last):
    ...
    ValueError: output_dir='runs' holds another run (seed: 0 there, 1 now). Choose another folder.
    """
    wanted = dict(as_json(dict(wanted)))  # type: ignore[call-overload]
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if names:
        differences = ", ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)
        raise ValueError(f"{place} holds another run ({differences}). {remedy}")


class Journal:
    """A file of JSON lines that one process appends to, and that survives a kill at any moment.

    Each `append` writes whole lines at once, each with a checksum. A killed process can leave part of a line at the
    end of the file: `read` drops it. Threads may share a journal.

    Args:
        path: the file; created when missing.
        strict: whether a damaged last line is an error; else it is dropped, as what a machine that lost power left.
        context: what the records belong to, such as a hash of the run; lines of another journal count as damaged.

    Raises:
        ValueError: when another process has the journal open.
    """

    def __init__(self, path: Path, *, strict: bool = False, context: str = ""):
        self.path, self._strict, self._context = path, strict, context
        self._thread_lock = threading.Lock()
        self._ends = array("q", [0])
        self._synced = time.monotonic()
        self._process_lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._process_lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another run is writing {path}: wait for it to end, or choose another output."
            ) from error
        try:
            # Without a buffer, which would keep what a full disk refused, and write it later.
            self._file = path.open("ab", buffering=0)
        except BaseException:
            self._process_lock.release()
            raise

    def read(self) -> Iterator[dict]:
        """Yield the records in the file, then cut off what follows the last whole one.

        Raises:
            ValueError: for a damaged line.
        """
        self._ends = array("q", [0])
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                record = _record_of(line, self._context)
                if record is None:
                    # What lost power may have left is no line with a checksum, and nothing whole follows it.
                    left = _MARKED_LINE.fullmatch(line) is None and not any(
                        _record_of(later, self._context) is not None for later in file
                    )
                    if self._strict or not left:
                        raise ValueError(
                            f"line {number} of {self.path} is not a record of this run (damaged, or another run's): "
                            "delete that line, and what it held is made again, or choose another output."
                        )
                    break
                self._ends.append(self._ends[-1] + len(line))
                yield record
        self._file.truncate(self._ends[-1])

    def keep(self, count: int) -> None:
        """Cut the file behind its first `count` records; call it after `read`."""
        del self._ends[count + 1 :]
        self._file.truncate(self._ends[-1])

    def append(self, *records: Mapping) -> None:
        """Append records, as one write handed to the operating system; all of them, or none where that fails."""
        lines = memoryview(b"".join(_line_of(record, self._context) for record in records))
        with self._thread_lock, name_path(self.path):
            start = self._file.seek(0, os.SEEK_END)
            try:
                while lines:
                    lines = lines[self._file.write(lines) :]
            except OSError:
                # Else the next record would continue half a line.
                self._file.truncate(start)
                raise
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def delete(self) -> None:
        """Remove the file, when its content is stored elsewhere."""
        self.path.unlink()

    def close(self) -> None:
        """Close the file and let other processes open it."""
        self._file.close()
        # Unlinked while it is held, so that no other process can hold the deleted file; Windows does not permit it.
        with suppress(OSError):
            Path(self._process_lock.lock_file).unlink()
        self._process_lock.release()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_json_lines(path: Path, context: str | None = None) -> list[dict]:
    """Return the records of a finished file of JSON lines.

    Args:
        path: the file.
        context: that of the journal that wrote it; `None` compares no checksums.

    Raises:
        ValueError: for a damaged line.
    """
    records = []
    # Not splitlines: a text may hold other line separators.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        record = _record_of(line + b"\n", context) if line else {}
        if record is None:
            raise ValueError(f"line {number} of {path} is damaged, or another run's: make the file again.")
        if line:
            records.append(record)
    return records


def _line_of(record: Mapping, context: str) -> bytes:
    """Return a record as a line of a journal.

    >>> line = _line_of({"a": 1}, "run")
    >>> line[:18], _record_of(line, "run")
    (b'{"a": 1, "crc32": ', {'a': 1})
    >>> _record_of(line, "another run"), _record_of(line.replace(b"1", b"2", 1), "run")
    (None, None)
    """
    # ASCII, since a text may hold half a surrogate pair.
    text = json.dumps(record).encode()
    checksum = zlib.crc32(text, zlib.crc32(context.encode()))
    return text[:-1] + b', "crc32": "%08x"}\n' % checksum


def _record_of(line: bytes, context: str | None) -> dict | None:
    """Return the record in a line; `None` if it is damaged. Lines without a checksum, of older versions, have one too.

    Args:
        line: the line with its end.
        context: as in `Journal`; `None` compares no checksum.
    """
    marked = _MARKED_LINE.fullmatch(line)
    if marked is not None:
        line = marked[1] + b"}"
        if context is not None and int(marked[2], 16) != zlib.crc32(line, zlib.crc32(context.encode())):
            return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
