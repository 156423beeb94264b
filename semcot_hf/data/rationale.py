"""The answer that a rationale ends on: does it agree with the row's answer?"""

import re

from ..answers import check_answer, extract_answer
from ..answers.number_grammar import CURRENCY, DECIMAL, MINUS
from .schema import split_steps

_NUMBER = rf"{MINUS}?{CURRENCY}?{DECIMAL}"
# What an equation leads to, but for a number that goes on to be an operand.
_RESULT = re.compile(rf"=\s*(?:\\?{CURRENCY}\s*)?({_NUMBER})(?![\d.,]*\d)(?!\s*[-+*/×÷=]\s*[$€£(]*[\d.])")
# A sum, product or quotient that leads to nothing.
_UNSOLVED = re.compile(rf"\(?\s*{_NUMBER}(?:\s*[-+*/×÷x]\s*[( ]*{_NUMBER}[ )]*)+(?!\s*=)")
# A number that is no operand: no sign of a sum, product or quotient before it or between it and a next number.
_STATED = re.compile(rf"(?<![\d.,])(?<![-+*/×÷])(?<![-+*/×÷] )({_NUMBER})(?![\d.,]*\d)(?!\s*[-+*/×÷]\s*[$€£(]*[\d.])")
# Bold type and list marks.
_MARKUP = re.compile(r"^\s*(?:[-*]|\d+[.)])\s+|\*\*")
_STATEMENT = re.compile(r"\banswer\b[^:\n]{0,40}?(?:\bis\b|:)|####", re.IGNORECASE)


def rationale_agrees(reasoning: str, answer: str, answer_type: str) -> bool | None:
    """Tell whether the answer that `reasoning` ends on is `answer`; None when it states none.

    The last of the final three steps that states anything decides. A numeric step states an equation's result or what
    `extract_answer` finds, and agrees when the answer is among its numbers other than operands ("3/6 = .5 hour, which
    is 30 minutes"). For sequences only a step with "answer is", "answer:" or "####" states anything.

    Raises:
        ValueError: when `answer` is none of `answer_type`.

    >>> rationale_agrees("There are 4 * 2 = <<4*2=8>>8 in 4 boxes.", "8", "numeric")
    True
    >>> rationale_agrees("So we calculate ( 62.0 - 35.0 )", "27", "numeric") is None
    True
    >>> rationale_agrees("A. **ink** may be.\\n\\nThus, the answer is **B**.", "A", "choice")
    False
    """
    for back, step in enumerate(reversed(split_steps(reasoning)[-3:])):
        if answer_type == "sequence" and not _STATEMENT.search(step):
            continue
        if answer_type == "numeric":
            step = _UNSOLVED.sub(" ", _MARKUP.sub("", step))
            results = _RESULT.findall(step)
            texts = [*results[-1:], step, *_STATED.findall(step)]
            agrees = any(check_answer(text, answer, "numeric") for text in texts)
            if results or extract_answer(step, "numeric") is not None or (agrees and back == 0):
                return agrees
        elif extract_answer(step, answer_type) is not None:
            return check_answer(step, answer, answer_type)
    return None
