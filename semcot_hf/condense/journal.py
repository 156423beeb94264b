"""The journal of a condensation: every reply that was bought or computed, one JSON line each, kept through a kill."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout


@dataclass(frozen=True)
class Reply:
    """What a source has answered.

    Attributes:
        text: the answer.
        cut_off: whether it ended on the limit of new tokens.
        input_tokens, output_tokens: what was read and written for it; 0 where the source does not tell.
        surprisal: of the answer, in nats, with all steps and with the kept ones (`SurprisalSource`).
    """

    text: str
    cut_off: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    surprisal: tuple[float, float] | None = None


class Journal:
    """The replies in a file, by the key of the request that they answer, in the order in which they came.

    A record is written as a whole line as soon as it is there, so that a killed process loses none; half a line that
    it may have left at the end is dropped. Failures are written down as well, but asked again by the next run. Half a
    surrogate pair, which an endpoint's JSON may hold but no file, becomes U+FFFD.

    Args:
        path: the file; made when missing.

    Raises:
        ValueError: when another process writes the same journal, or a line in it is no record.
    """

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[str, list[Reply]] = {}
        self.failures: dict[str, str] = {}
        self._lock = threading.Lock()
        self._process_lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._process_lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"output_dir: another run writes {path}. Wait for it, or choose another folder."
            ) from error
        try:
            self._file = path.open("a+b")
            self._read()
        except BaseException:
            self._process_lock.release()
            raise

    def _read(self):
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if "failure" not in record:
                    surprisal = record["reply"].pop("surprisal", None)
                    reply = Reply(**record["reply"], surprisal=tuple(surprisal) if surprisal else None)
                    self.replies.setdefault(record["key"], []).append(reply)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"output_dir: line {number} of {self.path} is no record of a reply ({error!r}). Take that line "
                    "out, or choose another folder."
                ) from error
        if len(whole) < len(content):
            self._file.truncate(len(whole))

    def keep(self, key: str, reply: Reply, about: Mapping) -> None:
        """Write down a reply; `about` (stage and question) is for people who read the file."""
        reply = replace(reply, text=_whole(reply.text))
        content = {name: value for name, value in asdict(reply).items() if value or name == "text"}
        with self._lock:
            self._write({"key": key, **about, "reply": content})
            self.replies.setdefault(key, []).append(reply)

    def fail(self, key: str, problem: str, about: Mapping) -> None:
        """Write down that a request got no reply."""
        problem = _whole(problem)
        with self._lock:
            self._write({"key": key, **about, "failure": problem})
            self.failures[key] = problem

    def _write(self, record):
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self._process_lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _whole(text: str) -> str:
    r"""A text without halves of surrogate pairs.

    >>> _whole("smile \ud83d!"), _whole("\ud83d\ude00") == "\U0001f600"
    ('smile \ufffd!', True)
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
