"""Answers that name an option: a letter A to J, or yes or no, which true and false stand for."""

import re
from functools import partial

from .latex import plain
from .statements import Sentence, own_part, sentences, stating, union, value_stated

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
_LETTER_DENIED = re.compile(
    r"(?:\b(?:not|cannot|nor|neither|than|instead\s+of|anything\s+but)|n['\u2019]t)\W+"
    r"(?:(?:be|say|choose|pick)\W+)?(?:(?:option|choice)\W+)?"
    r"(?-i:[A-J]\W+(?:or|nor)\W+)?$",
    re.I,
)
# "Is wrong" dismisses the option before it, "are wrong" every option of a list before it.
_ADVERB = r"(?:(?:all|both|also|clearly|simply)\s+)?"
_REJECTED = r"(?:not|wrong|incorrect|less|irrelevant|unrelated|too)"
_RULED_OUT = r"can(?:not|['\u2019]t|\s+not)\s+be|can\s+be\s+(?:ruled\s+out|eliminated|excluded|dismissed)"
_DISMISSED = re.compile(
    rf"[\W]*\b(?:(?:is|are|was|seems)\s+{_ADVERB}{_REJECTED}|{_RULED_OUT}|isn['\u2019]t|doesn['\u2019]t|does\s+not)\b"
    r"|(?:[\s\"'*)\]]*(?:,\s*(?:and|or|nor)\b|[,/&]|\b(?:and|or|nor)\b)"
    r"\s*(?:options?\s+|choices?\s+)?[\"'*(\[]*(?-i:[A-J])\b){0,9}"
    rf"[\s\"'*)\]]*\b(?:(?:are|were)\s+{_ADVERB}{_REJECTED}|{_RULED_OUT}|(?:are|were|do)(?:n['\u2019]t|\s+not))\b",
    re.IGNORECASE,
)
# "C. In short, ...": the sentence after a label explains it, unless it hedges.
_EXPLAINED = re.compile(r"(\W*[A-J]\.)\s+(?=(?:In|This|That|It|The|Because|Since|As|While|Although|Other|Another)\b)")
_HEDGED = re.compile(r"\b(?:or|could|might|may|maybe|perhaps|also|answer)\b", re.IGNORECASE)
# "..., so D", "...; the right one is C".
_CONCLUSION = re.compile(
    r".*(?:[,;]\s*(?:so|therefore|thus|hence)\b|;\s(?=.*\b(?:correct|right|best|answer)\b))", re.IGNORECASE
)
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_CUE = re.compile(r"\b(?:so|therefore|thus|hence|correct|best|choose|pick|select|go with|answer|must be|most)\b", re.I)

# "no" answers when nothing follows it, or punctuation, or the beginning of an explanation; "no one", "no-one" and
# "no longer" do not. A yes or no that is denied ("not yes") states nothing.
_WORD = re.compile(
    r"(?<![\w-])(?<!\w')(?:yes\b(?!-|'\w)|no\b(?=\W*$|'(?!\w)|\s*[^\w\s'-]|\s+-\s"
    r"|\s+(?:the|it|this|that|because|since|as|they|he|she|and|or|nor|but|if|unless|when|then|yes|no)\b))",
    re.IGNORECASE,
)
_WORD_DENIED = re.compile(r"(?:\bnot|n't|\bnever)\W+$", re.IGNORECASE)
_OPENING = re.compile(r"^[\W_]*(?:(?:or|but|so|well)\b[\W_]*)?", re.IGNORECASE)
# True and false count where no yes or no does: those that open a sentence, what an answer marker names, and what a
# closing sentence ends on. "It is true that ..." and "true or false" answer nothing.
_TRUTHS = {"true": "yes", "false": "no"}
_TRUTH = re.compile(r"(?<![\w-])(?:true|false)\b(?!-|'\w)", re.IGNORECASE)
_TRUTH_OPENS = re.compile(rf"{_TRUTH.pattern}(?=\W*$|\s*[^\w\s'(/-]|\s+(?:-\s|because\b|since\b|as\b))", re.IGNORECASE)
_TRUTH_ENDS = re.compile(rf"\b(?:is|are|was|were|equals|evaluates\s+to)\W+{_TRUTH.pattern}\W*$", re.IGNORECASE)
_NOT_CLOSING = re.compile(r"\b(?:or|could|might|may|maybe|perhaps|if|whether|unless|when)\b", re.IGNORECASE)
_BOTH = re.compile(r"\b(?:yes|no)\W*(?:/|-|\bor\b|\band\b|\bnor\b)\W*(?:yes|no)\b", re.IGNORECASE)


def choice_stated(output: str) -> str | None:
    """Return the letter of the one option that an output states, else None.

    A letter is an option where it is named as one; the article "A" and the pronoun "I" are not.

    >>> choice_stated("The answer is (B)."), choice_stated("A. ignore"), choice_stated("b")
    ('B', 'A', 'B')
    >>> choice_stated("A revolving door is convenient."), choice_stated("A or B"), choice_stated("A B C D E")
    (None, None, None)
    """
    fallbacks = (_verdict, partial(stating, _option_line), _all_named)
    return value_stated(plain(own_part(output)), _lone, _named, *fallbacks)


