"""The grammar of numbers: how they are written, the value of one, and its normal form."""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction

CURRENCY = "[$\u20ac\u00a3\u00a5\u20b9]"
MINUS = "[-\u2212\uff0d]"
# Digits with or without thousands separators; the text around a number decides what else belongs to it.
DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
# Where a number begins, for lookahead.
BEGINS = rf"(?={CURRENCY}?\.?\d)"
# A whole number, decimal or fraction in a text without typographic signs, as `latex.plain` returns it; no exponent of
# a unit ("m^-1"), no ordinal, and no digits of a name ("15_2"). Atomic, since "18th" does not hold the number 1.
NUMBER = re.compile(
    rf"""
    (?<![\w^])(?<!\^[-+{{])(?<!\^{{[-+])(?P<sign>-)?(?P<currency>{CURRENCY}\s?)?(?P<inner>-)?
    (?:
      (?:(?P<whole>\d+)(?:\s+and)?\s+)?(?P<top>{DECIMAL})/(?P<bottom>{DECIMAL})(?![\d/]|\.\d)
      | (?P<decimal>(?>{DECIMAL}))
        (?:[eE](?P<exponent>[+-]?\d+)|(?:\s*[*x\u00d7]\s*10\s*\^\s*\{{?(?P<ten>[+-]?\d+)\}}?)|\^\{{?(?P<power>[+-]?\d+)\}}?)?
        (?:
          \s*(?P<scale>(?i:(?:thousand|million|billion|trillion)s?|[mb]n))\b
          | (?P<suffix>(?(currency)(?:[kmb]|\s?[KMB])|[kKMB]))(?![\w&])
        )?
    )
    (?!(?:st|nd|rd|th)\b|_\w)
    """,
    re.VERBOSE,
)
_THOUSANDS = {
    "": 0,
    "thousand": 1,
    "k": 1,
    "million": 2,
    "m": 2,
    "mn": 2,
    "billion": 3,
    "b": 3,
    "bn": 3,
    "trillion": 4,
}
_MOST_DIGITS, _MOST_EXPONENT = 400, 300


def value_of(match: re.Match) -> Fraction | None:
    """Return the value of a match of `NUMBER`; None for a zero denominator or an absurd size."""
    if len(match.group()) > _MOST_DIGITS:
        return None
    if match["top"]:
        top, bottom = (Fraction(match[part].replace(",", "")) for part in ("top", "bottom"))
        if not bottom:
            return None
        value = int(match["whole"] or 0) + top / bottom
    else:
        exponent, power = int(match["exponent"] or match["ten"] or 0), int(match["power"] or 1)
        decimal = Fraction(match["decimal"].replace(",", ""))
        if abs(exponent) > _MOST_EXPONENT or abs(power) * len(match["decimal"]) > _MOST_DIGITS:
            return None
        if not decimal and power < 0:
            return None
        thousands = _THOUSANDS[(match["scale"] or match["suffix"] or "").strip().lower().removesuffix("s")]
        value = decimal**power * Fraction(10) ** (exponent + 3 * thousands)
    # A minus after a number or a closing bracket subtracts.
    before = match.string[max(0, match.start() - 8) : match.start()].rstrip()[-1:]
    negative = match["inner"] or (match["sign"] and not (before.isdigit() or (before and before in ")]}%")))
    return -value if negative else value


def normal_form(value: Fraction) -> str:
    """Return a fraction as a decimal where that is finite, else as numerator/denominator.

    >>> list(map(normal_form, (Fraction(37, 2), Fraction(-1, 3), Fraction(4), Fraction(-1, 20))))
    ['18.5', '-1/3', '4', '-0.05']
    """
    context = Context(prec=4 * _MOST_DIGITS)
    quotient = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    return str(value) if context.flags[Inexact] else f"{quotient:f}"
