"""The equations of a rationale in prose, as a short text in which the calculation can be read: "11-9=2; 2+8=10"."""

import ast
import re
from collections.abc import Sequence
from fractions import Fraction

from ..answers.calculation import PERCENT, SIGNS, parse_calculation, sign_of, text_of, value_of
from ..answers.latex import plain
from ..answers.number_grammar import CURRENCY, DECIMAL, normal_form

_NOTE = re.compile(r"<<([^<>]*)>>")
_NUMBER = rf"{DECIMAL}%?"
# A currency sign, and words between an operand and the next sign ("3 boxes x 4 = $12").
# Each word, and each run of spaces, can be matched in one way only: the time would be exponential in the operands.
_UNIT = r"(?:\s*(?>[A-Za-z]+(?:['-][A-Za-z]+)*'?)){0,4}"
_OPERAND = rf"(?:\(+\s*)?(?:{CURRENCY}\s*)?{_NUMBER}{_UNIT}\s*(?:\)+\s*)?"
_CALCULATION = rf"(?<![\d.,])((?:-\s*)?{_OPERAND}(?:(?:[-+*/\u00d7\u00f7]|\bx\b)\s*{_OPERAND})+)"
_EQUATION = re.compile(rf"{_CALCULATION}=\s*{CURRENCY}?\s*(-?{_NUMBER})")
_EXPRESSION = re.compile(_CALCULATION)
_RESULT = re.compile(r"(-?(?:\d+(?:\.(\d+))?|\.(\d+)))(%?)")
# Decimals of a result that is worth writing.
_MOST_DECIMALS = 4


def equations_of(reasoning: str) -> list[str]:
    r"""Return the equations between numbers that a rationale states, without units, each of them once.

    Where there are calculator notes (GSM8K's `<<9*2=18>>`), only these are taken. Left out is what is no equation
    between two sides of the same value, up to rounding: parts of longer ones ("1 - 1/3 = 2/3", "2y + 3 = 13"), numbers
    without a calculation ("26=26"), mistakes.

    >>> equations_of("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs. She makes 9 * 2 = $<<9*2=18>>18.")
    ['16-3-4=9', '9*2=18']
    >>> equations_of(r"\[ \text{Songs} = 11 - 9 = 2 \] Then 2 songs + 8 songs = 10 songs. Again: 2 + 8 = 10.")
    ['11-9=2', '2+8=10']
    >>> equations_of("Each of 3 boxes x $4 = $12, so x = 12."), equations_of("The coin is heads up.")
    (['3*4=12'], [])
    >>> equations_of("First 1,000 - 250 = 750 dollars. Then $750 x 2 = $1,500, or (1500 + 3) / 3 = 501.")
    ['1000-250=750', '750*2=1500', '(1500+3)/3=501']
    >>> equations_of("1 - 1/3 = 2/3. 2y + 3 = 13. <- no notes"), equations_of("<<26=26>> <<1,000*50%=500>> <<2+2=5>>")
    ([], ['1000*50%=500'])
    """
    notes = [note.partition("=") for note in _NOTE.findall(reasoning) if "=" in note]
    found = [(left, result) for left, _, result in notes] or _EQUATION.findall(plain(reasoning))
    equations = [(_bare_side(left), re.sub(rf"[\s,]|{CURRENCY}", "", result)) for left, result in found]
    return list(dict.fromkeys(f"{left}={result}" for left, result in equations if _holds(left, result)))


def expression_of(reasoning: str, answer: float) -> str:
    """Return the last calculation in a rationale that gives the answer, also where no result is stated, or "".

    Args:
        reasoning: the rationale.
        answer: the number that the calculation must give, to six digits.

    >>> expression_of("It is a common division: we calculate ( 290.0 / 2.0 )", 145)
    '290/2'
    >>> expression_of("We calculate 3 x (4 + 1) boxes.", 15), expression_of("We calculate 3 x 4 boxes.", 15)
    ('3*(4+1)', '')
    """
    found = [_bare_side(text) for text in _EXPRESSION.findall(plain(reasoning))]
    found = [re.sub(r"(\d)\.0+(?!\d)", r"\1", text) for text in found]
    return next((text for text in reversed(found) if _gives(text, answer)), "")


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


