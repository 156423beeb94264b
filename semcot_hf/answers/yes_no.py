"""Yes/no answers: the words yes and no where they answer, not where "no" belongs to a noun."""

import re

from .latex import plain
from .statements import marked_values, only, own_part, sentences

# "no" answers when nothing follows it, or punctuation, or the beginning of an explanation; "no one", "no-one" and
# "no longer" do not. A yes or no that is denied ("not yes") states nothing.
_WORD = re.compile(
    r"(?<![\w-])(?<!\w')(?:yes\b(?!-|'\w)|no\b(?=\W*$|'(?!\w)|\s*[^\w\s'-]|\s+-\s"
    r"|\s+(?:the|it|this|that|because|since|as|they|he|she|and|or|nor|but|if|unless|when|then|yes|no)\b))",
    re.IGNORECASE,
)
_OPENING = re.compile(r"^[\W_]*(?:(?:or|but|so|well)\b[\W_]*)?", re.IGNORECASE)
_DENIAL = re.compile(r"(?:\bnot|n't|\bnever)\W+$", re.IGNORECASE)
_BOTH = re.compile(r"\b(?:yes|no)\W*(?:/|-|\bor\b|\band\b|\bnor\b)\W*(?:yes|no)\b", re.IGNORECASE)


def yes_no_stated(output: str) -> str | None:
    """Returns "yes" or "no" when the output states one of them, else None.

    >>> yes_no_stated("No, the coin is tails up."), yes_no_stated("The answer is **yes**")
    ('no', 'yes')
    >>> yes_no_stated("Is the coin still heads up?"), yes_no_stated("yes or no"), yes_no_stated("No one knows.")
    (None, None, None)
    """
    text = plain(own_part(output))
    parts = sentences(text)
    values = marked_values(text, parts, _leading, _words)
    stating = [part.text for part in parts if not part.asks]
    if not values:
        values = set().union(*map(_leading, stating))
    if not values:
        values = set().union(*map(_words, stating))
    return only(values)


def _words(text: str) -> set[str]:
    """Returns which of yes and no a sentence answers with.

    >>> sorted(_words("yes and no")), _words("not yes"), _words("there is no change")
    (['no', 'yes'], set(), set())
    """
    if _BOTH.search(text):
        return {"yes", "no"}
    found = (m for m in _WORD.finditer(text) if not _DENIAL.search(text[max(0, m.start() - 8) : m.start()]))
    return {match.group().lower() for match in found}


def _leading(text: str) -> set[str]:
    """Returns what a sentence answers when it begins with yes or no."""
    return _words(text) if _WORD.match(_OPENING.sub("", text)) else set()
