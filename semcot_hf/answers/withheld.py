"""What an output names without standing by it: what it denies, only supposes, ascribes to others, or takes back."""

import re

_NOT = r"(?:\s+not|n['\u2019]t)"
_THINK = r"(?:think|believe|say|suppose|guess|claim|expect|agree|mean|feel|assume|conclude)"
_OTHERS = r"(?:some|many|most|other)(?:\s+(?:people|students|readers|of\s+(?:you|them|us)))?|others|people"
_SUBJECT = r"(?:i|we|you|one|they|someone)"
# What makes the clause after it one that is not stated.
_GOVERNOR = re.compile(
    r"\b(?:"
    rf"{_SUBJECT}\s+(?:do|did|would|could|can){_NOT}\s+(?:\w+\s+)?{_THINK}"
    rf"|{_SUBJECT}\s+never\s+(?:thought|believed|said|claimed|meant)"
    r"|i\s+(?:(?:\w+ly|very\s+much)\s+)?(?:doubt|deny|disagree)"
    rf"|(?:nobody|no\s+one)\s+(?:would\s+)?{_THINK}s?"
    rf"|{_SUBJECT}\s+(?:might\s+(?:\w+\s+)?say|(?:might|may|could)\s+(?:\w+\s+)?"
    r"(?:think|believe|guess|suppose|assume|expect))"
    rf"|(?:{_OTHERS})\s+(?:(?:might|may|would|will)\s+)?{_THINK}"
    r"|(?:it|that)(?:['\u2019]s|\s+(?:is|was|seems))\s+(?:(?:\w+ly|very|quite|just)\s+)?"
    r"(?:unlikely|doubtful|improbable|questionable|false|untrue|not\s+(?:\w+ly\s+)?(?:true|the\s+case|likely))"
    r"|it\s+(?:isn|wasn)['\u2019]t\s+(?:\w+ly\s+)?(?:true|the\s+case|likely)"
    r"|no\s+way(?!\s+(?:to|of|for)\b)"
    r"|(?:not|n['\u2019]t)\s+(?:sure|certain|convinced|know)\s+(?:that|if|whether)"
    r")\b",
    re.I,
)
_VALUE = r"(?:-?[$]?\d[\d.,]*|\(?(?-i:[A-J])\)?|[\"']?(?:yes|no)[\"']?)"
_THE_ANSWER = r"(?:the|my|your|our|this|that|its)\s+(?:\w+\s+){0,2}(?:answer|choice|option)"
_ANSWER_IS = rf"{_THE_ANSWER}\s+(?:is|was|were)\b(?!\s+(?:right|correct)\b)"
_VALUE_IS = rf"{_VALUE}\s+(?:is|was|were)\s+(?:{_THE_ANSWER}|right|correct|true)\b"
_CONDITION = re.compile(
    r"(?:\b(?:if|unless|whether|supposing|assuming|provided|to\s+(?:suppose|assume|imagine|pretend))\s+"
    r"|(?:\A\W*|\blet(?:['\u2019]s|\s+us|\s+me)\s+)(?:suppose|assume|imagine|pretend|say)\s+)"
    rf"(?:that\s+)?(?:{_ANSWER_IS}|{_VALUE_IS})",
    re.I,
)
# Where a clause that is not stated ends within its sentence.
_GOES_ON = re.compile(
    r"[.;:]\s|\s[\u2013\u2014-]\s|,?\s+(?:but|rather|instead|so|therefore|thus|hence)\b"
    r"|,\s*(?:it|this|that|the|there|she|he|they|we|you|i|yes|no)\b",
    re.I,
)

_ADVERB = r"(?:(?:actually|clearly|obviously|in\s+fact|simply|just|completely|totally|quite|also)\s+)?"
_WRONG = (
    rf"{_ADVERB}(?:wrong|incorrect|mistaken|untrue|a\s+mistake|an\s+error"
    rf"|not\s+{_ADVERB}(?:right|correct|true|the\s+(?:\w+\s+)?answer))"
)
_THAT = r"(?:that|this|it|which|(?:the|my|this|that)\s+(?:\w+\s+)?(?:answer|result|number|option|choice))"
_STOPS = r"(?=[*_\"']*\s*(?:[.!,;:\u2026\u2013\u2014\n-]|\Z|(?:because|since|as|and|so|though|but)\b))"
_NEW = r"(?=[\s:\"'*($\\]*(?:boxed\b|[-.]?\d|(?-i:[A-J])\b(?!\s+(?-i:[a-z]))|yes\b|no\b))"
_IS = r"(?:['\u2019]s|\s+(?:is|was|are|equals|(?:should|would|must)\s+be))\b"
_TAKEN_BACK = re.compile(
    rf"\b(?:(?:{_THAT}(?:(?:['\u2019]s|\s+(?:is|was))\s+{_WRONG}|\s+(?:isn|wasn)['\u2019]t\s+(?:right|correct|true))"
    rf"|i\s+(?:was|am)\s+(?:wrong|mistaken|incorrect)|i['\u2019]m\s+(?:wrong|mistaken)){_STOPS}"
    r"|(?P<word>wrong|incorrect|not\s+(?:right|correct))(?=\s*[.!])"
    rf"|(?P<corrected>but\s+(?:(?:it|that|the\s+(?:\w+\s+)?answer)\s+)?(?:should|must|ought\s+to)\s+{_ADVERB}"
    rf"(?:be|have\s+been)\b{_NEW})"
    r"|(?P<no>no\s*[,:!\u2013\u2014-]+\s*)"
    rf"(?:(?:it|that|this|the\s+(?:\w+\s+)?answer){_IS}\s*)?"
    r"(?=[\s:\"'*($\\]*(?:boxed\b|[-.]?\d|(?-i:[A-J])\b(?!\s+(?-i:[a-z])))))",
    re.I,
)
_OPENS = re.compile(
    r"(?:\A|[\n.!?:;,(\u2013\u2014\u2026}]|--|\s-\s|\b(?:but|and|though|although|however|yet)\b)[\s\"'*_$]*"
    r"(?:(?:but|and|so|no|oh|ah|hm+|well|ok|okay|oops|sorry|yet|however|unfortunately|though)\b[\s,.!*-]*)*\Z",
    re.I,
)
_OPENS_SENTENCE = re.compile(r"(?:(?<!\b[A-Ja-j])[.!?]|\n)[\s\"'*_]*\Z")
_AFTER_NUMBER = re.compile(r"(?:[\d)}%$*]|\b(?-i:[A-J]))\s*[.!,;\u2026\u2013\u2014-]+\s*\Z", re.I)
# "No, that is wrong" and "the answer is no, that is wrong" say no.
_SAYS_NO = re.compile(r"(?:\A|\b(?:is|so)\b|[:#])[\s\"'*_]*no[\s\"'*_,;:.\u2013\u2014-]*\Z", re.I)
_END = re.compile(r"[.!?](?=\s)|\n")
# The full stop of a label at the beginning of a line ("A. bank") ends no sentence.
_END_OF_CLAIM = re.compile(r"(?<!\n[A-Ja-j])[.!?](?=\s)|\n")
_TOKEN = re.compile(r"\d[\d.,]*\d|\d|\b(?-i:[A-J])\b(?!\s+[a-z]+\s+(?:is|are)\b)|\byes\b|\bno\b", re.I)
_CLAUSE = re.compile(r"\b(?:is|are|was|were|has|have|had|would)\b", re.I)
_MARK = re.compile(r"\banswer\b|####|\\f?boxed", re.I)
# How many characters before a clause tell what it is about.
_NEAR, _FAR = 60, 1000


