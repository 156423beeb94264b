"""Numbers in prose: which of the numbers of a sentence is its result, and which ones it takes as given."""

import re
from collections.abc import Sequence

Span = tuple[int, int]

_RESULTING = (
    r"(?:leaving|making|giving|resulting|yielding|bringing|total{1,2}ing|equal{1,2}ing|meaning|earning|costing|saving"
    r"|needing|requiring|remaining)"
)
# "to hold the remaining 23 books" gives no result.
_NO_DETERMINER = "".join(
    rf"(?<!\b{word})" for word in ("the", "his", "her", "its", "our", "my", "their", "these", "all")
)
# A clause that opens with one of these words says what follows from the clauses before it.
_CONNECTIVE = (
    r"so(?!\s+(?:on|far|that|many|much|forth)\b)|therefore|thus|hence|consequently|i\.e|namely|in\s+other\s+words"
    r"|which\s+(?:is|are|was|equals|makes|means|gives|leaves|comes|totals)|that\s+is|that['\u2019]s"
)
_CUE = (
    rf"(?:{_CONNECTIVE}|{_RESULTING}|(?:in|for\s+a|(?:the|combined)\s+)?\s*total|totals"
    r"|(?:the\s+)?(?:difference|result|sum|change|remainder|average))\b"
)
_OPENS_RESULT = re.compile(
    rf"\W*(?:(?:and|but|then)\s+)?(?:{_CUE}|each\W+(?:(?:costs?|is|gets|receives|weighs|has)\W+)?\d"
    r"|(?!(?:includ|consider|assum|us|hav|be|accord|start|follow|exclud)ing\b)[a-z]{3,}ing\b)",
    re.I,
)
_ENDS_RESULT = re.compile(
    r"\b(?:each|apiece|in\s+total|altogether|in\s+all|total|left|remain(?:s|ing|ed)?|difference|needed|required|more)\W*\Z",
    re.I,
)
_BREAK = re.compile(
    rf"[;:](?=\s)|,(?=\s)|\s(?:->|\u2192|=>)\s|\s[\u2013\u2014-]\s|(?<=[\w)])\s+(?=(?:and|but)\s+(?:{_CONNECTIVE})\b)"
    rf"|(?<=[\w)]){_NO_DETERMINER}\s+(?=(?:{_RESULTING}|which\s+(?:is|are|equals|makes|means)|for\s+a\s+total|therefore|thus|hence)\b)",
    re.I,
)
# "after giving 2 away" and "by making 5" are no results.
_GERUND = re.compile(r"\b(?:after|before|by|of|for|from|while|when|without|and|or|not)\s*\Z", re.I)
_NAME = re.compile(r"\b[A-Z]\w*(?:['\u2019]s)?")
_NUMERAL = re.compile(r"\d[\d.,]*\d|\d")
# Phrases and clauses about what is known, or about a condition.
_SUBORDINATE = re.compile(
    r"\b(?:after|before|if|when|whenever|since|because|as|while|where|who|whom|whose|which|given|having|than|although"
    r"|though|once|out\s+of|from|with|without|despite|instead|until|unless|compared)\b",
    re.I,
)
_NOUN_PHRASE = r"(?:(?:the|all|only|his|her|their|these|those|other)\s+)?"
_GIVEN = re.compile(
    r"\b(?:(?:in|at|on|by|per|over|during|within|of|into|among|between|under|to|times|every|each|both|all|the|these"
    rf"|those|his|her|their|its|my|our|your)\s+{_NOUN_PHRASE}"
    r"|(?:day|week|month|year|step|room|part|grade|group|question|problem|page|chapter|number)\s+"
    rf"|(?!{_RESULTING}\b)[a-z]+ing\s+{_NOUN_PHRASE})\Z",
    re.I,
)
# "She would have 14 if she had not eaten any".
_WOULD = re.compile(r"\b(?:would|could|might)(?:\s+not|n['\u2019]t)?\s+(?:\w+\s+){1,3}\Z", re.I)
_IF = re.compile(r"[^,;]*\b(?:if|unless|had\s+(?:she|he|they|it|we|i|you)\b)", re.I)
# "58 in all: 48 of one kind, 10 of another."
_LISTING = re.compile(r"[^:]*\d[^:]*:\s")
_FOR = re.compile(rf"\bfor\s+{_NOUN_PHRASE}\Z", re.I)
_COMPARED = re.compile(r"(?:\s+[a-z]+){0,2}?\s+(?:more|less|fewer|\w+er)\s+(?:\w+\s+)?than\b", re.I)
_INFINITIVE = re.compile(r"\bto\s+(?!the\b|an?\b)[a-z]{2,}\b", re.I)
_LISTED = re.compile(r"\W*(?:\b(?:and|or|to|through|until)\b)?\W*", re.I)
_QUALIFIED = (
    r"(?:(?:only|just|about|approximately|exactly|an?|the|overall|grand|additional|another|her|him|them|us|it)\s+)*"
)
# "gives 22", "leaves her with 9", "an average of 5", "total: 7" before the number; "48 dollars in total" behind it.
_RESULT_BEFORE = re.compile(
    r"(?:\b(?:gives?|equals?|makes?|leaves?|yields?|totals?|results?\s+in|comes?\s+to|amounts?\s+to)\s+"
    rf"{_QUALIFIED}(?:with\s+)?(?:(?:total|sum|average|profit)\s+of\s+)?|\b(?:total|sum|average|profit)\s+of\s+|\A[^\d:]*:\s+|=\s*)\Z",
    re.I,
)
_RESULT_BEHIND = re.compile(r"(?:\s+[a-z]+){0,2}?\s+(?:total|in\s+total|altogether|in\s+all)\b", re.I)
# "3 hours 20 minutes" is one quantity in two numbers, not a subject and what it does.
_UNIT = (
    r"(?:(?:hour|hr|minute|min|second|sec|day|week|month|year|dollar|cent|euro|pound|ounce|yard|mile|meter|metre"
    r"|kilometer|centimeter|kilogram|gram|liter|litre|quart|gallon|pint|cup|degree)s?|foot|feet|inch(?:es)?)"
)
# "5 slices cost 10 dollars": a number that opens its clause is the subject's.
_SUBJECT = re.compile(rf"\W*(?:{_CUE}\W*)?(?:the\s+)?\Z", re.I)
_VERB_BEFORE = re.compile(
    rf"\b(?:is|are|was|were|be|has|have|had|can|will|needs?|requires?|takes?|costs?|gets?|receives?|earns?|weighs?"
    rf"|(?!{_UNIT}\b)\w+s)\s+{_QUALIFIED}\Z",
    re.I,
)

