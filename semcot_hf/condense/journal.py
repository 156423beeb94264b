"""The replies of a condensation, kept in a journal that survives a kill."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..storage import Journal


@dataclass(frozen=True)
class Reply:
    """A reply of a source.

    Attributes:
        text: the reply itself.
        cut_off: whether it ended at the limit of new tokens.
        input_tokens, output_tokens: tokens read and generated for it; 0 where the source does not report them.
        surprisal: of the answer, in nats, given all steps and given the kept ones (`SurprisalSource`).
    """

    text: str
    cut_off: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    surprisal: tuple[float, float] | None = None


class ReplyJournal(Journal):
    """A journal of replies and failures, by the key of the request that they belong to.

    Failures are recorded as well, but the next run asks again. Threads may share the journal.

    Args:
        path: the file; created when missing.

    Attributes:
        replies: the replies to each request, in the order in which they arrived.
        failures: the problem of each request that failed in this run.

    Raises:
        ValueError: when another process has the journal open, or a line in it is not a record of a reply.
    """

    def __init__(self, path: Path):
        super().__init__(path, strict=True)
        self.replies: dict[str, list[Reply]] = {}
        self.failures: dict[str, str] = {}
        line = 0
        try:
            for record in self.read():
                line += 1
                if "failure" not in record:
                    self.replies.setdefault(record["key"], []).append(_reply(record["reply"]))
        except (KeyError, TypeError, AttributeError) as error:
            self.close()
            raise ValueError(
                f"line {line} of {path} is not a record of a reply ({error!r}): delete that line, or choose another "
                "output."
            ) from error
        except BaseException:
            self.close()
            raise

    def add_reply(self, key: str, reply: Reply, about: Mapping) -> None:
        """Record a reply; `about` (stage and question) is for people who read the file."""
        # An endpoint's JSON may hold half a surrogate pair, which the files of the dataset cannot.
        reply = replace(reply, text=_whole(reply.text))
        content = {name: value for name, value in asdict(reply).items() if value or name == "text"}
        self.append({"key": key, **about, "reply": content})
        self.replies.setdefault(key, []).append(reply)

    def add_failure(self, key: str, problem: str, about: Mapping) -> None:
        """Record that a request got no reply."""
        problem = _whole(problem)
        self.append({"key": key, **about, "failure": problem})
        self.failures[key] = problem


def _reply(content: dict) -> Reply:
    surprisal = content.pop("surprisal", None)
    return Reply(**content, surprisal=surprisal and tuple(surprisal))


def _whole(text: str) -> str:
    r"""Return `text` with U+FFFD for each half of a surrogate pair.

    >>> _whole("smile \ud83d!"), _whole("\ud83d\ude00") == "\U0001f600"
    ('smile \ufffd!', True)
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
