"""Numeric answers: which of an output's numbers is its answer."""

import re
from fractions import Fraction
from typing import NamedTuple

from .asides import is_cut_off
from .latex import is_formula, plain
from .number_grammar import BEGINS, CURRENCY, DECIMAL, NUMBER, normal_form, value_of
from .prose import GIVEN, conclusion, weights
from .statements import Sentence, own_part, union, value_stated
from .terms import FILLER, is_bound_or_operand, with_equations, with_multiples
from .units import are_one_quantity

# What may precede a number that opens a statement.
_FILLER = re.compile(FILLER, re.I)
_HEDGE = re.compile(r"\b(?:or|nor|i\s+mean|maybe|perhaps|possibly|alternatively|otherwise|either|versus|vs)\b", re.I)
_OPENS_HEDGED = re.compile(r"\W*(?:or|maybe|perhaps|possibly|alternatively|otherwise)\b", re.I)
# Between two numbers: signs alone, a word that joins, or one noun ("5 eggs 6 ducks").
_PREPOSITION = r"(?:per|for|in|at|over|from|of|on|by|with|after|every|each|than|as|because|since|when|if|times)"
_JOINED = re.compile(
    rf"[\W_]*|.*(?:\b(?:and|to|through|plus|minus|times)|[,;/&|~\u2013-])\s*|\W*(?!{_PREPOSITION}\b)[a-z]+\W*",
    re.I | re.S,
)
_OPERATORS = re.compile(r"[\s()]*[-+*/x\u00d7\u00f7][\s()]*")
_DENIED = re.compile(
    r"(?:(?:\bnot|\bcannot|n['\u2019]t|\bnever|\bneither|\bnor"
    r"|\brather\s+than|\binstead\s+of|\bno\s+longer|\bfar\s+from"
    r"|\banything\s+but|\bother\s+than|\bdifferent\s+(?:from|than))"
    r"\s+(?:equal\s+to\s+|\w+\s+)?|\u2260\s*)$",
    re.I,
)
# "Sam did not wash 34 shirts" denies what Sam did; "it did not cost 34 dollars" denies the number.
_NOT_DONE = re.compile(
    r"\b(?:did|does|do|could)(?:\s+not|n['\u2019]t)\s+"
    r"(?!(?:be|equal|cost|have|get|make|give|total|come|reach|take|need|weigh|add|exactly|just|only|quite|even)\b)\w+\s+$",
    re.I,
)
_DENIED_BEHIND = re.compile(
    r"(?:\s+[a-z]+)?\s+(?:is|was|would\s+be)\s+(?:clearly\s+|also\s+)?(?:wrong|incorrect|impossible|not\s+(?:right|correct|the\b|possible))\b",
    re.I,
)
_VERB = re.compile(r"\b(?:is|are|was|were|be|has|have|had|do|does|did|will|can|makes?|gives?|of|\w+ed|\w+ing)\b", re.I)
_NO_UNIT = re.compile(
    rf"{_HEDGE.pattern}|{_VERB.pattern}|\b(?:he|she|it|they|we|you|i)\b"
    r"|[-+*=<>!?,;:\n]|[.]\s+(?-i:[A-Z])|^\s*[nxyz]\b",
    re.I,
)
_ASSIGNMENT = re.compile(r"(?<![\w)])([A-Za-z]\w*)\s*=")
_TRAIL = re.compile(r"(?:[\s,;.]|\band\b|\bor\b)+$")
_ASIDE = re.compile(r"(?<=\w)\s*\([^()]*[-+*/x\u00d7=][^()]*\)(?=\W*$)")
_DIGITS = re.compile(r"\d[\d.,]*\d|\d")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
# "Answer: - 5"; on a line of its own "- 5" is an item of a list.
_SPACED_MINUS = re.compile(rf"((?:[:=]|\b(?:is|are|was|equals))[*_]*[ \t]*)[-\u2013][ \t]+{BEGINS}", re.I)
_SPELLED_MINUS = re.compile(
    rf"(^[\s\"'*(]*|[:=(]\s*|\b(?:is|are|was|were|be|equals|gives|to|of)\s+[*_]*)(?:minus|negative)\s+{BEGINS}",
    re.I | re.M,
)
# "12 apples, 5 of which are red": a part of the number before it.
_PART = re.compile(r"(?:\s+[a-z]+)?\s+of\s+(?:which|whom)\b", re.I)
# Numbers of list items ("1. First, ...") and steps ("Step 2:") are not the output's own.
_ITEM = re.compile(r"^([ \t#*-]*)(\d{1,2})[.)][ \t]+(?=\S)", re.MULTILINE)
# "Not equal to 5" and "greater than or equal to 5" are no equations.
_EQUALS = re.compile(r"\b(?:is\s+equal\s+to|(?<!\bnot )(?<!n't )(?<!n\u2019t )(?<!\bnever )(?<!\bor )equals?)\b")
_UNEQUAL = {">=": "\u2265", "<=": "\u2264", "!=": "\u2260", "=/=": "\u2260"}
_UNEQUAL_SIGN = re.compile("|".join(map(re.escape, reversed(_UNEQUAL))))
_HALF = re.compile(r"(?<![\w./])(\d+)\s+and\s+(?:a|one)\s+half\b", re.IGNORECASE)
# The price or size of each thing counted: "4 2 dollar games", "3 $5 toys".
_PRICED = re.compile(
    rf"(?<=\d) (?:{CURRENCY}{DECIMAL}|{DECIMAL}[ -](?:dollar|cent|euro|pound|ounce|gram|liter|gallon|inch|foot|meter"
    r"|mile|minute|hour|day|week|month|year|page|person|piece|seat))(?=[ -][a-z]+s\b)",
    re.I,
)
_TOTAL = re.compile(r"\b(?:together|altogether|in\s+total|in\s+all|the\s+total|a\s+total|combined)\b", re.I)
_STEP = re.compile(r"\b(?:step|part|phase|method|equation)\s+\d+\**\s*[:.)]\**", re.IGNORECASE)


