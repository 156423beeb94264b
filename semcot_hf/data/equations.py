"""The equations of a rationale in prose, as a short text in which the calculation can be read: "11-9=2; 2+8=10"."""

import re
from collections.abc import Sequence

from ..answers.latex import plain
from ..answers.number_grammar import CURRENCY, DECIMAL

_NOTE = re.compile(r"<<([^<>]*)>>")
_NUMBER = rf"{DECIMAL}%?"
# A currency sign, and words between an operand and the next sign ("3 boxes x 4 = $12").
_UNIT = r"(?:\s*[A-Za-z][A-Za-z'-]*){0,4}"
_OPERAND = rf"\s*\(*\s*{CURRENCY}?\s*{_NUMBER}{_UNIT}\s*\)*\s*"
_EQUATION = re.compile(
    rf"(?<![\d.,])(-?{_OPERAND}(?:(?:[-+*/\u00d7\u00f7]|\bx\b){_OPERAND})+)=\s*{CURRENCY}?\s*(-?{_NUMBER})"
)
_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/"})


def equations_of(reasoning: str) -> list[str]:
    r"""Return the equations between numbers that a rationale states, without units, each of them once.

    Calculator notes (GSM8K's `<<9*2=18>>`) are taken as they are, where there are any. Equations with more than one
    equals sign, and those with variables only, are left out.

    >>> equations_of("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs. She makes 9 * 2 = $<<9*2=18>>18.")
    ['16-3-4=9', '9*2=18']
    >>> equations_of(r"\[ \text{Songs} = 11 - 9 = 2 \] Then 2 songs + 8 songs = 10 songs. Again: 2 + 8 = 10.")
    ['11-9=2', '2+8=10']
    >>> equations_of("Each of 3 boxes x $4 = $12, so x = 12."), equations_of("The coin is heads up.")
    (['3*4=12'], [])
    >>> equations_of("First 1,000 - 250 = 750 dollars. Then $750 x 2 = $1,500, or (1500 + 3) / 3 = 501.")
    ['1000-250=750', '750*2=1500', '(1500+3)/3=501']
    """
    notes = [note.replace(" ", "") for note in _NOTE.findall(reasoning) if "=" in note]
    return list(dict.fromkeys(notes or (_bare(*match) for match in _EQUATION.findall(plain(reasoning)))))


def plan_of(equations: Sequence[str]) -> str:
    """Return the last equation's left side, with earlier results replaced by how they are computed.

    >>> plan_of(["16-3-4=9", "9*2=18"]), plan_of(["11-9=2"]), plan_of([])
    ('(16-3-4)*2', '11-9', '')
    """
    made: dict[str, str] = {}
    plan = ""
    for equation in equations:
        left, _, result = equation.partition("=")
        plan = re.sub(_NUMBER, lambda match: f"({made[match[0]]})" if match[0] in made else match[0], left)
        made[result] = plan
    return plan


def _bare(left: str, result: str) -> str:
    """Return an equation without spaces, units and currencies."""
    left = re.sub(r"[^\d.+*/()%-]", "", re.sub(r"(?<![A-Za-z])x(?![A-Za-z])", "*", left).translate(_SIGNS))
    return f"{left}={result}".replace(" ", "").replace(",", "")