def open_equations_of(equations: Sequence[str]) -> str:
    """Return equations of one operation each, the last of them without its result.

    A result that is no whole number or short decimal ("10/3") is not written: its calculation stays part of the next.

    Args:
        equations: as `equations_of` returns them.

    Raises:
        ValueError, ZeroDivisionError: for what is no calculation.

    >>> open_equations_of(["16-3-4=9", "9*2=18"]), open_equations_of(["11-9=2"]), open_equations_of([])
    ('16-3=13; 13-4=9; 9*2', '11-9', '')
    >>> open_equations_of(["(10/3)*6=20"]), open_equations_of(["10*50%=5", "5+1=6"])
    ('(10/3)*6', '10*50%=5; 5+1')
    """
    steps: list[str] = []
    for equation in equations:
        left, _, result = equation.partition("=")
        # Percentages of percentages have a result that can be read in two ways.
        several = left.count("%") > 1 or "%" in left and "%" in result
        last = left if several else _last_operation(parse_calculation(left), steps)[0]
        steps.append(f"{last}={result}")
    if not steps:
        return ""
    earlier, last = list(dict.fromkeys(steps[:-1])), steps[-1]
    calculation, _, result = last.partition("=")
    if last in earlier and not any(result in _operands(step) for step in earlier[earlier.index(last) + 1 :]):
        earlier.remove(last)
    return "; ".join([*earlier, calculation])


def completed(words: str) -> str:
    """Return words that end in a calculation without its result, with the result; other words as they are.

    >>> completed("16-3=13; 13-4=9; 9*2"), completed("11-9=2"), completed("9; It is 4.")
    ('16-3=13; 13-4=9; 9*2=18', '11-9=2', '9; It is 4.')
    """
    values = _values(words.rpartition(";")[2].strip().rstrip("."))
    return f"{words.rstrip(' .')}={normal_form(max(values))}" if len(values) == 1 else words


def _last_operation(node: ast.expr, steps: list[str]) -> tuple[str, Fraction]:
    """Return what is left to calculate of a parsed calculation, and its value; append the equations before it."""
    if not isinstance(node, ast.BinOp):
        return text_of(node), value_of(node)
    sides, value = [], value_of(node)
    for side in (node.left, node.right):
        text, result = _last_operation(side, steps)
        if isinstance(side, ast.BinOp):
            short = _written(result)
            if short:
                steps.append(f"{text}={short}")
            text = short or f"({text})"
        sides.append(text)
    return f"{sides[0]}{sign_of(node)}{sides[1]}", value


def _written(value: Fraction) -> str:
    """Return a number as digits, or "" if it has too many decimals."""
    digits = normal_form(value)
    return "" if "/" in digits or len(digits.partition(".")[2]) > _MOST_DECIMALS else digits


def _operands(equation: str) -> list[str]:
    return re.findall(_NUMBER, equation.partition("=")[0])


def _holds(left: str, result: str) -> bool:
    """Whether a calculation gives a result, up to rounding or decimals cut off; "%" may be read as 1/100 or as 1."""
    match = _RESULT.fullmatch(result)
    if match is None:
        return False
    decimals = len(match[2] or match[3] or "")
    # Rounded half up or down, and of decimals also cut off.
    tolerance = Fraction(1, 10**decimals) if decimals else Fraction(1, 2)
    for value in _values(left):
        for scale in (PERCENT, Fraction(1)) if match[4] else (Fraction(1),):
            if abs(value - Fraction(match[1]) * scale) <= tolerance * scale:
                return True
    return False


def _values(text: str) -> set[Fraction]:
    """Return the values of a calculation by both readings of "%", of which none is a number alone."""
    try:
        node = parse_calculation(text)
        if not isinstance(node, ast.BinOp):
            return set()
        return {value_of(node, percent) for percent in (PERCENT, Fraction(1))}
    except (ValueError, ArithmeticError):
        return set()


def _bare_side(text: str) -> str:
    """Return a calculation without spaces, units, currencies, a plus before it, and needless or single brackets."""
    text = re.sub(r"-(?=[A-Za-z])", "", text)
    text = re.sub(r"[^\d.+*/()%-]", "", re.sub(r"(?<![A-Za-z])x(?![A-Za-z])", "*", text).translate(SIGNS))
    while text.count("(") != text.count(")"):
        bracket = "(" if text.count("(") > text.count(")") else ")"
        place = text.find(bracket) if bracket == "(" else text.rfind(bracket)
        text = text[:place] + text[place + 1 :]
    whole = re.fullmatch(r"\(([^()]*)\)", text)
    return (whole[1] if whole else text).lstrip("+")


def _gives(text: str, answer: float) -> bool:
    """Whether a calculation has this value."""
    return any(abs(float(value) - answer) <= 1e-6 * max(1.0, abs(answer)) for value in _values(text))