class _Written(NamedTuple):
    """Where a number is written, or a quantity in several units, which has no one number."""

    matches: tuple[re.Match, ...]

    def start(self) -> int:
        return self.matches[0].start()

    def end(self) -> int:
        return self.matches[-1].end()

    @property
    def normal(self) -> str:
        """The normal form; of a quantity in several units, those of its numbers, which `read_number` does not read."""
        values = [(match.group(), value_of(match)) for match in self.matches]
        return "+".join(text if value is None else normal_form(value) for text, value in values)


def number_stated(output: str) -> str | None:
    r"""Return the one number that an output states, in normal form, else None.

    Within a statement the number after the last "=" counts, else the number that opens it, else its only number. A
    first line that is a number and nothing else is the answer, whatever explanation follows.

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
    text = with_multiples(_PRICED.sub("", _HALF.sub(r"\1 1/2", plain(own_part(output)))))
    text = _UNEQUAL_SIGN.sub(lambda match: _UNEQUAL[match.group()], text)
    text = with_equations(_SPELLED_MINUS.sub(r"\1-", _EQUALS.sub("=", _STEP.sub("", text))))
    if any(item[2] == "1" for item in _ITEM.finditer(text)):
        text = _ITEM.sub(r"\1", text)
    fallbacks = (_first_line,) if is_cut_off(own_part(output)) else (_first_line, _closing)
    stated = value_stated(_SPACED_MINUS.sub(r"\1-", text), _bare, _statement, *fallbacks)
    return stated if stated and (read_number(stated) is not None or is_formula(stated)) else None


def read_number(text: str, units: bool = True) -> Fraction | None:
    """Return the value of a text that is one number, with or without a unit; None when it is something else.

    >>> read_number("$1,080"), read_number("18 eggs"), read_number("18 eggs", units=False), read_number("5 or 6")
    (Fraction(1080, 1), Fraction(18, 1), None, None)
    """
    text = with_multiples(plain(text)).strip().rstrip(".")
    found = list(NUMBER.finditer(text))
    if len(found) != 1 or _FILLER.fullmatch(text[: found[0].start()]) is None:
        return None
    rest = text[found[0].end() :]
    if not units and re.sub(CURRENCY, "", rest).strip(" %"):
        return None
    return value_of(found[0]) if len(rest.split()) <= 4 else None


def is_quantity(text: str) -> bool:
    """Return whether a text is one number with at most a unit: no clause, no choice, no term of algebra.

    >>> is_quantity("9 eggs"), is_quantity("9 of them are eggs"), is_quantity("9 or more"), is_quantity("9x")
    (True, False, False, False)
    """
    return read_number(text) is not None and _NO_UNIT.search(NUMBER.split(plain(text))[-1]) is None


def _written(text: str) -> list[_Written]:
    """Return where the numbers of a text are; a quantity in several units is one."""
    found: list[_Written] = []
    for match in NUMBER.finditer(text):
        if found and are_one_quantity(text, found[-1].matches[-1].span(), match.span()):
            found[-1] = _Written((*found[-1].matches, match))
        else:
            found.append(_Written((match,)))
    return found


def _numbers(text: str) -> list[tuple[_Written, str]]:
    """Return the numbers of a text that it does not deny, each with its normal form, or "not exactly" it.

    >>> [value for _, value in _numbers("$70k, not 5, and more than 14")]
    ['70000', 'not exactly 14']
    >>> [value for _, value in _numbers("He needs 2 hours 30 minutes for 12 miles.")]
    ['2+30', '12']
    """
    found = []
    for match in _written(text):
        before = max(0, match.start() - 32)
        lead = text[before : match.start()]
        denied = _DENIED.search(lead) and not _NOT_DONE.search(lead)
        if not denied and not _DENIED_BEHIND.match(text, match.end()):
            fraction = match.matches[-1]["top"] is not None
            inexact = is_bound_or_operand(text, match.start(), match.end(), fraction)
            found.append((match, f"not exactly {match.normal}" if inexact else match.normal))
    return found


def _opening(text: str) -> set[str]:
    """Return the number that opens a text, all numbers when others compete with it, nothing without such a number."""
    found = _numbers(text)
    if not found or not _FILLER.fullmatch(text[: found[0][0].start()]):
        return set()
    for (left, _), (right, _) in zip(found, found[1:], strict=False):
        if _PART.match(text, right.end()):
            break
        between = text[left.end() : right.start()]
        joined = left is found[0][0] and _JOINED.fullmatch(between)
        # 18 (9 * 2) explains itself, 5 (6) is two answers.
        explained = "(" in between and not text[right.end() :].lstrip().startswith(")")
        if _HEDGE.search(between) or (joined and not explained):
            return {value for _, value in found}
    return {found[0][1]}


def _statement(text: str) -> set[str]:
    """Return the numbers that a statement gives as its result.

    >>> _statement("18 dollars a day for 7 days"), _statement("16 - 7 = 9"), sorted(_statement("5, 6"))
    ({'18'}, {'9'}, ['5', '6'])
    """
    if formula := _formula(text):
        return {formula}
    between = _between(text, _numbers(text))
    if _OPERATORS.fullmatch(between) or "=" in between:
        return _result(text)
    if opening := _opening(text):
        # "14: 7 * 2 = 14": the calculation behind a number gives it.
        first = _numbers(text)[0][1]
        explained = len(opening) > 1 and not _HEDGE.search(text) and _result(text) == {first}
        return {first} if explained else opening
    # Several numbers that compete are no result; the closing sentence may hold one.
    values = _bold(text) or _concluded(text)
    return values if len(values) == 1 else set()


def _between(text: str, found: list[tuple[_Written, str]]) -> str:
    """Return what stands between the first two numbers of a text, "" when it has fewer."""
    return text[found[0][0].end() : found[1][0].start()] if len(found) > 1 else ""


def _result(text: str) -> set[str]:
    """Return the number after the last "=" that has one after it, else all numbers of a sentence."""
    if formula := _formula(text):
        return {formula}
    found = _numbers(text)
    if "=" in text and found:
        # x = 5, y = 6 states two things; x = 5, so 2x = 10 goes on from the first.
        assigned = [read_number(_TRAIL.sub("", piece)) for piece in _ASSIGNMENT.split(text)[2::2]]
        values = [normal_form(value) for value in assigned if value is not None]
        if values and len(values) == len(assigned):
            return set(values)
        text = next((piece for piece in reversed(text.split("=")) if _numbers(piece)), text)
        found = _numbers(text)
        if not _OPERATORS.fullmatch(_between(text, found)) and (opening := _opening(text)):
            return opening
    return {value for _, value in found}


def _bare(text: str) -> set[str]:
    """Return the number of a line that is a number, at most three words of unit and nothing else.

    >>> _bare("18 dollars a day."), _bare("**$18**"), _bare("18 eggs are laid.")
    ({'18'}, {'18'}, set())
    """
    text = _ASIDE.sub("", text)
    if formula := _formula(text):
        return {formula} if len(text.split()) <= 4 else set()
    found = _numbers(text)
    if len(found) != 1 or len(_opening(text)) != 1:
        return set()
    rest = text[found[0][0].end() :]
    return set() if len(rest.split()) > 4 or _VERB.search(rest) or "=" in text else {found[0][1]}


def _first_line(text: str, parts: list[Sentence]) -> set[str]:
    """Return the number that is all of the first line; several when other lines are bare numbers too."""
    if not parts or parts[0].asks or parts[0].text != text.strip().split("\n", 1)[0].strip():
        return set()
    values = _bare(parts[0].text)
    return values and values | union(_bare, (p.text for p in parts[1:] if not re.search(r"[^\W\d_]", p.text)))


def _closing(text: str, parts: list[Sentence]) -> set[str]:
    """Return the numbers of the last sentence that has any, unless a question stands after or in place of it."""
    for position, part in reversed(list(enumerate(parts))):
        if part.asks:
            return set()
        if position and (whole := _whole(parts[position - 1], part)):
            return whole
        if values := _bold(part.text) or _concluded(part.text, text[: part.start]):
            # "It could be 5. It could be 6." is a list in sentences.
            shape = _DIGITS.sub("0", part.text).strip(" .").lower()
            others = (p.text for p in parts[:position] if "=" not in part.text)
            twins = (other for other in others if _DIGITS.sub("0", other).strip(" .").lower() == shape)
            return set() if _OPENS_HEDGED.match(part.text) else values | union(_result, twins)
    return set()


def _whole(before: Sentence, parts: Sentence) -> set[str]:
    """Return the total that a sentence states, where the numbers of the next one add up to it.

    >>> _whole(Sentence(0, "Together they have 12.", False), Sentence(23, "Tom has 5 and Ann has 7.", False))
    {'12'}
    """
    if before.asks or not _TOTAL.search(before.text) or "=" in parts.text or _HEDGE.search(parts.text):
        return set()
    addends = [read_number(value) for _, value in _numbers(parts.text)]
    if len(addends) < 2 or None in addends:
        return set()
    total = normal_form(sum((value for value in addends if value is not None), Fraction(0)))
    return {total} if _concluded(before.text) == {total} else set()


def _concluded(text: str, before: str = "") -> set[str]:
    """Return the number that a sentence concludes on; several where they compete.

    That is the one of its last clause where that concludes ("..., so 12 are left"), else the only one that it does
    not take as given ("each of the 4 friends gets 12"), else the one that the last equation before it results in.

    >>> _concluded("The 4 friends get 48, so each gets 12."), _concluded("In 3 days she bakes 75 loaves.")
    ({'12'}, {'75'})
    >>> _concluded("12 are left and 3 are gone.", "15 - 3 = 12."), sorted(_concluded("Ann has 5 and Ben has 6."))
    ({'12'}, ['5', '6'])
    """
    found = _numbers(text)
    if len(found) < 2 or _formula(text) or _HEDGE.search(text):
        return _result(text)
    spans = [(match.start(), match.end()) for match, _ in found]
    if (part := conclusion(text, spans)) and part != (0, len(text)):
        return _concluded(text[slice(*part)], before)
    values = _result(text)
    if "=" in text or len(values) < 2:
        return values
    # "Over 3 days, she earns 195": a bound that opens a sentence with other numbers is a time or a place.
    weighed = [
        GIVEN if " " in value else weight for weight, (_, value) in zip(weights(text, spans), found, strict=True)
    ]
    least = min(weighed)
    free = {value for weight, (_, value) in zip(weighed, found, strict=True) if weight == least}
    if len(free) == 1 and least < GIVEN:
        return free
    result = _last_result(before)
    return result if result and result < values else values


def _last_result(text: str) -> set[str]:
    """Return the result of the last equation of a text, nothing where it has none."""
    lines = [line for line in re.split(r"\n|(?<=[.;])\s", text) if "=" in line]
    return _result(lines[-1]) if lines else set()


def _bold(text: str) -> set[str]:
    """Return the numbers that spans in bold type give as their result."""
    return union(lambda span: _opening(span) or _result(span), _BOLD.findall(text))


def _formula(text: str) -> str | None:
    """Return the formula of a statement, where there is LaTeX that is more than a number."""
    if not re.search(r"\\(?!f?boxed)[A-Za-z]+", text):
        return None
    span = re.search(r"\$([^$]+)\$", text)
    return (span[1] if span else text.rsplit("=", 1)[-1]).strip(" .*$\n")
