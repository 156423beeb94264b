"""Terms in words: calculations written as equations, multiples as numbers, and numbers that are bounds or operands."""

import re
from fractions import Fraction

from .number_grammar import BEGINS, CURRENCY, DECIMAL, normal_form

# What may stand before a number that is the whole text.
FILLER = r"(?:[^\w\\]|about|approximately|around|roughly|exactly|only|just|simply|therefore|thus|a\s+total\s+of)*"
_RESULTS = re.compile(
    r"(?<=[\w)%*])\s+(?:is|are|was|were|makes?|gives?)\s+(?:(?:about|approximately|exactly|just|only)\s+)?"
    rf"(?=(?:\*\*|__)?-?{BEGINS})",
    re.I,
)
_NUMBER = rf"{CURRENCY}?(?<![\d.,]){DECIMAL}(?!\d)[)%]?"
_UNIT = (
    r"(?:[ -](?!(?:is|are|was|were|and|or|of|in|at|for|per|each|times|plus|minus|divided|multiplied)\b)[a-z]{2,20})?"
)
_SIGN = (
    r"(?:[\s()]{0,3}[-+*/x\u00d7\u00f7\u2013][\s()]{0,3}"
    r"|\s(?:plus|minus|times|(?:divided|multiplied)\s+by)\s[\s(]{0,2})"
)
# "15 - 3" before "is 12", "the sum of 6 and 4" before "is 10".
_CALCULATION = re.compile(
    rf"(?:{_NUMBER}{_UNIT}{_SIGN}|\b(?:sum|total|difference|product|quotient|average|mean)\s+(?:of|between)\s+"
    rf"(?:{_NUMBER}{_UNIT},\s)*{_NUMBER}{_UNIT},?\sand\s){_NUMBER}{_UNIT}\Z",
    re.I,
)
_LONGEST = 80

_MULTIPLE = re.compile(rf"(?<![\w./,-])({DECIMAL})[\s-]{{1,3}}(dozen|hundred)s?\b", re.I)
_SIZES = {"dozen": 12, "hundred": 100}

_COMPARED = re.compile(r"[\w)}\]]\s*(?:(?<!-)(?<!=)[<>]|[\u2264\u2265])\s*\Z")
_TAG = re.compile(r"</?\w[^<>]*>\s*\Z")
# "At least 7" alone is no number, but "so he needs at least 7 bags" states the minimum that a question asks for.
_OPENS = rf"\A{FILLER}\b"
_BOUND_BEFORE = re.compile(
    r"(?:\b(?:more|less|fewer|greater|higher|lower|larger|smaller)\s+than(?:\s+or\s+equal\s+to)?"
    rf"|{_OPENS}(?:at\s+(?:least|most)|up\s+to|over|under|above|below|beyond|exceeding))\s+\Z",
    re.I,
)
_BOUND_BEHIND = re.compile(r"(?:\s+[a-z]+)?\s+or\s+(?:more|less|fewer)\b|\s*[<>\u2264\u2265]\s*[a-z](?![\w>])", re.I)
_OPERAND_BEFORE = re.compile(
    r"(?:\b(?:sqrt|cbrt|log|ln|exp|abs|sin|cos|tan|floor|ceil)\s*[({]?\s*|\b(?:square|cube)\s+root(?:\s+of)?\s+"
    r"|\b(?:twice|double|triple|thrice)\s+"
    r"|\b(?:half|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)\s+of\s+"
    r"(?:the\s+)?)\Z",
    re.I,
)
_OPERAND_BEHIND = re.compile(
    r"\s+(?:squared|cubed|factorial)\b"
    r"(?!\s+(?:feet|foot|ft|met(?:er|re)s?|m|inch(?:es)?|yards?|miles?|km|cm|units?)\b)"
    rf"|(?:\s*(?:%|percent\b)\s+of|\s+(?:more|less|fewer)\s+than)\s+{BEGINS}",
    re.I,
)
_FRACTION_OF = re.compile(rf"\s+of\s+{BEGINS}", re.I)
_MULTIPLE_BEHIND = re.compile(r"[\s-]+(?:dozen|hundred)s?\b", re.I)


def with_equations(text: str) -> str:
    """Return a text in which calculations whose result is told in words are equations.

    >>> with_equations("15 - 3 is 12."), with_equations("The sum of 6 and 4 is 10."), with_equations("5 is 5.")
    ('15 - 3 = 12.', 'The sum of 6 and 4 = 10.', '5 is 5.')
    """

    def equation(match: re.Match) -> str:
        before = text[max(0, match.start() - _LONGEST) : match.start()].rstrip("*_ ")
        return " = " if _CALCULATION.search(before) else match.group()

    return _RESULTS.sub(equation, text)


def with_multiples(text: str) -> str:
    """Return a text in which dozens and hundreds are numbers; a result in dozens ("60 / 12 = 5 dozen") loses its unit.

    >>> with_multiples("5 dozen eggs"), with_multiples("2.5 hundred"), with_multiples("60 / 12 = 5 dozen")
    ('60 eggs', '250', '60 / 12 = 5')
    """

    def number(match: re.Match) -> str:
        if text[max(0, match.start() - 8) : match.start()].rstrip(" *_$").endswith("="):
            return match[1]
        if len(match[1]) > _LONGEST:
            return match.group()
        return normal_form(Fraction(match[1].replace(",", "")) * _SIZES[match[2].lower()])

    return _MULTIPLE.sub(number, text)


def is_bound_or_operand(text: str, start: int, end: int, fraction: bool = False) -> bool:
    """Return whether a number is no value by itself: a bound ("more than 5") or part of a term ("half of 10").

    Args:
        text: the text.
        start, end: where the number is.
        fraction: whether it is a fraction such as 3/4.

    >>> is_bound_or_operand("x > 5", 4, 5), is_bound_or_operand("<answer> 5", 9, 10), is_bound_or_operand("5!", 0, 1)
    (True, False, False)
    """
    before = max(0, start - 32)
    lead = text[before:start]
    if _COMPARED.search(lead) and not _TAG.search(lead):
        return True
    return bool(
        _BOUND_BEFORE.search(text, before, start)
        or _BOUND_BEHIND.match(text, end)
        or _OPERAND_BEFORE.search(lead)
        or _OPERAND_BEHIND.match(text, end)
        or (fraction and _FRACTION_OF.match(text, end))
        or _MULTIPLE_BEHIND.match(text, end)
    )
