"""Where an output states its answer: its own part, its sentences, and what stands after an answer marker."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import NamedTuple

Reader = Callable[[str], set[str]]

# From strongest to weakest. GSM8K's rationales end on `####`; a box is final by convention; the rest is prose.
_HEADING = re.compile(r"####+(?!#)")
_BRACE = re.compile(r"(?P<box>\\f?boxed\s*\{)|\{|\}")
# "18 correct answers: 72 points" is about answers and gives none.
_PHRASE = (
    r"\b(?:answer|(?:correct|best|right|most\s+\w+)\s+(?:choice|option))\b"
    r"(?:[\s*_]*(?:\([^)\n]*\))?[\s*_]*[:=]"
    r"|[^.?!:=\n]{0,120}?\b(?:is|are|was|equals|comes\s+to|(?:would|will|should|must)\s+be)\b(?!\s*not\b)\s*:?)"
)
# "To find the best answer, ..." and "to answer the question: ..." announce an answer without giving it.
_ANNOUNCED = re.compile(r"\b(?:to|let's|let\s+us)\s+(?:\w+\s+){0,3}$", re.IGNORECASE)
_LINE_END = re.compile(r"\n|####|\Z")
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


def own_part(output: str) -> str:
    """Returns what belongs to the question asked: nothing from the next question's heading on, nothing taken back.

    A model that runs on writes further questions and answers of its own. They neither rescue nor spoil what stands
    before them. A heading that opens the output repeats the question asked and is kept.

    >>> own_part("18" + chr(10) + "Question: 2 + 2?" + chr(10) + "Answer: 4").strip()
    '18'
    >>> own_part("The answer is 5. Wait, the answer is 6.").strip()
    'the answer is 6.'
    >>> own_part("That is a 15 minute wait.")
    'That is a 15 minute wait.'
    """
    for heading in _NEXT_QUESTION.finditer(output):
        if output[: heading.start()].strip():
            output = output[: heading.start()]
            break
    retractions = [match for match in _RETRACTION.finditer(output) if _takes_back(output, match)]
    return output[retractions[-1].end() :] if retractions else output


def sentences(text: str) -> list[Sentence]:
    """Returns the sentences and lines that hold a letter or a digit.

    >>> [(sentence.text, sentence.asks) for sentence in sentences("He has 1.5 l. How much is left?")]
    [('He has 1.5 l.', False), ('How much is left?', True)]
    """
    found = []
    for match in _SENTENCE.finditer(text):
        words = match.group().strip()
        if re.search(r"[^\W_]", words):
            asks = words.rstrip("\"')]}*_\u201d ").endswith("?") or (
                _REQUEST.search(words) is not None and "=" not in words and "answer to" not in words.lower()
            )
            found.append(Sentence(match.start(), words, asks))
    return found


def marked_values(text: str, parts: list[Sentence], strict: Reader, read: Reader) -> set[str]:
    """Returns the values that stand after the strongest marker that has any.

    A line further down that is another answer and nothing else counts as well, so that "The answer is 5. 6. 7." has
    three. An output that ends by asking is an echo or a hedge: there only a bare answer counts after a marker.

    Args:
        text: the output's own part.
        parts: its sentences.
        strict: reads a line that must be an answer and nothing else.
        read: reads a statement. Both return the set of values that they find.

    >>> digits = lambda words: set(re.findall(r"[0-9]+", words))
    >>> text = "The answer is 5. Final answer: 6"
    >>> marked_values(text, sentences(text), digits, digits)
    {'6'}
    """
    ends_by_asking = bool(parts) and parts[-1].asks
    phrases = [_after(pattern) for pattern in (_FINAL, _CONCLUSION, _ANSWER)]
    for find in (_after_heading, _boxes, *phrases):
        reader = strict if ends_by_asking or find is _after_heading else read
        values, end = set(), 0
        for slot, stop in find(text, parts):
            values |= reader(slot)
            end = stop
        if values:
            return values.union(*(strict(part.text) for part in parts if part.start >= end and not part.asks))
    return set()


def only(values: set[str]) -> str | None:
    """Returns the single value of a set, else None.

    >>> only({"5"}), only({"5", "6"}), only(set())
    ('5', None, None)
    """
    return next(iter(values)) if len(values) == 1 else None


def last_answer_start(text: str) -> int:
    """Returns where the text after the last `####` or answer phrase begins; 0 when there is none.

    >>> last_answer_start("Answer: 1 2 #### 3"), last_answer_start("1 2 3")
    (16, 0)
    """
    return max((match.end() for pattern in (_HEADING, _ANSWER) for match in pattern.finditer(text)), default=0)


def _takes_back(output: str, match: re.Match) -> bool:
    """Returns whether a word such as "wait" interrupts what was said, by where it stands and what follows it."""
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


def _after_heading(text: str, parts: list[Sentence]) -> Iterable[tuple[str, int]]:
    for match in _HEADING.finditer(text):
        end = _LINE_END.search(text, match.end()).start()
        yield text[match.end() : end], end


def _boxes(text: str, parts: list[Sentence]) -> Iterable[tuple[str, int]]:
    boxes = []  # for each brace that is still open, where its box's content begins, or None
    for match in _BRACE.finditer(text):
        if match.group() != "}":
            boxes.append(match.end() if match["box"] else None)
        elif boxes and (start := boxes.pop()) is not None:
            yield text[start : match.start()], match.end()


def _after(pattern: re.Pattern) -> Callable[[str, list[Sentence]], Iterable[tuple[str, int]]]:
    """Returns a finder of what follows a phrase: the rest of its sentence, or the next one where nothing is left."""

    def find(text: str, parts: list[Sentence]) -> Iterable[tuple[str, int]]:
        ends = [part.start + len(part.text) for part in parts]
        matches = list(pattern.finditer(text))
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

    return find
