"""Answers that are calculations, such as "(8 - 3) * 5": right if they use the same numbers and have the same value."""

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

from .latex import with_signs
from .statements import normalise_sequence, sequence_stated

# Longer texts are no answers of this kind.
_LONGEST = 200
_SIGNS = str.maketrans("×·÷−–", "**/--")
_ALLOWED = frozenset("0123456789+-*/() ")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def expression_stated(output: str) -> str | None:
    """Return the calculation with whole numbers that an output ends on, in normal form; None when it is none.

    It stands after the last `####` or answer phrase, or is the whole output. Its result may follow it.

    >>> expression_stated("The answer is (8 - 3) × 5 = 25."), expression_stated("((8) - 3)*5")
    ('(8-3)*5', '(8-3)*5')
    >>> expression_stated("8 apples"), expression_stated("8 ** 3")
    (None, None)
    """
    stated = normalise_sequence(with_signs(sequence_stated(output) or "").partition("=")[0])
    tree = _parsed(stated)
    return None if tree is None or value_and_numbers(stated) is None else ast.unparse(tree).replace(" ", "")


def value_and_numbers(text: str) -> tuple[Fraction, list[int]] | None:
    """Return the value of a calculation and its numbers in ascending order; None for another text.

    >>> value_and_numbers("(8 - 3) * 5")
    (Fraction(25, 1), [3, 5, 8])
    >>> value_and_numbers("5 / 0") is None
    True
    """
    tree, numbers = _parsed(text), list[int]()
    if tree is None:
        return None
    try:
        value = _value(tree.body, numbers)
    except (ArithmeticError, TypeError):
        return None
    return value, sorted(numbers)


def _parsed(text: str) -> ast.Expression | None:
    text = text.translate(_SIGNS).strip()
    if not text or len(text) > _LONGEST or not _ALLOWED.issuperset(text):
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Return the value of a node, and append its numbers.

    Raises:
        TypeError: for anything but whole numbers and the four operations.
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left = _value(node.left, numbers)
        return _OPERATIONS[type(node.op)](left, _value(node.right, numbers))
    raise TypeError(f"{type(node).__name__} is no part of a calculation.")