RESULT, FREE, PURPOSE, LESS, GIVEN = -1, 0, 1, 2, 3


def clauses(text: str, spans: Sequence[Span] = ()) -> list[Span]:
    """Return where the clauses of a sentence start and end; none ends inside one of its values, at `spans`.

    >>> text = "He had 5, so 3 are left."
    >>> [text[start:end] for start, end in clauses(text)]
    ['He had 5', ' so 3 are left.']
    """
    breaks = [
        match.span()
        for match in _BREAK.finditer(text)
        if not _GERUND.search(text[: match.end()]) and not any(a < match.start() < b for a, b in spans)
    ]
    starts = [0, *(end for _, end in breaks)]
    ends = [*(start for start, _ in breaks), len(text)]
    return list(zip(starts, ends, strict=True))


def conclusion(text: str, spans: Sequence[Span]) -> Span | None:
    """Return where the part of a sentence is that draws a conclusion from numbers before it, None where none does.

    That is what follows the last semicolon, unless it only goes on with a list; else the last clause with a number,
    if it opens or ends like a result.

    Args:
        text: a sentence.
        spans: where its values are.

    >>> conclusion("15 - 3 is 12, so 12 are left", [(0, 2), (5, 6), (10, 12), (17, 19)])
    (13, 28)
    >>> conclusion("9 x 2 cups; at 3 a day, she needs 6 days", [(0, 1), (4, 5), (15, 16), (34, 35)])
    (11, 40)
    >>> conclusion("5 eggs, 6 ducks", [(0, 1), (8, 9)]), conclusion("Ann has 5; Ben has 6", [(8, 9), (19, 20)])
    (None, None)
    """
    start = text.rfind("; ") + 1
    if start and spans[0][1] <= start <= spans[-1][0]:
        pieces = [_shape(piece) for piece in re.split(r";\s", text)]
        if pieces[-1] in pieces[:-1]:
            return None
        if len(re.findall(r"[^\W\d_]+", text[start:])) > 1 or _ENDS_RESULT.search(text):
            return start, len(text)
    every = clauses(text, spans)
    holding = [span for span in every if any(span[0] <= start and end <= span[1] for start, end in spans)]
    if len(holding) < 2:
        return None
    start, end = holding[-1]
    position = every.index((start, end))
    # "so on average, 5 are left": the cue may stand in a clause of its own before the number.
    while position and every[position - 1] not in holding and not _OPENS_RESULT.match(text[start:end]):
        position -= 1
        start = every[position][0]
    words = text[start:end]
    return (start, end) if _OPENS_RESULT.match(words) or _ENDS_RESULT.search(words) else None


