"""The answers of a run that is not finished: one JSON line per batch, kept through a kill."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

# A killed process loses nothing that was written; a machine without power loses so much at most.
_SYNC_SECONDS = 5.0


class WorkFile:
    """The batches that are answered, in the order in which they came, behind a line that tells whose run it is.

    A batch is one line and written at once. What follows the last whole line, such as a killed process or a full disk
    leaves it, is dropped and answered again. It stands beside the output until `remove`.

    Args:
        output: the run's output; the file's name is that with `.partial` behind it.
        fingerprint: what decides the answers.
        overwrite: discards the batches of another run.

    Attributes:
        answers: (text, number of tokens) by index of the question.
        budget: the requested tokens per batch of the run that wrote the last batch, and those it had come down to.

    Raises:
        ValueError: when another process writes the file, or when it belongs to another run.
    """

    def __init__(self, output: Path, fingerprint: Mapping, *, overwrite: bool = False):
        self.path = output.with_name(f"{output.name}.partial")
        self.answers: dict[int, tuple[str, int]] = {}
        self.budget: tuple[int, int] | None = None
        self._synced = time.monotonic()
        self._lock = FileLock(output.with_name(f".{output.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"output={str(output)!r}: another run is writing {self.path}. Wait for it, or name another output."
            ) from error
        try:
            self._file = self.path.open("a+b")
            self._resume(fingerprint, overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _resume(self, fingerprint, overwrite):
        self._file.seek(0)
        header = self._file.readline()
        if header.endswith(b"\n"):
            found = _parse(header).get("fingerprint")
            if found == json.loads(json.dumps(fingerprint)):
                self._read(len(header))
                return
            if not overwrite:
                self._refuse(found or {}, fingerprint)
        self._file.truncate(0)
        self._write({"fingerprint": fingerprint})

    def _read(self, size):
        for line in self._file:
            record = _parse(line)
            try:
                budget = tuple(record["tokens_per_batch"])
                answers = {index: (text, tokens) for index, text, tokens in record["answers"]}
            except (KeyError, TypeError, ValueError):
                break
            self.answers.update(answers)
            self.budget = budget
            size += len(line)
        self._file.truncate(size)

    def _refuse(self, found, fingerprint):
        names = sorted(name for name in {*found, *fingerprint} if found.get(name) != fingerprint.get(name))
        differences = ", ".join(f"{name}: {found.get(name)!r} there, {fingerprint.get(name)!r} now" for name in names)
        raise ValueError(
            f"{self.path} holds the answers of another run ({differences}). Name another output, or pass --overwrite "
            "to discard them."
        )

    def append(
        self, indices: Sequence[int], answers: Sequence[tuple[str, int]], *, requested: int, tokens_per_batch: int
    ) -> None:
        """Add a batch: its questions, their texts and numbers of tokens, and the budget it was made under."""
        self.answers.update(zip(indices, answers, strict=True))
        self._write(
            {
                "tokens_per_batch": [requested, tokens_per_batch],
                "answers": [[index, *answer] for index, answer in zip(indices, answers, strict=True)],
            }
        )
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _write(self, record):
        # ASCII, since an answer may hold half a surrogate pair.
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Take the file away, once the output is written."""
        self.path.unlink()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._lock.release()


def _parse(line: bytes) -> dict:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {}
