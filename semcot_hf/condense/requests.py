"""The requests that condense a row, the faults of their replies, and what to request next."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..answers import check_answer
from ..data.rationale import rationale_agrees
from ..data.schema import split_steps
from .config import STAGES
from .journal import Reply

_ANSWER_FORMS = {
    "numeric": "a number",
    "choice": "the letter of the right choice",
    "yes_no": "yes or no",
    "sequence": "the answer in the form that the question asks for",
    "expression": "the calculation in one line",
}
_REASON = (
    "Solve the problem step by step, one short sentence a step. End with the sentence 'The answer is X.', where X is "
    "{form} and nothing else.\n\n{query}"
)
_CONDENSE = (
    "Condense the reasoning to at most {max_words} words. Keep the intermediate results in their order; drop "
    "everything else. Reply with the condensed reasoning alone.\n\nQuestion: {query}\n\nReasoning: {reasoning}"
)
_TOO_LONG = "That is {words} words. Condense it further, to at most {max_words} words."


@dataclass(frozen=True)
class Plan:
    """What to make for every row.

    Attributes:
        make: the stages, of `STAGES`.
        replace: whether to make them also for rows that have them.
        answer_type: of all answers.
        max_words: maximum words of a condensed reasoning; `None` for no limit.
        max_attempts: replies to request before a row is rejected.
        source: the settings that determine the source's replies, such as its model.
        from_question: whether condensed reasoning is written from the question, without a reasoning.
    """

    make: tuple[str, ...]
    replace: bool
    answer_type: str
    max_words: int | None
    max_attempts: int
    source: Mapping
    from_question: bool = False


@dataclass(frozen=True)
class Request:
    """One request to a source.

    Attributes:
        stage: "reasoning" or "condensed_reasoning".
        query, answer: of the row.
        reasoning: the text to condense; "" for the stage "reasoning".
        answer_type, max_words: see `Plan`.
        earlier: the rejected replies.
        key: equal for requests whose replies are interchangeable.
        from_question: see `Plan`.
    """

    stage: str
    query: str
    answer: str
    reasoning: str
    answer_type: str
    max_words: int | None
    earlier: tuple[Reply, ...]
    key: str
    from_question: bool = False


Keep = Callable[[Request, Reply], None]
Fail = Callable[[Request, str], None]


class Source(Protocol):
    """What answers requests: `EndpointSource`, `LocalSource`, `EquationSource`, `SurprisalSource`.

    Attributes:
        is_rule: whether it condenses by a rule: it makes no reasoning, has one reply, and keeps whole steps or
            equations of any length.
        from_question: whether it writes condensed reasoning from the question; no reasoning is then made or needed.
        fingerprint: the settings that determine its replies; replies under another fingerprint are not used.
    """

    @property
    def is_rule(self) -> bool: ...

    @property
    def from_question(self) -> bool: ...

    @property
    def fingerprint(self) -> Mapping: ...

    def complete(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Answer `requests`: call `keep` with each reply and `fail` with each problem, from any thread."""


@dataclass
class Outcome:
    """The state of a row.

    Attributes:
        texts: the accepted text of each stage that is finished or was given.
        request: the next request; `None` when the row is finished or rejected.
        rejected: the reason for rejecting the row.
        replies: by the requests' keys, all replies to the row, each with its stage and its fault.
        stages: number of stages that the source makes for this row.
        open: number of these that are not finished.
        given_wrong: whether the row came with a reasoning that ends on a wrong answer.
    """

    texts: dict[str, str] = field(default_factory=dict)
    request: Request | None = None
    rejected: str | None = None
    replies: dict[str, list[tuple[str, Reply, str | None]]] = field(default_factory=dict)
    stages: int = 0
    open: int = 0
    given_wrong: bool = False

    def reject(self, reason: str) -> "Outcome":
        """Reject the row and return its outcome."""
        self.rejected, self.open = reason, 0
        return self


def request_key(plan: Plan, stage: str, query: str, answer: str, reasoning: str) -> str:
    """Hash everything that determines the replies: the source's settings, the prompts and the texts they hold.

    >>> plan = Plan(STAGES, False, "numeric", 10, 3, {"model": "m"})
    >>> request_key(plan, "reasoning", "1+1?", "2", "") == request_key(plan, "reasoning", "1+1?", "3", "")
    True
    >>> request_key(plan, "reasoning", "1+1?", "2", "") == request_key(plan, "reasoning", "1+2?", "2", "")
    False
    """
    if stage == "reasoning":
        material: list[object] = [dict(plan.source), _REASON, _ANSWER_FORMS[plan.answer_type], query]
    elif plan.from_question:
        material = [dict(plan.source), query]
    else:
        material = [dict(plan.source), _CONDENSE, _TOO_LONG, plan.max_words, query, answer, reasoning]
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:24]