def weights(text: str, spans: Sequence[Span]) -> list[int]:
    """Return for each number of a sentence how it reads, from `RESULT` over `FREE` to `GIVEN`.

    >>> weights("each of the 4 friends gets 12 candies", [(12, 13), (27, 29)]) == [GIVEN, FREE]
    True
    >>> weights("She needs 8 more weeks to afford 120 dollars", [(10, 11), (33, 36)]) == [FREE, PURPOSE]
    True
    >>> weights("Dividing 330 by 15 gives 22", [(9, 12), (16, 18), (25, 27)]) == [GIVEN, GIVEN, RESULT]
    True
    """
    parts = clauses(text, spans)
    found: list[int] = []
    for position, (start, end) in enumerate(spans):
        before = spans[position - 1][1] if position else None
        if _explains(text, start) or _LISTING.match(text[:start]):
            found.append(GIVEN)
            continue
        if before is not None and _LISTED.fullmatch(text[before:start]) and not _RESULT_BEFORE.search(text[:start]):
            found.append(found[-1])
            continue
        clause = text[next(a for a, b in parts if start <= b) : start]
        if _RESULT_BEFORE.search(text[:start]) or _RESULT_BEHIND.match(text, end):
            found.append(RESULT)
        elif _SUBORDINATE.search(clause) or _GIVEN.search(clause):
            found.append(GIVEN)
        elif _COMPARED.match(text, end) or _FOR.search(clause) or (_WOULD.search(clause) and _IF.match(text, end)):
            found.append(LESS)
        elif before is not None and _INFINITIVE.search(text[before:start]):
            found.append(PURPOSE)
        else:
            found.append(FREE)
    free = [span for span, weight in zip(spans, found, strict=True) if weight == FREE]
    if (
        len(free) == 2
        and _SUBJECT.fullmatch(text[: free[0][0]])
        and _VERB_BEFORE.search(text[free[0][1] : free[1][0]])
    ):
        found[list(spans).index(free[0])] = LESS
    return found


def _explains(text: str, position: int) -> bool:
    """Return whether a position is in round brackets that hold more than a number."""
    start = text.rfind("(", 0, position)
    content = text[start + 1 :].split(")")[0]
    return start > text.rfind(")", 0, position) and re.search(r"[^\W\d_]|\d\s*[-+*/x=]", content) is not None


def _shape(text: str) -> str:
    """Return a text with its numbers and names replaced, equal for the items of a list."""
    return " ".join(_NAME.sub("X", _NUMERAL.sub("0", text)).split()).strip(" .")
