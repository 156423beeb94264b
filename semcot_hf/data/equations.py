"""The equations of a rationale in prose, as a short text in which the calculation can be read: "11-9=2; 2+8=10"."""

import ast
import operator
import re
from collections.abc import Sequence
from fractions import Fraction

from ..answers.latex import plain
from ..answers.number_grammar import CURRENCY, DECIMAL

_NOTE = re.compile(r"<<([^<>]*)>>")
_NUMBER = rf"{DECIMAL}%?"
# A currency sign, and words between an operand and the next sign ("3 boxes x 4 = $12").
# Each word, and each run of spaces, can be matched in one way only: the time would be exponential in the operands.
_UNIT = r"(?:\s*(?>[A-Za-z]+(?:['-][A-Za-z]+)*'?)){0,4}"
_OPERAND = rf"(?:\(+\s*)?(?:{CURRENCY}\s*)?{_NUMBER}{_UNIT}\s*(?:\)+\s*)?"
_CALCULATION = rf"(?<![\d.,])((?:-\s*)?{_OPERAND}(?:(?:[-+*/\u00d7\u00f7]|\bx\b)\s*{_OPERAND})+)"
_EQUATION = re.compile(rf"{_CALCULATION}=\s*{CURRENCY}?\s*(-?{_NUMBER})")
_EXPRESSION = re.compile(_CALCULATION)
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_SIGN_OF = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
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

    >>> open_equations_of(["16-3-4=9", "9*2=18"]), open_equations_of(["11-9=2"]), open_equations_of([])
    ('16-3=13; 13-4=9; 9*2', '11-9', '')
    >>> open_equations_of(["(10/3)*6=20"]), open_equations_of(["10*50%=5", "5+1=6"])
    ('(10/3)*6', '10*50%=5; 5+1')
    """
    steps: list[str] = []
    for equation in equations:
        left, _, result = equation.partition("=")
        try:
            last, _ = _last_operation(ast.parse(left, mode="eval").body, steps)
        except (SyntaxError, ValueError, ArithmeticError, RecursionError):
            last = left
        steps.append(f"{last}={result}")
    if not steps:
        return ""
    earlier = [step for step in dict.fromkeys(steps) if step != steps[-1]]
    return "; ".join([*earlier, steps[-1].partition("=")[0]])


def _last_operation(node: ast.AST, steps: list[str]) -> tuple[str, Fraction]:
    """Return what is left to calculate of a parsed calculation, and its value; append the equations before it.

    Raises:
        ValueError, ArithmeticError: as `_value` does, before anything is appended.
    """
    value = _value(node)
    if not isinstance(node, ast.BinOp):
        return ast.unparse(node).replace(" ", ""), value
    sides = []
    for side in (node.left, node.right):
        text, result = _last_operation(side, steps)
        if isinstance(side, ast.BinOp):
            short = _written(result)
            if short:
                steps.append(f"{text}={short}")
            text = short or f"({text})"
        sides.append(text)
    return f"{sides[0]}{_SIGN_OF[type(node.op)]}{sides[1]}", value


def _written(value: Fraction) -> str:
    """Return a number as digits, or "" if it has more than four decimals."""
    if value.denominator == 1:
        return str(value.numerator)
    digits = f"{float(value):.4f}".rstrip("0")
    return digits if Fraction(digits) == value else ""


def _bare(left: str, result: str) -> str:
    """Return an equation without spaces, units and currencies."""
    return f"{_bare_side(left)}={result}".replace(" ", "").replace(",", "")


def _bare_side(text: str) -> str:
    """Return a calculation without spaces, units, currencies, and brackets around the whole or without a partner."""
    text = re.sub(r"[^\d.+*/()%-]", "", re.sub(r"(?<![A-Za-z])x(?![A-Za-z])", "*", text).translate(_SIGNS))
    while text.count("(") != text.count(")"):
        bracket = "(" if text.count("(") > text.count(")") else ")"
        place = text.find(bracket) if bracket == "(" else text.rfind(bracket)
        text = text[:place] + text[place + 1 :]
    whole = re.fullmatch(r"\(([^()]*)\)", text)
    return whole[1] if whole else text


def _gives(text: str, answer: float) -> bool:
    """Whether a calculation has this value."""
    try:
        value = float(_value(ast.parse(text, mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return False
    return abs(value - answer) <= 1e-6 * max(1.0, abs(answer))


def _value(node: ast.AST) -> Fraction:
    """Return the value of a parsed calculation; ValueError for anything but numbers and the four operations."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    raise ValueError("no calculation")
