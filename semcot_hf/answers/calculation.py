"""Calculations with the four operations, such as "(8-3)*50%": parsed by Python's grammar, and computed exactly."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from .number_grammar import normal_form

# Longer texts are not parsed.
_LONGEST = 200
# Signs as they are printed.
SIGNS = str.maketrans("\u00d7\u00b7\u00f7\u2212\u2013", "**/--")
_OTHER = re.compile(r"[^\d.+*/()%\s-]")
_OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
# Python's grammar has no percentages: they are parsed as names.
_PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)%")
_NAME = re.compile(r"p(\d*(?:_\d+)?)")
# How Python writes very small and very large decimals.
_EXPONENT = re.compile(r"\d[\d.]*e[-+]\d+")
PERCENT = Fraction(1, 100)


def parse_calculation(text: str) -> ast.expr:
    """Return the syntax tree of a calculation.

    Raises:
        ValueError: for a text that is no calculation, or has more than 200 characters.
    """
    if len(text) > _LONGEST or _OTHER.search(text):
        raise ValueError(f"{text[:_LONGEST]!r} is no calculation with numbers.")
    try:
        return ast.parse(
            _PERCENTAGE.sub(lambda match: "p" + match[1].replace(".", "_"), text.strip()), mode="eval"
        ).body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} is no calculation with numbers.") from error


def value_of(node: ast.expr, percent: Fraction = PERCENT) -> Fraction:
    """Return the value of a parsed calculation.

    Args:
        node: what `parse_calculation` returns, or a part of it.
        percent: value of "1%".

    Raises:
        ValueError: for anything but numbers and the four operations.
        ZeroDivisionError: for a division by zero.

    >>> value_of(parse_calculation("(8-3)*50%"))
    Fraction(5, 2)
    """
    if isinstance(node, ast.BinOp):
        _, operate = _operation(node)
        return operate(value_of(node.left, percent), value_of(node.right, percent))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand, percent)
    if isinstance(node, ast.Name):
        return Fraction(node.id[1:].replace("_", ".")) * percent
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    raise ValueError(f"{type(node).__name__} is no part of a calculation.")


def sign_of(node: ast.BinOp) -> str:
    """Return the sign of an operation; ValueError for any but the four."""
    return _operation(node)[0]


def text_of(node: ast.expr) -> str:
    """Return a parsed calculation as text without spaces and exponents.

    >>> text_of(parse_calculation("(8 - 3) * 2.5%")), text_of(parse_calculation("0.00001 * 5"))
    ('(8-3)*2.5%', '0.00001*5')
    """
    text = _EXPONENT.sub(lambda match: normal_form(Fraction(match[0])), ast.unparse(node))
    return _NAME.sub(lambda match: match[1].replace("_", ".") + "%", text).replace(" ", "")


def _operation(node: ast.BinOp) -> tuple[str, Callable[[Fraction, Fraction], Fraction]]:
    if type(node.op) not in _OPERATIONS:
        raise ValueError(f"{type(node.op).__name__} is none of the four operations.")
    return _OPERATIONS[type(node.op)]
