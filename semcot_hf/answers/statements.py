"""Where an output states its answer: its own part, its sentences, and what stands after an answer marker."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

from .asides import position_of_refusal, without_check, without_thinking
from .withheld import end_of_taken_back, withheld_spans, without_withheld

# From strongest to weakest. GSM8K's rationales end on `####`; a box is final by convention; the rest is prose.
_HEADING = re.compile(r"####+(?!#)")
_HEADED = re.compile(rf"{_HEADING.pattern}(.*?)(?=####|$)", re.MULTILINE)
_BRACE = re.compile(r"(?P<box>\\f?boxed\s*\{)|\{|\}")
# "18 correct answers: 72 points" is about answers and gives none.
_PHRASE = (
    r"\b(?:answer|(?:correct|best|right|most\s+\w+)\s+(?:choice|option))\b"
    r"(?:[\s*_]*(?:\([^)\n]*\))?[\s*_]*[:=]"
    r"|[^.?!:=\n]{0,120}?\b(?:is|are|was|equals|comes\s+to|(?:would|will|should|must)\s+be)\b(?!\s*not\b)\s*:?)"
)
# "To find the best answer, ..." and "to answer the question: ..." announce an answer without giving it.
_ANNOUNCED = re.compile(r"\b(?:to|let's|let\s+us)\s+(?:\w+\s+){0,3}$", re.IGNORECASE)
_FINAL = re.compile(r"\bfinal\s+" + _PHRASE, re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:so|thus|therefore|hence|in\s+conclusion)\b[^.?!:\n]{0,60}?" + _PHRASE, re.IGNORECASE)
_ANSWER = re.compile(_PHRASE, re.IGNORECASE)

_NEXT_QUESTION = re.compile(
    r"^[ \t]*(?:#+[ \t]*|\*\*)?(?:Q|Question|QUESTION|Problem|User|Human)[ \t]*\d*(?:\*\*)?[ \t]*:|(?<=\s)Question:",
    re.MULTILINE,
)
_PAUSE = r"[\"'*_\u201d]*\s*(?:[,:;\u2013\u2014\u2026]|\.\.+|--+|(?<=\s)-|-(?=\s))"
_VALUE = r"[\s:\"'*($\\]*(?:boxed\b|[-.]?\d|(?-i:[A-J])\b(?!\s+(?-i:[a-z]))|yes\b|no\b(?!\s+one\b))"
_IS = r"(?:['\u2019]s|\s+(?:is|was|are|equals|(?:should|would|must)\s+be))\b"
# What makes a correction of "wait" or "actually" in any place: "no," an error owned up to, or another value.
_CORRECTION = (
    r"(?:no\b(?=\s*[,.;:!\u2013\u2014\u2026]|\s+(?:it|that|the\s+answer|wait|i)\b)"
    r"|actually\b(?!\s*[.!])|wait\b|sorry\b|never\s*mind\b|let(?:\s+me|['\u2019]s)\b"
    r"|i\s+(?:made|forgot|was|mis\w+)\b"
    rf"|(?:it|that|this|there|the\s+(?:\w+\s+)?answer){_IS}(?:{_VALUE}|\s+(?:not\s+(?:right|correct)|not{_VALUE}|wrong|incorrect)\b)"
    rf"|{_VALUE}[^\s.!;]{{0,20}}(?:\s+\w+)?\s*(?:[.!;\n]|\Z))"
)
# What goes on from a "wait" that opens a clause, and not from "Wait 15 minutes" or "Wait time".
_SECOND_THOUGHT = (
    r"(?:no\b(?!\s+(?:one|longer|more)\b)|i\b|but\b|maybe\b|what\b|the\s+(?:\w+\s+)?answer\b"
    r"|(?:it|that|this|there)(?:['\u2019]s|\s+(?:is|isn|are|aren|was|should|does|doesn|can))\b)"
)
_RETRACTION = re.compile(
    r"\b(?:(?:(?<!if )i made an? (?:mistake|error)\s*[,.:;!\u2014-]|correction:"
    r"|on second thoughts?\b(?!\s*[.!](?!\.)))"
    r"|(?P<word>wait|actually|(?:an?\s+)?(?:(?:small|quick|minor)\s+)?correction|(?:let\s+me\s+)?scratch that"
    r"|on second thoughts?)\b"
    rf"(?:(?P<corrects>(?:{_PAUSE})?(?=\s*{_CORRECTION}))|(?P<pauses>{_PAUSE})|(?P<stops>\s*[.!])"
    rf"|(?<=wait)(?=\s+{_SECOND_THOUGHT})))",
    re.IGNORECASE,
)
_OPENS_CLAUSE = re.compile(
    r"(?:\n|[.!?;:,(\[\u2013\u2014\u2026>#]|--|-\s)[\s\"'*_\u201c]*"
    r"(?:(?:but|so|no|oh|ah|hm+|uh+|um+|well|ok|okay|oops|sorry|yet|i\s+think|i\s+mean)\b[\s,.!*\u2026-]*)*\Z",
    re.IGNORECASE,
)
# "The answer is 5 wait, ..."
_AFTER_VALUE = re.compile(r"(?:[\d)}\]%$]|\b(?-i:[A-J])|\b(?:yes|but|oh|hm+|oops))[\s*_]*\Z", re.IGNORECASE)
# Words before the noun or the verb: "a 15 minute wait", "had to wait".
_NO_INTERJECTION = re.compile(
    r"(?:\b(?:to|an?|the|this|that|his|her|their|its|any|each|every|long|short|must|will|would|can|could|should|may"
    r"|might|not|minute|hour|day|people|they|who|he|she|we|you|i)|n['\u2019]t)\s+\Z",
    re.IGNORECASE,
)
# Labelled paragraphs after an answer in words.
_EXPLANATION = re.compile(
    r"\n\s*[*_#]*(?:explanation|reason(?:ing)?|rationale|justification|note)[*_]*\s*:", re.IGNORECASE
)
_MARKUP = (("**", "**"), ("__", "__"), ("`", "`"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_WRAPPED = re.compile(r"\\(?:f?boxed|text(?:bf|it|rm)?|math(?:bf|rm|it)|mbox)\s*\{([^{}]*|[^{}]*\{[^{}]*\}[^{}]*)\}")
_LIST_GOES_ON = re.compile(r"\s*(?:and|or)\b", re.IGNORECASE)
# A full stop after a lone letter ("A. ignore") does not end a sentence.
_SENTENCE = re.compile(r"\S.*?(?:(?:(?<!\b[A-Ja-j])\.|[!?])[\"')\]*_\u201d]*(?=\s|$)|$)", re.MULTILINE)
_REQUEST = re.compile(
    r"(?:^|[,;]\s*)\W*(?:then\s+|and\s+)?(?:calculate|compute|find|determine)\b"
    r"|(?<!'s )(?<!is )\bhow\s+(?:many|much)\b",
    re.IGNORECASE,
)


class Sentence(NamedTuple):
    """A sentence or line: where it starts in the text, its words, and whether it asks instead of stating."""

    start: int
    text: str
    asks: bool


# Returns the values that a text gives.
Reader = Callable[[str], set[str]]
# Returns the values of a whole output, from its own part and that part's sentences.
Finder = Callable[[str, list[Sentence]], set[str]]


def own_part(output: str) -> str:
    """Return the part of an output that answers the question asked.

    Thinking in tags is no answer. A model that goes on writes further questions and answers of its own: nothing
    counts from the next question's heading on, nor what a "Wait, ..." withdraws. A heading that opens the output
    repeats the question and is kept.

    >>> own_part("18" + chr(10) + "Question: 2 + 2?" + chr(10) + "Answer: 4").strip()
    '18'
    >>> own_part("The answer is 5. Wait, the answer is 6.").strip()
    'the answer is 6.'
    >>> own_part("That is a 15 minute wait.")
    'That is a 15 minute wait.'
    """
    output = without_thinking(output)
    starts = (match.start() for match in _NEXT_QUESTION.finditer(output))
    output = output[: next((start for start in starts if output[:start].strip()), None)]
    ends = [match.end() for match in _RETRACTION.finditer(output) if _withdraws(output, match)]
    return output[max([end_of_taken_back(output), *ends[-1:]]) :]


def sentences(text: str) -> list[Sentence]:
    """Return the sentences and lines that hold a letter or a digit.

    >>> [(sentence.text, sentence.asks) for sentence in sentences("He has 1.5 l. How much is left?")]
    [('He has 1.5 l.', False), ('How much is left?', True)]
    """
    found = ((match.start(), match.group().strip()) for match in _SENTENCE.finditer(text))
    return [Sentence(start, words, _asks(words)) for start, words in found if re.search(r"[^\W_]", words)]


def union(read: Reader, texts: Iterable[str]) -> set[str]:
    """Return the values that any of the texts gives."""
    return set().union(*map(read, texts))


def stating(read: Reader, text: str, parts: list[Sentence]) -> set[str]:
    """Return the values of all sentences that do not ask."""
    return union(read, (part.text for part in parts if not part.asks))


def value_stated(text: str, strict: Reader, read: Reader, *fallbacks: Finder) -> str | None:
    """Return the one value that a text states, None when it states none or several.

    The strongest marker that has values decides, then the first fallback that finds any in what precedes a check of
    the answer. After a refusal to answer only a line before it that is an answer and nothing else counts.

    Args:
        text: the output's own part.
        strict: reads a line that must be an answer and nothing else.
        read: reads a statement after a marker.
        fallbacks: find values without a marker.

    >>> digits = lambda words: set(re.findall(r"[0-9]+", words))
    >>> value_stated("The answer is 5. Final answer: 6", digits, digits), value_stated("5", digits, digits)
    ('6', None)
    """
    text = without_withheld(text)
    parts = sentences(text)
    values = _marked(text, parts, strict, read)
    if not values and (checked := without_check(text)) != text:
        text, parts = checked, sentences(checked)
    if not values and (position := position_of_refusal([part.text for part in parts])) is not None:
        values = stating(strict, text, parts[:position])
        fallbacks = ()
    for find in fallbacks:
        values = values or find(text, parts)
    return values.pop() if len(values) == 1 else None


def sequence_stated(output: str) -> str | None:
    """Return the text after the last `####` or answer phrase, else the whole output; None when that is empty.

    >>> sequence_stated("4 4 2 + 0 6 6  ####  4 0 8 "), sequence_stated(" 4 0  8"), sequence_stated("4 0 8 ####")
    ('4 0 8', '4 0 8', None)
    """
    text = own_part(output)
    spans = withheld_spans(text)
    starts = [start for start, _ in spans]
    marks = [match for marker in (_HEADING, _ANSWER) for match in marker.finditer(text)]
    # None of these in a clause that is not stated.
    spanned = [(match, bisect_right(starts, match.start()) - 1) for match in marks]
    start = max((match.end() for match, i in spanned if i < 0 or match.start() >= spans[i][1]), default=0)
    text = text[start:]
    if box := _BRACE.search(text):
        text = text[box.start() :] if box["box"] else text
    explained = _EXPLANATION.search(text)
    return normalise_sequence(text[: explained.start()] if explained else text) or None


def normalise_sequence(text: str) -> str:
    r"""Return a text with single spaces, without the full stop at its end and the markup around it.

    >>> normalise_sequence(" Sally is  a lempus. "), normalise_sequence(r"$\boxed{\text{lion}}$")
    ('Sally is a lempus', 'lion')
    """
    text = " ".join(text.split()).rstrip(". ")
    for _ in range(8):
        before = text
        if wrapped := _WRAPPED.fullmatch(text):
            text = wrapped[1]
        for opening, closing in _MARKUP:
            opened, closed = text.startswith(opening), text.endswith(closing)
            whole = opened and closed and len(text) > len(opening + closing)
            if whole and opening not in (inner := text[len(opening) : -len(closing)]) and closing not in inner:
                text = inner
            # A sign whose other half stands before an answer phrase or a box.
            elif closed and text.count(closing) == 1 and (opening == closing or opening not in text):
                text = text[: -len(closing)]
            elif opening == "**" and opened and text.count(opening) == 1:
                text = text[len(opening) :]
        text = text.strip().rstrip(". ")
        if text == before:
            break
    return text


def _asks(words: str) -> bool:
    """Return whether a sentence is a question or a request to compute something."""
    if words.rstrip("\"')]}*_\u201d ").endswith("?"):
        return True
    return _REQUEST.search(words) is not None and "=" not in words and "answer to" not in words.lower()


def _withdraws(output: str, match: re.Match) -> bool:
    """Return whether a word such as "wait" withdraws what precedes it, by its position and what follows it."""
    if not match["word"]:
        return True
    start = match.start()
    before = output[max(0, start - 60) : start] if start else "\n"
    if _OPENS_CLAUSE.search(before):
        if not before.rstrip().endswith(","):
            return True
        # "mix, wait, and bake", "It is 5, actually."
        tail = match["stops"] is not None and match["word"].lower() == "actually"
        return not tail and not _LIST_GOES_ON.match(output, match.end())
    if match["corrects"] is not None:
        return not _NO_INTERJECTION.search(before)
    return match["pauses"] is not None and _AFTER_VALUE.search(before) is not None


def _marked(text: str, parts: list[Sentence], strict: Reader, read: Reader) -> set[str]:
    """Return the values that stand after the strongest marker that has any.

    A line further down that is another answer and nothing else counts as well, so that "The answer is 5. 6. 7." has
    three. An output that ends by asking is an echo or a hedge: only a bare answer counts after its markers.
    """
    ends_by_asking = bool(parts) and parts[-1].asks
    phrases = (partial(_after, phrase) for phrase in (_FINAL, _CONCLUSION, _ANSWER))
    places: list[Callable[[str, list[Sentence]], Iterable[tuple[str, int]]]] = [_after_heading, _boxes, *phrases]
    for find in places:
        reader = strict if ends_by_asking or find is _after_heading else read
        slots = list(find(text, parts))
        if values := union(reader, (slot for slot, _ in slots)):
            return values | stating(strict, text, [part for part in parts if part.start >= slots[-1][1]])
    return set()


def _after_heading(text: str, parts: list[Sentence]) -> Iterable[tuple[str, int]]:
    """Yield the rest of each line after `####`, and where it ends."""
    for match in _HEADED.finditer(text):
        yield match[1], match.end()


def _boxes(text: str, parts: list[Sentence]) -> Iterable[tuple[str, int]]:
    r"""Yield the content of each `\boxed{}`, and where it ends."""
    boxes: list[int | None] = []  # for each brace that is still open, where its box's content begins, or None
    for match in _BRACE.finditer(text):
        if match.group() != "}":
            boxes.append(match.end() if match["box"] else None)
        elif boxes and (start := boxes.pop()) is not None:
            yield text[start : match.start()], match.end()


def _after(phrase: re.Pattern, text: str, parts: list[Sentence]) -> Iterable[tuple[str, int]]:
    """Yield what follows an answer phrase, and where it ends: the rest of its sentence, or the next one if empty."""
    ends = [part.start + len(part.text) for part in parts]
    matches = list(phrase.finditer(text))
    for match, following in zip_longest(matches, matches[1:]):
        stop = following.start() if following else len(text)
        if _ANNOUNCED.search(text[max(0, match.start() - 40) : match.start()]):
            continue
        for part in parts[bisect_right(ends, match.end()) :]:
            end = part.start + len(part.text)
            slot = text[max(match.end(), part.start) : min(end, stop)]
            # A slot that ends on a colon introduces the statement that follows it.
            if re.search(r"[^\W_]", slot) and not slot.rstrip("* ").endswith(":"):
                if not part.asks:
                    yield slot, end
                break