def yes_no_stated(output: str) -> str | None:
    """Return "yes" or "no" when the output states one of them, else None.

    >>> yes_no_stated("No, the coin is tails up."), yes_no_stated("The answer is **yes**")
    ('no', 'yes')
    >>> yes_no_stated("Is the coin still heads up?"), yes_no_stated("yes or no"), yes_no_stated("No one knows.")
    (None, None, None)
    >>> yes_no_stated("False."), yes_no_stated("So the answer is True."), yes_no_stated("Is it true or false?")
    ('no', 'yes', None)
    """
    text = plain(own_part(output))
    stated = value_stated(text, _leading, _words, partial(stating, _leading), partial(stating, _words))
    if stated or stating(_words, text, sentences(text)):
        return stated
    return value_stated(text, _opening_truth, _truths, partial(stating, _opening_truth), _closing_truth)


def _lone(text: str) -> set[str]:
    """Return the letter of a line that is a letter and nothing else."""
    match = _LONE.fullmatch(text)
    return {match.group(1).upper()} if match else set()


def _named(text: str) -> set[str]:
    """Return the options that a sentence names, without those that it denies.

    >>> sorted(_named("**D. examine thing**, not B")), sorted(_named("A, since C is wrong")), _named("A bank")
    (['D'], ['A'], set())
    """
    if lone := _lone(text):
        return lone
    if (explained := _EXPLAINED.match(text)) and not _HEDGED.search(text, explained.end()):
        text = explained[1]
    if (concluded := _CONCLUSION.match(text)) and (values := _named(text[concluded.end() :])):
        return values
    claim = _REASON.split(text)[0]
    if claim != text and (values := _named(claim)):
        return values
    label = _LABEL.match(text)
    values = {label.group(1).upper()} if label else set()
    for match in _MENTIONS.finditer(text):
        before, after = text[max(0, match.start() - 32) : match.start()], text[match.end() :]
        if not _LETTER_DENIED.search(before) and not _DISMISSED.match(after):
            values.add(match[match.lastgroup or 0].upper())
    return values


def _option_line(text: str) -> set[str]:
    """Return the options of a line that begins with an option's label: "B", "(B) bank", "b. bank"."""
    return _named(text) if _LABEL.match(text) or _LONE.fullmatch(text) else set()


def _all_named(text: str, parts: list[Sentence]) -> set[str]:
    """Return the options that any sentence names, unless the last one asks."""
    return stating(_named, text, parts) if parts and not parts[-1].asks else set()


def _verdict(text: str, parts: list[Sentence]) -> set[str]:
    """Return the options that the last sentence concludes on.

    >>> _verdict("", [Sentence(0, "A fits.", False), Sentence(8, "So E fits best.", False)])
    {'E'}
    >>> _verdict("", [Sentence(0, "Thus he is:", False), Sentence(12, "D. bored", False)])
    {'D'}
    """
    if not parts or parts[-1].asks:
        return set()
    last, before = parts[-1].text, parts[-2].text if len(parts) > 1 else ""
    cued = _CUE.search(before) and before.endswith(":") if _option_line(last) else _CUE.search(last)
    # "A is correct. B is correct." is a list in sentences.
    twins = (part.text for part in parts if _LETTER.sub("", part.text) == _LETTER.sub("", last))
    return union(_named, twins) if cued else set()


def _words(text: str) -> set[str]:
    """Return which of yes and no a sentence answers with.

    >>> sorted(_words("yes and no")), _words("not yes"), _words("there is no change")
    (['no', 'yes'], set(), set())
    """
    if _BOTH.search(text):
        return {"yes", "no"}
    found = (m for m in _WORD.finditer(text) if not _WORD_DENIED.search(text[max(0, m.start() - 8) : m.start()]))
    return {match.group().lower() for match in found}


def _leading(text: str) -> set[str]:
    """Return what a sentence answers when it begins with yes or no."""
    return _words(text) if _WORD.match(_OPENING.sub("", text)) else set()


def _truths(text: str) -> set[str]:
    """Return which of yes and no a sentence's "true" and "false" stand for, before its reason if it has any there.

    >>> _truths("True, since not False is True"), sorted(_truths("true or false")), _truths("not true")
    ({'yes'}, ['no', 'yes'], set())
    """
    claim = _REASON.split(text)[0]
    text = claim if _TRUTH.search(claim) else text
    found = (m for m in _TRUTH.finditer(text) if not _WORD_DENIED.search(text[max(0, m.start() - 8) : m.start()]))
    return {_TRUTHS[match.group().lower()] for match in found}


def _opening_truth(text: str) -> set[str]:
    """Return what a sentence answers when it begins with true or false and nothing that goes with it."""
    return _truths(text) if _TRUTH_OPENS.match(_OPENING.sub("", text)) else set()


def _closing_truth(text: str, parts: list[Sentence]) -> set[str]:
    """Return whether the last sentence says that something is true or false.

    >>> _closing_truth("", [Sentence(0, "not True is False.", False), Sentence(19, "So the whole is True.", False)])
    {'yes'}
    """
    if not parts or parts[-1].asks:
        return set()
    last = parts[-1].text
    # "It is true. It is false." is a list in sentences.
    twins = (part.text for part in parts if _TRUTH.sub("", part.text) == _TRUTH.sub("", last))
    ends = [_TRUTH_ENDS.search(twin) for twin in twins if not _NOT_CLOSING.search(twin)]
    return union(_truths, (match[0] for match in ends if match))
