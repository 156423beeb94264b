"""Splits without overlap: a hash of its normalised text assigns each question to one split."""

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TypeVar

SPLITS = ("train", "validation", "test")
_Solution = TypeVar("_Solution")

_MARKS = r".,;:?!¿¡…،؛؟।。、'\"`‘‚‛“”„‟‹›«»「」『』《》"
_INVISIBLE = r"\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2060-\u2064\ufe0e\ufe0f\ufeff"
_LETTER = r"[^\W\d_]"
_LONE = r"(?<![\w'\"‘“])[a-z]"
# What precedes and follows a mark that belongs to a formula: a decimal point, a separator ("f(x,y)", "4:30", "7 : 2"),
# "not" ("!p"), a factorial ("n!", "(n + 1)!!"), a prime ("y'", "f'(x)", "5'7"). A comma or apostrophe before three
# digits separates thousands.
_FORMULA = (
    rf"(?<=\.)(?=\d)|(?:(?<=\S[,;:?])(?!(?<=\d,)\d{{3}}(?!\d))|(?<=!))(?=[^\s{_MARKS}])|(?<=\d :)(?= \d)"
    rf"|(?<=[\d)]!)|(?<=[\d)]!!)|(?<={_LONE}!)|(?<={_LONE}!!)|(?<={_LONE}')(?!\w)|(?<={_LONE}'')(?!\w)"
    r"|(?<=\w')(?='?\()|(?<=\w'')(?=\()|(?<=\d')(?=\d)(?!\d{3}(?!\d))"
)
# Other marks, hyphens of words ("7-year-old", "pre-"), and what cannot be seen.
_DROPPED = re.compile(
    rf"[{_MARKS}{_INVISIBLE}-](?:(?<!-)(?!{_FORMULA})"
    rf"|(?<=\w-)(?={_LETTER}{{2}})|(?<={_LETTER}{{2}}-)(?={_LETTER}|(?!\s?[\d(])(?!\S)))"
)
_INSIDE_BRACKETS = re.compile(r" (?:(?<=[(\[{] )|(?=[)\]}]))")
_SIGNS = str.maketrans("×⋅·∗÷∕⁄−‐‑‒–—―’", "****///-------'")
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_FRACTION_EDGE = re.compile(r"(?<=\d)(?=[¼½¾⅐-⅟↉])|(?<=[¼½¾⅐-⅟↉])(?=\d)")
_MAX_MISSES = 20_000


def normalise_question(question: str) -> str:
    """Return `question` without case, sentence punctuation, typographic variants and spacing.

    Numbers, brackets, symbols and the marks of formulas are kept, so that different problems remain different.

    >>> normalise_question("  Ann’s coin is HEADS up:  is it still?")
    'anns coin is heads up is it still'
    >>> normalise_question("She pays $1,250.50 - 3 times.")
    'she pays $1250.50 - 3 times'
    >>> normalise_question("Is (2² − 1½) × 3 ≤ 5!?")
    'is (2^2 - 1 1/2) * 3 ≤ 5!'
    >>> normalise_question("Is ¬p | q true (for a well-known p)?")
    'is ¬p | q true (for a wellknown p)'
    """
    if not question.isascii():
        question = _SUPERSCRIPT.sub(r"^\g<0>", question)
        question = _FRACTION_EDGE.sub(" ", question)
        question = unicodedata.normalize("NFKC", question).translate(_SIGNS)
    question = " ".join(question.casefold().split()).replace(" -- ", " - ")
    return _INSIDE_BRACKETS.sub("", " ".join(_DROPPED.sub("", question).split()))


def question_fraction(question: str, seed: int = 0) -> float:
    """Hash the normalised `question` to a number in [0, 1), the same on every machine.

    >>> question_fraction("Is it?") == question_fraction("is it")
    True
    >>> question_fraction("Is it?") == question_fraction("Is it?", seed=1)
    False
    """
    key = f"{seed}:{normalise_question(question)}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest(), "big") / 2**48


def split_of(question: str) -> str:
    """Return the split that owns a generated `question`: 80 % train, 10 % validation, 10 % test.

    The split depends only on the text: no choice of seeds and sizes can make two splits share a question.

    >>> split_of("7 6 9 2 * 1 6 3 6")
    'train'
    """
    fraction = question_fraction(question)
    return "train" if fraction < 0.8 else "validation" if fraction < 0.9 else "test"


def draw_distinct(
    draw: Callable[[random.Random], tuple[str, _Solution]], num_samples: int, *, task: str, seed: int, split: str
) -> Iterator[tuple[str, _Solution]]:
    """Yield `num_samples` different questions of `split`, each with the solution that `draw` returned.

    The questions of a shorter run are the first ones of a longer run with the same seed.

    Args:
        draw: takes a `random.Random`, returns a question and whatever its solution needs.
        num_samples: number of questions.
        task: name of the task, part of the random seed and of error messages.
        seed: of the random stream.
        split: one of `SPLITS`.

    Raises:
        ValueError: for an unknown split, a negative number, or when the task at this difficulty has too few
            different questions.

    >>> evens = lambda rng: (f"{2 * rng.randrange(500)} / 2", None)
    >>> [question for question, _ in draw_distinct(evens, 3, task="halves", seed=0, split="test")]
    ['384 / 2', '2 / 2', '988 / 2']
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    if num_samples < 0:
        raise ValueError(f"num_samples={num_samples} must not be negative.")
    rng = random.Random(f"{task}/{split}/{seed}")
    seen: set[str] = set()
    misses = 0
    while len(seen) < num_samples:
        question, solution = draw(rng)
        if split_of(question) != split or question in seen:
            misses += 1
            if misses == _MAX_MISSES:
                raise ValueError(
                    f"num_samples={num_samples} is more than task {task!r} has for split={split!r} at this "
                    f"difficulty: {len(seen)} different questions were found, and none in {_MAX_MISSES:,} further "
                    "draws. Request fewer samples or widen the difficulty."
                )
            continue
        misses = 0
        seen.add(question)
        yield question, solution
