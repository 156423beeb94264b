"""Quantities in two units, such as "2 hours 30 minutes": numbers that are one quantity together."""

import re

# Each unit may be followed by a smaller one of its kind: as words and as abbreviations.
_KINDS = (
    ("years?|yrs?", "months?", "weeks?|wks?", "days?", "hours?|hrs?|h", "minutes?|mins?|m", "seconds?|secs?|s"),
    ("miles?|mi", "yards?|yds?", "foot|feet|ft", "inch(?:es)?|in"),
    ("(?:kilomet(?:er|re)s?|km)", "met(?:er|re)s?|m", "centimet(?:er|re)s?|cm", "millimet(?:er|re)s?|mm"),
    ("tons?|tonnes?", "stones?|st", "pounds?|lbs?", "ounces?|oz"),
    ("tons?|tonnes?", "kilograms?|kilos?|kgs?", "grams?|g", "milligrams?|mg"),
    ("dollars?|euros?|bucks?", "quarters?", "dimes?", "nickels?", "cents?|penn(?:y|ies)"),
    ("pounds?|quid", "shillings?", "pence|penn(?:y|ies)|p"),
    ("gallons?|gal", "quarts?|qt", "pints?|pt", "cups?", "(?:fluid\\s+)?ounces?|oz", "tablespoons?", "teaspoons?"),
    ("lit(?:er|re)s?|l", "millilit(?:er|re)s?|ml"),
    ("degrees?", "minutes?|arcmin", "seconds?|arcsec"),
    ("dozens?|gross", "dozens?|units?|pieces?"),
)
_PAIRS = [(first, "|".join(kind[position + 1 :])) for kind in _KINDS for position, first in enumerate(kind[:-1])]
_BETWEEN = [re.compile(rf"[\s-]*(?:{first})\.?(?P<comma>\s*,)?(?:\s+(?:and|&))?\s+", re.I) for first, _ in _PAIRS]
_BEHIND = [re.compile(rf"[\s-]*(?:{second})(?!\w)\.?", re.I) for _, second in _PAIRS]
# "In 2 hours 30 minutes pass": the second number is a subject of its own.
_VERB = re.compile(
    r"\s+(?:is|are|was|were|has|have|had|will|would|can|could|do|does|did|passe?[sd]?|remain(?:s|ed)?|elapse[sd]?"
    r"|goe?s?|went|comes?|came|counts?|leaks?|leaked|drips?|dripped)\b(?!\s+(?:her|him|them|us|me|it)\b)",
    re.I,
)
# "5 days, 8 hours each": a rate.
_RATE = re.compile(r"\s+(?:each|apiece|per|daily|weekly|every|an?)\b", re.I)
_LEAD = re.compile(
    r"\b(?:in|after|every|each|per|of|for|if|when|while|within|over|during|by|with|since|until|at|before)\b[^,;:.]*\Z",
    re.I,
)


def are_one_quantity(text: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether two numbers of a text that follow one another are one quantity in two units of a kind.

    Args:
        text: the text.
        first, second: where the numbers are.

    >>> are_one_quantity("She runs for 2 hours 30 minutes.", (13, 14), (21, 23))
    True
    >>> are_one_quantity("In 2 hours 30 minutes pass.", (3, 4), (11, 13))
    False
    >>> are_one_quantity("He drove 2 hours 60 miles per hour.", (9, 10), (17, 19))
    False
    """
    for between, behind in zip(_BETWEEN, _BEHIND, strict=True):
        joint = between.fullmatch(text, first[1], second[0])
        end = joint and behind.match(text, second[1])
        if joint and end:
            apart = _LEAD.search(text[: first[0]]) or joint["comma"]
            rate = joint["comma"] and _RATE.match(text, end.end())
            return not rate and not (apart and _VERB.match(text, end.end()))
    return False
