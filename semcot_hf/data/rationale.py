"""Agreement of the answer that a rationale ends on with the row's answer."""

import re

from ..answers import check_answer, extract_answer
from ..answers.number_grammar import CURRENCY, DECIMAL, MINUS
from .schema import split_steps

_NUMBER = rf"{MINUS}?{CURRENCY}?{DECIMAL}"
# The result of an equation, unless the number is an operand of the next operation.
_RESULT = re.compile(rf"=\s*(?:\\?{CURRENCY}\s*)?({_NUMBER})(?![\d.,]*\d)(?!\s*[-+*/×÷=]\s*[$€£(]*[\d.])")
# A sum, product or quotient without a result.
_UNSOLVED = re.compile(rf"\(?\s*{_NUMBER}(?:\s*[-+*/×÷x]\s*[( ]*{_NUMBER}(?![\d.,]*\d)[ )]*)+(?!\s*=)")
# A number that is not an operand: no arithmetic sign before it, or between it and a following number.
_STATED = re.compile(rf"(?<![\d.,])(?<![-+*/×÷])(?<![-+*/×÷] )({_NUMBER})(?![\d.,]*\d)(?!\s*[-+*/×÷]\s*[$€£(]*[\d.])")
# A calculation: two numbers, with or without units, and a sign between them.
_CALCULATION = re.compile(rf"\d[^=;\d]*?(?:[+*/×÷]|\s-\s|(?<=\d)-|(?<=\d)x|\sx\s)[( ]*{CURRENCY}?\d[^=;]*=")
# Bold type and list marks.
_MARKUP = re.compile(r"^\s*(?:[-*]|\d+[.)])\s+|\*\*")
_STATEMENT = re.compile(r"\banswer\b[^:\n]{0,40}?(?:\bis\b|:)|####", re.IGNORECASE)


def rationale_agrees(reasoning: str, answer: str, answer_type: str) -> bool | None:
    """Return whether `reasoning` ends on `answer`, `None` when it states no answer.

    Of the final three steps, the last one that states an answer decides. A numeric step states the result of an
    equation or what `extract_answer` finds; it agrees when the answer is among its numbers, without operands and
    without results that another calculation follows ("3/6 = .5 hour, which is 30 minutes"). For sequences and
    expressions, only a step with "answer is", "answer:" or "####" states an answer.

    Raises:
        ValueError: when `answer` is not of `answer_type`.

    >>> rationale_agrees("There are 4 * 2 = <<4*2=8>>8 in 4 boxes.", "8", "numeric")
    True
    >>> rationale_agrees("So we calculate ( 62.0 - 35.0 )", "27", "numeric") is None
    True
    >>> rationale_agrees("A. **ink** may be.\\n\\nThus, the answer is **B**.", "A", "choice")
    False
    """
    for back, step in enumerate(reversed(split_steps(reasoning)[-3:])):
        if answer_type in ("sequence", "expression") and not _STATEMENT.search(step):
            continue
        if answer_type == "numeric":
            step = _UNSOLVED.sub(" ", _MARKUP.sub("", step))
            results = list(_RESULT.finditer(step))
            texts = [*(result[1] for result in results[-1:]), step, *_STATED.findall(_without_steps(step, results))]
            agrees = any(check_answer(text, answer, "numeric") for text in texts)
            if results or extract_answer(step, "numeric") is not None or (agrees and back == 0):
                return agrees
        elif extract_answer(step, answer_type) is not None:
            return check_answer(step, answer, answer_type)
    return None


def _without_steps(step: str, results: list[re.Match[str]]) -> str:
    """Return a step without the results that another calculation with a result follows: they are on the way."""
    for result in reversed(results[:-1]):
        if _CALCULATION.search(step, result.end(), results[-1].end()):
            step = step[: result.start()] + " " + step[result.end() :]
    return step
