"""Multiple-choice answers: a letter A to J that is named as an option, not the article "A" or the pronoun "I"."""

import re

from .latex import plain
from .statements import Sentence, marked_values, only, own_part, sentences

_LETTER = re.compile(r"\b[A-J]\b")
_LONE = re.compile(r"\W*(?:(?:option|choice|letter)\W+)?([A-J])\W*", re.IGNORECASE)
_LABEL = re.compile(r"\W*([A-Ja-j])(?:[.):](?!\w)|\)(?=\d)|\*\*)")
_MENTIONS = re.compile(
    r"""
    \(\s*(?P<bracketed>[A-Ja-j])\s*\)
    | \[(?P<square>[A-J])\]
    | \b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)\s+["'*(]*(?P<named>[A-J])\b(?!['\u2019])
    | (?<![\w.'\u2019])(?P<labelled>[A-J])(?=[.):](?!\w)|\)(?=\d))
    | (?<![\w*])[*"'`]+(?P<quoted>[A-J])[*"'`]+
    | (?<![\w.'\u2019])(?P<small>[a-j])(?=[.)](?!\w)|\)(?=\d))
    | (?<![\w'\u2019])(?<!\w\.)(?P<plain>[B-HJ])(?![\w'\u2019]|-[a-z])
    # "A" is an article unless a sign follows it or a word that goes with a subject.
    | (?<![\w.'\u2019])(?<!\w-)(?P<a>A)
      (?=\W*$|(?!-[a-z])\s*[^\w\s'"\u2019\u201c(]|\s+\(or\b|\s+[A-J]\b
        |\s+(?:to|through|is|was|or|and|nor|if|unless|then|but|because|since|as)\b)
    """,
    re.VERBOSE,
)
_DENIED = re.compile(r"\b(?:not|n't|nor|neither|than|rather\s+than|instead\s+of)\W+(?:(?:option|choice)\W+)?$", re.I)
_DISMISSED = re.compile(
    r"[\W]*\b(?:(?:is|are|was|seems)\s+(?:also\s+|clearly\s+|simply\s+)?"
    r"(?:not|wrong|incorrect|less|irrelevant|unrelated|too)|isn't|doesn't|does\s+not)\b",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_CUE = re.compile(r"\b(?:so|therefore|thus|hence|correct|best|choose|pick|select|go with|answer|must be|most)\b", re.I)


def choice_stated(output: str) -> str | None:
    """Returns the letter of the one option that an output states, else None.

    >>> choice_stated("The answer is (B)."), choice_stated("A. ignore"), choice_stated("b")
    ('B', 'A', 'B')
    >>> choice_stated("A revolving door is convenient."), choice_stated("A or B"), choice_stated("A B C D E")
    (None, None, None)
    """
    text = plain(own_part(output))
    parts = sentences(text)
    values = marked_values(text, parts, _lone, _named)
    if not values:
        values = _verdict(parts)
    if not values:
        values = set().union(*(_option_line(part.text) for part in parts if not part.asks))
    if not values and parts and not parts[-1].asks:
        values = set().union(*(_named(part.text) for part in parts if not part.asks))
    return only(values)


def _lone(text: str) -> set[str]:
    """Returns the letter of a line that is a letter and nothing else."""
    match = _LONE.fullmatch(text)
    return {match.group(1).upper()} if match else set()


def _named(text: str) -> set[str]:
    """Returns the options that a sentence names, without those that it denies.

    >>> sorted(_named("**D. examine thing**, not B")), sorted(_named("A, since C is wrong")), _named("A bank")
    (['D'], ['A'], set())
    """
    if lone := _lone(text):
        return lone
    claim = _REASON.split(text)[0]
    if claim != text and (values := _named(claim)):
        return values
    values = set()
    if label := _LABEL.match(text):
        values.add(label.group(1).upper())
    for match in _MENTIONS.finditer(text):
        before, after = text[max(0, match.start() - 24) : match.start()], text[match.end() :]
        if not _DENIED.search(before) and not _DISMISSED.match(after):
            values.add(match[match.lastgroup].upper())
    return values


def _option_line(text: str) -> set[str]:
    """Returns the options of a line that begins with an option's label: "B", "(B) bank", "b. bank"."""
    return _named(text) if _LABEL.match(text) or _LONE.fullmatch(text) else set()


def _verdict(parts: list[Sentence]) -> set[str]:
    """Returns the options that the last sentence concludes on.

    >>> _verdict(sentences("A fits. So E fits best.")), _verdict(sentences("Thus he is:" + chr(10) + "D. bored"))
    ({'E'}, {'D'})
    """
    if not parts or parts[-1].asks:
        return set()
    last, before = parts[-1].text, parts[-2].text if len(parts) > 1 else ""
    cued = _CUE.search(before) and before.endswith(":") if _option_line(last) else _CUE.search(last)
    # "A is correct. B is correct." is a list in sentences.
    twins = [part.text for part in parts if _LETTER.sub("", part.text) == _LETTER.sub("", last)]
    return set().union(*map(_named, twins)) if cued else set()