def without_withheld(text: str) -> str:
    """Return a text without the clauses that it denies, supposes or ascribes to others; what opens them stays.

    >>> without_withheld("I don't think the answer is 5, it is 6."), without_withheld("If the answer is 5, she has 3.")
    ("I don't think, it is 6.", '')
    >>> without_withheld("If she has 3, the answer is 5.")
    'If she has 3, the answer is 5.'
    """
    spans = withheld_spans(text)
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def withheld_spans(text: str) -> list[tuple[int, int]]:
    """Return where the clauses of a text are that it denies, supposes or ascribes to others.

    >>> withheld_spans("I don't think the answer is lion."), withheld_spans("I think the answer is lion.")
    ([(13, 32)], [])
    """
    spans, start = list[tuple[int, int]](), 0
    for piece in _pieces(text, _END):
        if span := _withheld(piece):
            spans.append((start + span[0], start + span[1]))
        start += len(piece)
    return spans


def end_of_taken_back(output: str) -> int:
    """Return where the last clause ends that takes back what precedes it, 0 where none does.

    >>> output = "The answer is 5. That is wrong. It is 6."
    >>> output[end_of_taken_back(output) :], end_of_taken_back("The answer is 5. That is right.")
    ('. It is 6.', 0)
    """
    found = [match for match in _TAKEN_BACK.finditer(output) if _takes(output, match)]
    return (found[-1].end("no") if found[-1]["no"] else found[-1].end()) if found else 0


def _pieces(text: str, end: re.Pattern) -> list[str]:
    """Return the sentences and lines of a text, with the signs that end them."""
    ends = [match.end() for match in end.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def _withheld(sentence: str) -> tuple[int, int] | None:
    """Return where the clause of a sentence is that it does not state, None where it states everything."""
    if condition := _CONDITION.search(sentence):
        return condition.start(), len(sentence)
    governor = _GOVERNOR.search(sentence)
    if governor is None:
        return None
    goes_on = _GOES_ON.search(sentence, governor.end())
    end = goes_on.start() if goes_on else len(sentence.rstrip(".!?\n \"'*"))
    return governor.end(), max(end, governor.end())


def _takes(output: str, match: re.Match) -> bool:
    """Return whether a match of `_TAKEN_BACK` takes back the answer, by what stands before it."""
    start = match.start()
    before = output[max(0, start - _NEAR) : start]
    if not re.search(r"\w", before) or match["corrected"]:
        return bool(match["corrected"])
    if match["no"]:
        return _AFTER_NUMBER.search(before) is not None
    opens = _OPENS_SENTENCE if match["word"] else _OPENS
    if not opens.search(before) or _SAYS_NO.search(before):
        return False
    return _is_about_answer(output[:start])


def _is_about_answer(text: str) -> bool:
    """Return whether the last sentence of a text is about the answer, not about another option or view."""
    text = "\n" + text[-_FAR:].rstrip(" .!?,;:-\n*") + " "
    pieces = [piece for piece in _pieces(text, _END_OF_CLAIM) if re.search(r"\w", piece)]
    if not pieces:
        return True
    last, earlier = pieces[-1], pieces[:-1]
    if _withheld(last) and not _MARK.search(without_withheld(last)):
        return False
    if not earlier or _MARK.search(last):
        return True
    if not _TOKEN.search(last) and _CLAUSE.search(last):
        return False
    claims = [piece for piece in earlier if _MARK.search(piece)] or [p for p in earlier[:1] if len(p.split()) <= 2]
    named, about = set(_TOKEN.findall(" ".join(claims))), set(_TOKEN.findall(last))
    return not claims or not about or bool(named & about)