def fault_of(request: Request, reply: Reply) -> str | None:
    """Return the fault of a reply, `None` when it has none.

    A rationale must end on the right answer according to both `check_answer` and `rationale_agrees`; condensed
    reasoning that is written from the question must end on it according to `rationale_agrees`.

    >>> about = dict(query="1+1?", answer="2", answer_type="numeric", max_words=3, earlier=(), key="")
    >>> request = Request("reasoning", reasoning="", **about)
    >>> fault_of(request, Reply("1 and 1 make 2. The answer is 2.")), fault_of(request, Reply("The answer is 3."))
    (None, 'wrong answer')
    >>> fault_of(Request("condensed_reasoning", reasoning="...", **about), Reply("that would be two"))
    'over-long'
    >>> thought = Request("condensed_reasoning", reasoning="", from_question=True, **about)
    >>> [fault_of(thought, Reply(text)) for text in ("1+1=2", "1+1=3", "one more")]
    [None, 'wrong answer', 'no answer']
    """
    if not reply.text.strip():
        return "empty"
    if reply.cut_off:
        return "cut off"
    if request.stage == "reasoning":
        right = check_answer(reply.text, request.answer, request.answer_type)
        agrees = rationale_agrees(reply.text, request.answer, request.answer_type)
        return None if right and agrees is not False else "wrong answer"
    if request.from_question:
        agrees = rationale_agrees(reply.text, request.answer, request.answer_type)
        return None if agrees else "no answer" if agrees is None else "wrong answer"
    if request.max_words is not None and len(reply.text.split()) > request.max_words:
        return "over-long"
    return None


def follow(row: Mapping, plan: Plan, replies: Mapping[str, Sequence[Reply]]) -> Outcome:
    """Return the state of `row` given the replies in the journal.

    A row that lacks nothing stays as it is. A given reasoning that ends on a wrong answer counts as missing, and so
    does its condensed reasoning; when no reasoning is to be made, the row is rejected.
    """
    outcome = Outcome()
    try:
        outcome.given_wrong = rationale_agrees(row["reasoning"], row["answer"], plan.answer_type) is False
        check_answer("", row["answer"], plan.answer_type)
    except ValueError:
        return outcome.reject(f"the answer cannot be judged as {plan.answer_type}")
    anew = plan.replace or (outcome.given_wrong and "reasoning" in plan.make)
    wanted = [stage for stage in STAGES if stage in plan.make and (anew or not row[stage].strip())]
    if not wanted:
        outcome.texts = {stage: row[stage] for stage in STAGES}
        return outcome
    if plan.from_question:
        outcome.texts["reasoning"] = row["reasoning"]
    elif "reasoning" not in wanted:
        outcome.texts["reasoning"] = row["reasoning"]
        if outcome.given_wrong:
            return outcome.reject("the given reasoning ends on a wrong answer")
        if not row["reasoning"].strip():
            return outcome.reject("there is no reasoning to condense")
    outcome.stages = outcome.open = len(wanted)
    for stage in wanted:
        reasoning = "" if plan.from_question else outcome.texts.get("reasoning", "")
        key = request_key(plan, stage, row["query"], row["answer"], reasoning)
        found = tuple(replies.get(key, ()))
        about = (row["query"], row["answer"], reasoning, plan.answer_type, plan.max_words)
        request = Request(stage, *about, found, key, plan.from_question)
        fault: str | None = "missing"
        for reply in found:
            fault = fault_of(request, reply)
            outcome.replies.setdefault(key, []).append((stage, reply, fault))
            if fault is None:
                text = reply.text.strip()
                outcome.texts[stage] = text if stage == "reasoning" else " ".join(text.split())
                break
        if fault is None:
            outcome.open -= 1
        elif len(found) >= plan.max_attempts:
            return outcome.reject(f"{stage.replace('_', ' ')}: {fault}")
        else:
            outcome.request = request
            return outcome
    return outcome


def finished_row(row: Mapping, outcome: Outcome) -> dict:
    """Return the row with its new texts; a new reasoning is split into steps again."""
    made = {**row, **outcome.texts}
    if made["reasoning"] != row["reasoning"] or not row["steps"]:
        made["steps"] = split_steps(made["reasoning"])
    return made


def messages(request: Request) -> list[dict[str, str]]:
    """Return the chat that sends `request` to a language model.

    A rationale with a wrong answer is requested again in the same words: given the answer, a model would defend it.
    An over-long condensation is sent back with its length. Condensed reasoning from the question is requested by the
    question alone, which a thought prompt precedes.

    >>> about = dict(query="1+1?", answer="2", answer_type="numeric", max_words=2, key="")
    >>> request = Request("condensed_reasoning", reasoning="1 + 1 = 2.", earlier=(Reply("that is 2"),), **about)
    >>> [message["role"] for message in messages(request)], messages(request)[-1]["content"]
    (['user', 'assistant', 'user'], 'That is 3 words. Condense it further, to at most 2 words.')
    """
    if request.from_question:
        turns = [request.query]
    elif request.stage == "reasoning":
        turns = [_REASON.format(form=_ANSWER_FORMS[request.answer_type], query=request.query)]
    else:
        turns = [_CONDENSE.format(max_words=request.max_words, query=request.query, reasoning=request.reasoning)]
        if request.earlier and fault_of(request, request.earlier[-1]) == "over-long":
            text = request.earlier[-1].text.strip()
            turns += [text, _TOO_LONG.format(words=len(text.split()), max_words=request.max_words)]
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
