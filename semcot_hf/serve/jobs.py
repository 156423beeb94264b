"""`Job`: a prompt to be answered, what engines report of it, and the text of an answer that is being decoded."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling.escalation_semcot import ROUTER_SIGNALS, Escalation


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: of the HTTP response.
        message: what is wrong and what helps.
        param: name of the field that is to blame.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `None` leaves a setting to the model's generation config.

    Args:
        temperature: 0 decodes greedily.
        top_p, top_k, min_p, repetition_penalty: as in transformers.
        seed: of the sampling; choice i of a request uses seed + i.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability, and the most probable tokens at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next part of one answer.

    Args:
        index: number of the answer among the job's.
        text: text that has been added.
        tokens: log-probabilities of the tokens since the last piece, where they were asked for.
        finish_reason: "stop" or "length" with the last part, else `None`.
    """

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(eq=False)
class Job:
    """One prompt, and the answers that are wanted.

    Args:
        prompt: token ids.
        emit: called by the engine, from any thread, with each `Piece` and with a `RequestError` where it fails.
        count: number of implicit tokens, or their limit where the model ends its thoughts; 0 for the host alone.
        max_new_tokens: most tokens of each answer.
        choices: number of answers.
        sampling: how tokens are chosen.
        stops: texts that end an answer and are left out of it.
        top_logprobs: number of most probable tokens that are reported with each token; `None` for no report.
        wants_thought: whether `thought` is wanted.
        streamed: whether pieces are wanted before an answer is complete.
        rule: when the answer is replaced by explicit reasoning, or `None`; it is held back until this is decided.
        at_once_prompt, reasoning_prompt: token ids that an answer at once and explicit reasoning follow, if the rule
            chooses these; without the worked examples that `prompt` may have (`SemCoTConfig.few_shot_ids`).
        reasoning_tokens: most new tokens of explicit reasoning.

    Attributes:
        cancelled: set by the client's side; the engine then gives up the job's place.
        implicit_tokens: number of implicit tokens that were made.
        thought: what the implicit tokens say.
        completion_tokens: number of generated tokens, end-of-sequence tokens and a replaced answer included.
        prompt_tokens: number of the prompt's tokens as it was sent.
        confidence: of the rule in the answer without explicit reasoning, or of its router where that decided; `None`
            before it is decided.
        signals: what the rule goes by, as far as it is known.
        begun: whether its prompt has been computed once.
        crowded: whether memory was too small for it beside running answers, whose end it then waits for.
        route: "at_once", "implicit" or "explicit", once it is decided.
        goes_on: whether explicit reasoning has still to begin.
        arrived: time of arrival, on `time.monotonic`'s clock.
    """

    prompt: list[int]
    emit: Callable[["Piece | RequestError"], None]
    count: int = 0
    max_new_tokens: int = 16
    choices: int = 1
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    wants_thought: bool = False
    streamed: bool = False
    rule: Escalation | None = None
    at_once_prompt: list[int] = field(default_factory=list)
    reasoning_prompt: list[int] = field(default_factory=list)
    reasoning_tokens: int = 0
    cancelled: bool = False
    implicit_tokens: int = 0
    thought: str | None = None
    completion_tokens: int = 0
    arrived: float = field(default_factory=time.monotonic)
    confidence: float | None = None
    route: str | None = None
    goes_on: bool = False
    signals: dict[str, float] = field(default_factory=dict)
    begun: bool = False
    crowded: bool = False

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.prompt)
        self.at_once_prompt = self.at_once_prompt or self.prompt

    @property
    def held(self) -> bool:
        """Whether it is still to be decided if the answer is kept."""
        return self.rule is not None and self.route is None

    @property
    def asks_host(self) -> bool:
        """Whether the host's own next token is to be known first, without implicit tokens."""
        if self.rule is None or not self.held:
            return False
        return bool({*self.rule.all_signals} & {*ROUTER_SIGNALS} - {*self.signals})

    @property
    def kind(self) -> tuple[int, bool]:
        """What jobs must have in common to be computed in one batch."""
        return (0, True) if self.asks_host else (self.count, False)

    def ask_router(self) -> None:
        """Choose the route where the rule has a router that is sure by the signals of the question."""
        if self.rule is None or self.rule.router is None:
            return
        chosen, sure = self.rule.routed(self._tensors())
        if chosen:
            self.confidence, self.route, self.count = float(sure), self.rule.router["sends"], 0
            self.prompt = self.at_once_prompt
            if self.route == "explicit":
                self._reason()

    def decide(self, logprobs: Sequence[float]) -> None:
        """Choose the route by the signals, and the log-probabilities of the answer's tokens.

        Where the answer is replaced, the job becomes one of explicit reasoning that goes on.
        """
        if self.rule is None:
            raise ValueError("rule is None: there is nothing to decide.")
        logs = torch.tensor(logprobs, dtype=torch.float64)
        self.signals |= {
            "answer_probability": float(logs.mean().exp()),
            "min_token_probability": float(logs.min().exp()),
        }
        self.confidence = float(self.rule.confidence(self._tensors()))
        self.route = "implicit" if self.count else "at_once"
        if self.confidence < self.rule.threshold:
            self.route, self.goes_on = "explicit", True
            self._reason()

    def _reason(self) -> None:
        self.prompt, self.count, self.max_new_tokens = self.reasoning_prompt, 0, self.reasoning_tokens

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([value], dtype=torch.float64) for name, value in self.signals.items()}

    @property
    def longest(self) -> int:
        """Most tokens of one of its sequences."""
        return len(self.prompt) + self.count + self.max_new_tokens


class AnswerText:
    """The text of an answer, token by token, up to a stop text.

    Args:
        tokenizer: the host's.
        stops: texts that end the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._sent = ""
        self._final: str | None = None

    def add(self, token: int) -> bool:
        """Add a token and return whether the text now contains a stop text."""
        self._ids.append(token)
        if not self._stops:
            return False
        text = self._decoded()
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._final = text[: min(found)]
        return bool(found)

    def take(self, end: bool = False) -> str:
        """Return the text since the last call that no further token changes; with `end`, all that is left."""
        text = self._decoded() if self._final is None else self._final
        if not end and self._final is None:
            # An incomplete character decodes to replacement characters; a stop text may have begun.
            text = text[: len(text.rstrip("\ufffd")) - held_back(text.rstrip("\ufffd"), self._stops)]
        if not text.startswith(self._sent):
            # A tokenizer that rewrites text before later tokens; what was sent stays.
            text = self._sent + text[len(self._sent) :] if end else self._sent
        new, self._sent = text[len(self._sent) :], text
        return new

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))


def held_back(text: str, stops: Sequence[str]) -> int:
    r"""Return how many characters at the end of `text` may be the beginning of a stop text.

    >>> held_back("4\n", ["\nQuestion:"]), held_back("4\nQue", ["\nQuestion:"]), held_back("4", ["\nQuestion:"])
    (1, 4, 0)
    """
    return max(
        (size for stop in stops for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])),
        default=0,
    )
