"""What is asked to condense a row, how its replies are judged, and what comes next: pure functions of the journal."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..answers import check_answer
from ..data.rationale import rationale_agrees
from ..data.schema import split_steps
from .journal import Reply

STAGES = ("reasoning", "condensed_reasoning")

_ANSWER_FORMS = {
    "numeric": "a number",
    "choice": "the letter of the right choice",
    "yes_no": "yes or no",
    "sequence": "the answer in the form that the question asks for",
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
    """What is made of every row.

    Attributes:
        make: the stages, of `STAGES`.
        replace: whether to make them also where the row has them.
        answer_type: of all answers.
        max_words: most words of a condensed reasoning; `None` for no limit.
        max_attempts: replies that are asked for before a row is given up.
        source: what decides the source's replies, such as its model.
    """

    make: tuple[str, ...]
    replace: bool
    answer_type: str
    max_words: int | None
    max_attempts: int
    source: Mapping


@dataclass(frozen=True)
class Request:
    """One thing to ask a source for.

    Attributes:
        stage: "reasoning" or "condensed_reasoning".
        query, answer: the row's.
        reasoning: what is to be condensed; "" for the stage "reasoning".
        answer_type, max_words: see `Plan`.
        earlier: the replies that were not good enough.
        key: the same for requests whose replies can stand for each other.
    """

    stage: str
    query: str
    answer: str
    reasoning: str
    answer_type: str
    max_words: int | None
    earlier: tuple[Reply, ...]
    key: str


@dataclass
class Outcome:
    """How far a row has come.

    Attributes:
        texts: the accepted text of each stage that is done or given.
        request: what to ask next; `None` when the row is done or given up.
        rejected: why the row was given up.
        replies: by the requests' keys, all replies to the row, each with its stage and what is wrong with it.
        open: stages that are yet to be made.
        given_wrong: whether the row came with a reasoning that ends on a wrong answer.
    """

    texts: dict[str, str] = field(default_factory=dict)
    request: Request | None = None
    rejected: str | None = None
    replies: dict[str, list[tuple[str, Reply, str | None]]] = field(default_factory=dict)
    open: int = 0
    given_wrong: bool = False


def request_key(plan: Plan, stage: str, query: str, answer: str, reasoning: str) -> str:
    """Hash of all that decides the replies: the source's settings, the prompts, and of the row what they hold.

    >>> plan = Plan(STAGES, False, "numeric", 10, 3, {"model": "m"})
    >>> request_key(plan, "reasoning", "1+1?", "2", "") == request_key(plan, "reasoning", "1+1?", "3", "")
    True
    >>> request_key(plan, "reasoning", "1+1?", "2", "") == request_key(plan, "reasoning", "1+2?", "2", "")
    False
    """
    if stage == "reasoning":
        material = [dict(plan.source), _REASON, _ANSWER_FORMS[plan.answer_type], query]
    else:
        material = [dict(plan.source), _CONDENSE, _TOO_LONG, plan.max_words, query, answer, reasoning]
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:24]


def fault_of(request: Request, reply: Reply) -> str | None:
    """Say what is wrong with a reply; None when nothing is.

    A rationale must end on the right answer by the strict judge (`check_answer`) and by its last step
    (`rationale_agrees`).

    >>> about = dict(query="1+1?", answer="2", answer_type="numeric", max_words=3, earlier=(), key="")
    >>> request = Request("reasoning", reasoning="", **about)
    >>> fault_of(request, Reply("1 and 1 make 2. The answer is 2.")), fault_of(request, Reply("The answer is 3."))
    (None, 'wrong answer')
    >>> fault_of(Request("condensed_reasoning", reasoning="...", **about), Reply("that would be two"))
    'over-long'
    """
    if not reply.text.strip():
        return "empty"
    if reply.cut_off:
        return "cut off"
    if request.stage == "reasoning":
        right = check_answer(reply.text, request.answer, request.answer_type)
        agrees = rationale_agrees(reply.text, request.answer, request.answer_type)
        return None if right and agrees is not False else "wrong answer"
    if request.max_words is not None and len(reply.text.split()) > request.max_words:
        return "over-long"
    return None


def follow(row: Mapping, plan: Plan, replies: Mapping[str, Sequence[Reply]]) -> Outcome:
    """Tell how far `row` has come with the replies of the journal, and what is to be asked next.

    A row that lacks nothing is left as it is. A given reasoning that ends on a wrong answer counts as missing, and the
    condensed one with it; where no reasoning is to be made, the row is given up.
    """
    outcome = Outcome()
    try:
        outcome.given_wrong = rationale_agrees(row["reasoning"], row["answer"], plan.answer_type) is False
        check_answer("", row["answer"], plan.answer_type)
    except ValueError:
        outcome.rejected = f"the answer cannot be judged as {plan.answer_type}"
        return outcome
    anew = plan.replace or (outcome.given_wrong and "reasoning" in plan.make)
    wanted = [stage for stage in STAGES if stage in plan.make and (anew or not row[stage].strip())]
    if not wanted:
        outcome.texts = {stage: row[stage] for stage in STAGES}
        return outcome
    outcome.open = len(wanted)
    for stage in STAGES:
        reasoning = outcome.texts.get("reasoning", "")
        if stage not in wanted:
            outcome.texts[stage] = row[stage]
            if stage == "reasoning" and outcome.given_wrong:
                outcome.rejected = "the given reasoning ends on a wrong answer"
                return outcome
            continue
        if stage == "condensed_reasoning" and not reasoning.strip():
            outcome.rejected = "there is no reasoning to condense"
            return outcome
        key = request_key(plan, stage, row["query"], row["answer"], reasoning)
        found = tuple(replies.get(key, ()))
        request = Request(stage, row["query"], row["answer"], reasoning, plan.answer_type, plan.max_words, found, key)
        fault = None
        for reply in found:
            fault = fault_of(request, reply)
            outcome.replies.setdefault(key, []).append((stage, reply, fault))
            if fault is None:
                text = reply.text.strip()
                outcome.texts[stage] = text if stage == "reasoning" else " ".join(text.split())
                outcome.open -= 1
                break
        else:
            if len(found) >= plan.max_attempts:
                outcome.rejected = f"{stage.replace('_', ' ')}: {fault}"
            else:
                outcome.request = request
            return outcome
    return outcome


def finished_row(row: Mapping, outcome: Outcome) -> dict:
    """Return the row with its new texts; steps are split anew from a new reasoning."""
    made = {**row, **outcome.texts}
    if made["reasoning"] != row["reasoning"] or not row["steps"]:
        made["steps"] = split_steps(made["reasoning"])
    return made


def messages(request: Request) -> list[dict]:
    """The chat that asks a language model for `request`.

    A rationale with a wrong answer is asked for again in the same words: telling the answer would only have it
    defended. An over-long condensation is sent back with its length.

    >>> about = dict(query="1+1?", answer="2", answer_type="numeric", max_words=2, key="")
    >>> request = Request("condensed_reasoning", reasoning="1 + 1 = 2.", earlier=(Reply("that is 2"),), **about)
    >>> [message["role"] for message in messages(request)], messages(request)[-1]["content"]
    (['user', 'assistant', 'user'], 'That is 3 words. Condense it further, to at most 2 words.')
    """
    if request.stage == "reasoning":
        return [_user(_REASON.format(form=_ANSWER_FORMS[request.answer_type], query=request.query))]
    asked = _CONDENSE.format(max_words=request.max_words, query=request.query, reasoning=request.reasoning)
    chat = [_user(asked)]
    if request.earlier and fault_of(request, request.earlier[-1]) == "over-long":
        text = request.earlier[-1].text.strip()
        chat.append({"role": "assistant", "content": text})
        chat.append(_user(_TOO_LONG.format(words=len(text.split()), max_words=request.max_words)))
    return chat


def _user(content):
    return {"role": "user", "content": content}
