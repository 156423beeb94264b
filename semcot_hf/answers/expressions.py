"""Answers that are calculations, such as "(8 - 3) * 5": right if they use the same numbers and have the same value."""

import ast
from fractions import Fraction

from .calculation import SIGNS, parse_calculation, text_of, value_of
from .latex import with_signs
from .statements import normalise_sequence, sequence_stated

# Whole numbers only.
_OTHERS = frozenset(".%")


def expression_stated(output: str) -> str | None:
    """Return the calculation with whole numbers that an output ends on, in normal form; None when it is none.

    It stands after the last `####` or answer phrase, or is the whole output. Its result may follow it.

    >>> expression_stated("The answer is (8 - 3) × 5 = 25."), expression_stated("((8) - 3)*5")
    ('(8-3)*5', '(8-3)*5')
    >>> expression_stated("8 apples"), expression_stated("8 ** 3")
    (None, None)
    """
    stated = normalise_sequence(with_signs(sequence_stated(output) or "").partition("=")[0])
    found = _calculation(stated)
    return None if found is None else text_of(found[0])


def value_and_numbers(text: str) -> tuple[Fraction, list[int]] | None:
    """Return the value of a calculation and its numbers in ascending order; None for another text.

    >>> value_and_numbers("(8 - 3) * 5")
    (Fraction(25, 1), [3, 5, 8])
    >>> value_and_numbers("5 / 0") is None
    True
    """
    found = _calculation(text)
    if found is None:
        return None
    tree, value = found
    return value, sorted(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))  # type: ignore[misc]  # whole numbers


def _calculation(text: str) -> tuple[ast.expr, Fraction] | None:
    """Return the syntax tree and the value of a calculation with whole numbers and no signs; None for another text."""
    if not _OTHERS.isdisjoint(text):
        return None
    try:
        tree = parse_calculation(text.translate(SIGNS))
        value = value_of(tree)
    except (ValueError, ArithmeticError):
        return None
    return None if any(isinstance(node, ast.UnaryOp) for node in ast.walk(tree)) else (tree, value)
