"""Numeric answers: how numbers are written, and which one an output states."""

import re
from fractions import Fraction

from .latex import is_formula, plain
from .statements import Sentence, marked_values, only, own_part, sentences

_NUMBER = re.compile(
    r"""
    (?<![\w^])(?P<sign>-)?(?P<currency>[$\u20ac\u00a3\u00a5\u20b9]\s?)?(?P<inner>-)?
    (?:
      (?:(?P<whole>\d+)(?:\s+and)?\s+)?(?P<top>\d+)/(?P<bottom>\d+)(?![\d/]|\.\d)
      | (?P<decimal>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
        (?:[eE](?P<exponent>[+-]?\d+)|(?:\s*[*x\u00d7]\s*10\s*\^\s*\{?(?P<ten>[+-]?\d+)\}?)|\^\{?(?P<power>\d+)\}?)?
        (?:\s*(?P<scale>thousand|million|billion|trillion)\b|(?P<suffix>(?(currency)[kKmMbB]|k))(?!\w))?
    )
    (?!(?:st|nd|rd|th)\b)
    """,
    re.VERBOSE,
)
_SCALES = {
    **{"": 1, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"k": 10**3, "m": 10**6, "b": 10**9},
}
_MOST_DIGITS, _MOST_EXPONENT = 400, 300

_FILLER = re.compile(
    r"(?:[^\w\\]|about|approximately|around|roughly|exactly|only|just|simply|therefore|thus|a\s+total\s+of)*", re.I
)
_HEDGE = re.compile(r"\b(?:or|nor|maybe|perhaps|possibly|alternatively|otherwise|either|versus|vs)\b", re.I)
_OPENS_HEDGED = re.compile(r"\W*(?:or|maybe|perhaps|possibly|alternatively|otherwise)\b", re.I)
# Between two numbers: signs alone, a word that joins, or one noun ("5 eggs 6 ducks").
_PREPOSITION = r"(?:per|for|in|at|over|from|of|on|by|with|after|every|each|than|as|because|since|when|if|times)"
_JOINED = re.compile(
    rf"[\W_]*|.*(?:\b(?:and|to|through|plus|minus|times)|[,;/&|~\u2013-])\s*|\W*(?!{_PREPOSITION}\b)[a-z]+\W*",
    re.I | re.S,
)
_OPERATORS = re.compile(r"[\s()]*[-+*/x\u00d7\u00f7][\s()]*")
_DENIED = re.compile(r"(?:\bnot|n't|\bnever|\bneither|\bnor|\brather\s+than|\binstead\s+of)\s+(?:\w+\s+)?$", re.I)
# "At least 7" alone is no number, but "so he needs at least 7 bags" tells the fewest, which questions ask for.
_BOUND_BEFORE = re.compile(
    rf"(?:\b(?:more|less|fewer|greater|higher|lower)\s+than|\A{_FILLER.pattern}\b(?:at\s+(?:least|most)|up\s+to|over|under))"
    r"\s+$",
    re.I,
)
_BOUND_BEHIND = re.compile(r"(?:\s+[a-z]+)?\s+or\s+(?:more|less|fewer)\b", re.I)
_VERB = re.compile(r"\b(?:is|are|was|were|be|has|have|had|do|does|did|will|can|makes?|gives?|of|\w+ed|\w+ing)\b", re.I)
_NO_UNIT = re.compile(
    rf"{_HEDGE.pattern}|{_VERB.pattern}|\b(?:he|she|it|they|we|you|i)\b"
    r"|[-+*=<>!?,;:\n]|[.]\s+(?-i:[A-Z])|^\s*[nxyz]\b",
    re.I,
)
_ASSIGNMENT = re.compile(r"(?<![\w)])([A-Za-z]\w*)\s*=")
_TRAIL = re.compile(r"(?:[\s,;.]|\band\b|\bor\b)+$")
_ASIDE = re.compile(r"(?<=\w)\s*\([^()]*[-+*/x\u00d7=][^()]*\)(?=\W*$)")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
# "Answer: - 5"; on a line of its own "- 5" is an item of a list.
_SPACED_MINUS = re.compile(
    r"((?:[:=]|\b(?:is|are|was|equals))[*_]*[ \t]*)[-\u2013][ \t]+(?=[$\u20ac\u00a3]?\.?\d)", re.I
)
_ITEM = re.compile(r"^([ \t#*-]*)(\d{1,2})[.)][ \t]+(?=\S)", re.MULTILINE)
_STEP = re.compile(r"\b(?:step|part|phase|method|equation)\s+\d+\**\s*[:.)]\**", re.IGNORECASE)


