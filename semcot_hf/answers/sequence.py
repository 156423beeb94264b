"""Sequence answers: digits, words or a sentence that must match exactly but for white space."""

from .statements import last_answer_start, own_part


def sequence_stated(output: str) -> str | None:
    """Returns the text after the last `####` or answer phrase, else the whole output; None when that is empty.

    >>> sequence_stated("4 4 2 + 0 6 6  ####  4 0 8 "), sequence_stated(" 4 0  8"), sequence_stated("4 0 8 ####")
    ('4 0 8', '4 0 8', None)
    """
    text = own_part(output)
    return normalise_sequence(text[last_answer_start(text) :]) or None


def normalise_sequence(text: str) -> str:
    """Returns a text with single spaces and without the full stop at its end.

    >>> normalise_sequence(" Sally is  a lempus. ")
    'Sally is a lempus'
    """
    return " ".join(text.split()).rstrip(". ")