def number_stated(output: str) -> str | None:
    r"""Returns the one number that an output states, in normal form, else None.

    Within a statement the number after the last "=" counts, else the number that opens it, else its only number. A
    first line that is a number and nothing else answers the prompt, whatever explanation follows.

    >>> number_stated("16 - 3 - 4 = 9 eggs, and 9 * 2 = $18"), number_stated("It is 1,000,000.50 dollars.")
    ('18', '1000000.5')
    >>> number_stated("The answer is 3 1/2."), number_stated("-1/3"), number_stated("1.5 x 10^3"), number_stated("50%")
    ('3.5', '-1/3', '1500', '50')
    >>> number_stated("5 or 6"), number_stated("1 2 3"), number_stated("He has 5 apples. How many are left?")
    (None, None, None)
    >>> number_stated("The answer is more than 14."), number_stated("He needs at least 7 bags.")
    (None, '7')
    >>> number_stated(r"\boxed{2\sqrt{2}}")
    '2\\sqrt{2}'
    """
    text = _SPACED_MINUS.sub(r"\1-", _without_item_numbers(plain(own_part(output))))
    parts = sentences(text)
    values = marked_values(text, parts, _bare, _statement)
    if not values:
        values = _first_line(text, parts) or _closing(parts)
    stated = only(values)
    if stated is None or read_number(stated) is None and not is_formula(stated):
        return None
    return stated


def read_number(text: str, units: bool = True) -> Fraction | None:
    """Returns the value of a text that is one number, with or without a unit; None when it is something else.

    >>> read_number("$1,080"), read_number("18 eggs"), read_number("18 eggs", units=False), read_number("5 or 6")
    (Fraction(1080, 1), Fraction(18, 1), None, None)
    """
    text = plain(text).strip().rstrip(".")
    found = list(_NUMBER.finditer(text))
    if len(found) != 1 or _FILLER.fullmatch(text[: found[0].start()]) is None:
        return None
    rest = text[found[0].end() :]
    if not units and rest.strip(" $%\u20ac\u00a3"):
        return None
    return _value(text, found[0]) if len(rest.split()) <= 4 else None


def is_quantity(text: str) -> bool:
    """Returns whether a text is one number with at most a unit: no clause, no choice, no term of algebra.

    >>> is_quantity("9 eggs"), is_quantity("9 of them are eggs"), is_quantity("9 or more"), is_quantity("9x")
    (True, False, False, False)
    """
    return read_number(text) is not None and _NO_UNIT.search(_NUMBER.split(plain(text))[-1]) is None


def _value(text: str, match: re.Match) -> Fraction | None:
    """Returns the value of a number found in a text; None for a zero denominator or an absurd size."""
    if len(match.group()) > _MOST_DIGITS:
        return None
    if match["top"]:
        if int(match["bottom"]) == 0:
            return None
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        value = Fraction(match["decimal"].replace(",", ""))
        exponent = int(match["exponent"] or match["ten"] or 0)
        power = int(match["power"] or 1)
        if abs(exponent) > _MOST_EXPONENT or power * len(match["decimal"]) > _MOST_DIGITS:
            return None
        value = value**power * Fraction(10) ** exponent
        value *= _SCALES[(match["scale"] or match["suffix"] or "").lower()]
    # A minus after a number or a closing bracket subtracts.
    binary = text[max(0, match.start() - 8) : match.start()].rstrip()[-1:]
    negative = match["inner"] or (match["sign"] and not (binary.isdigit() or (binary and binary in ")]}%")))
    return -value if negative else value


def _normal(value: Fraction) -> str:
    """Returns a fraction as a decimal where it has an end, else as numerator/denominator.

    >>> _normal(Fraction(37, 2)), _normal(Fraction(-1, 3)), _normal(Fraction(4)), _normal(Fraction(-1, 20))
    ('18.5', '-1/3', '4', '-0.05')
    """
    if value.denominator == 1 or pow(10, _MOST_DIGITS, value.denominator):
        return str(value)
    places = next(k for k in range(1, _MOST_DIGITS + 1) if 10**k % value.denominator == 0)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _numbers(text: str) -> list[tuple[re.Match, str]]:
    """Returns the numbers of a text that it does not deny, each with its normal form; bounds have one of their own.

    >>> [value for _, value in _numbers("$70k, not 5, and more than 14")]
    ['70000', 'not exactly 14']
    """
    found = []
    for match in _NUMBER.finditer(text):
        before = max(0, match.start() - 24)
        if not _DENIED.search(text[before : match.start()]):
            value = _value(text, match)
            normal = match.group() if value is None else _normal(value)
            bound = _BOUND_BEFORE.search(text, before, match.start()) or _BOUND_BEHIND.match(text, match.end())
            found.append((match, f"not exactly {normal}" if bound else normal))
    return found


def _opening(text: str) -> set[str]:
    """Returns the number that opens a text, all numbers when others compete with it, nothing without such a number."""
    found = _numbers(text)
    if not found or not _FILLER.fullmatch(text[: found[0][0].start()]):
        return set()
    everything = {value for _, value in found}
    for (left, _), (right, _) in zip(found, found[1:], strict=False):
        between = text[left.end() : right.start()]
        joined = left is found[0][0] and _JOINED.fullmatch(between)
        # 18 (9 * 2) explains itself, 5 (6) is two answers.
        explained = "(" in between and not text[right.end() :].lstrip().startswith(")")
        if _HEDGE.search(between) or (joined and not explained):
            return everything
    return {found[0][1]}


def _statement(text: str) -> set[str]:
    """Returns the numbers that a statement gives as its result.

    >>> _statement("18 dollars a day for 7 days"), _statement("16 - 7 = 9"), sorted(_statement("5, 6"))
    ({'18'}, {'9'}, ['5', '6'])
    """
    if formula := _formula(text):
        return {formula}
    found = _numbers(text)
    if len(found) > 1:
        between = text[found[0][0].end() : found[1][0].start()]
        if _OPERATORS.fullmatch(between) or "=" in between:
            return _result(text)
    # Several numbers in prose are no result; the closing sentence may hold one.
    return _opening(text) or _only_one(_bold(text) or _result(text))


def _result(text: str) -> set[str]:
    """Returns the number after the last "=" that has one after it, else all numbers of a sentence."""
    if formula := _formula(text):
        return {formula}
    found = _numbers(text)
    if "=" in text and found:
        tail = next((piece for piece in reversed(text.split("=")) if _numbers(piece)), text)
        # x = 5, y = 6 states two things; x = 5, so 2x = 10 goes on from the first.
        assigned = [read_number(_TRAIL.sub("", piece)) for piece in _ASSIGNMENT.split(text)[2::2]]
        if assigned and None not in assigned:
            return set(map(_normal, assigned))
        numbers = _numbers(tail)
        if len(numbers) > 1 and _OPERATORS.fullmatch(tail[numbers[0][0].end() : numbers[1][0].start()]):
            return {value for _, value in numbers}
        return _opening(tail) or {value for _, value in numbers}
    return {value for _, value in found}


def _bare(text: str) -> set[str]:
    """Returns the number of a line that is a number, at most three words of unit and nothing else.

    >>> _bare("18 dollars a day."), _bare("**$18**"), _bare("18 eggs are laid.")
    ({'18'}, {'18'}, set())
    """
    text = _ASIDE.sub("", text)
    found = _numbers(text)
    if formula := _formula(text):
        return {formula} if len(text.split()) <= 4 else set()
    if len(found) != 1 or len(_opening(text)) != 1:
        return set()
    rest = text[found[0][0].end() :]
    return set() if len(rest.split()) > 4 or _VERB.search(rest) or "=" in text else {found[0][1]}


def _first_line(text: str, parts: list[Sentence]) -> set[str]:
    """Returns the number that is all of the first line; several when other lines are bare numbers too."""
    if not parts or parts[0].asks or parts[0].text != text.strip().split("\n", 1)[0].strip():
        return set()
    values = _bare(parts[0].text)
    lists = [part.text for part in parts[1:] if not re.search(r"[^\W\d_]", part.text)]
    return values.union(*map(_bare, lists)) if values else values


def _closing(parts: list[Sentence]) -> set[str]:
    """Returns the numbers of the last sentence that has any, unless a question stands after or in place of it."""
    for position in reversed(range(len(parts))):
        text = parts[position].text
        if parts[position].asks:
            return set()
        values = _bold(text) or _result(text)
        if values and _OPENS_HEDGED.match(text):
            return set()
        if values:
            # "It could be 5. It could be 6." is a list in sentences.
            twins = [] if "=" in text else [p.text for p in parts[:position] if _shape(p.text) == _shape(text)]
            return values.union(*map(_result, twins))
    return set()


def _bold(text: str) -> set[str]:
    return set().union(*(_opening(span) or _result(span) for span in _BOLD.findall(text)))


def _only_one(values: set[str]) -> set[str]:
    return values if len(values) == 1 else set()


def _shape(text: str) -> str:
    return re.sub(r"\d[\d.,]*\d|\d", "0", text).strip(" .").lower()


def _formula(text: str) -> str | None:
    """Returns the formula of a statement, where there is LaTeX that is more than a number."""
    if not re.search(r"\\(?!f?boxed)[A-Za-z]+", text):
        return None
    span = re.search(r"\$([^$]+)\$", text)
    return (span[1] if span else text.rsplit("=", 1)[-1]).strip(" .*$\n")


def _without_item_numbers(text: str) -> str:
    """Returns a text without the numbers of its list items ("1. First, ...") and steps ("Step 2:")."""
    text = re.sub(r"\b(?:is\s+equal\s+to|equals?)\b", "=", _STEP.sub("", text))
    if any(item[2] == "1" for item in _ITEM.finditer(text)):
        text = _ITEM.sub(r"\1", text)
    return text
