"""Multiplication of two n-digit numbers, digits reversed, by partial products and running sums.

The text has the format of the ICoT-SI data (arXiv 2405.14838): `question||partial products #### product`.
"""

import random
import re

from ..schema import row_of_steps
from ..splits import draw_distinct

_QUESTION = re.compile(r"(?P<a>\d(?: \d)*) \* (?P<b>\d(?: \d)*)")


def generate(
    num_samples: int, *, seed: int = 0, split: str = "train", num_digits: int = 4, second_digits: int | None = None
) -> list[dict]:
    """Return `num_samples` different products of two `num_digits`-digit numbers of `split`.

    Args:
        num_samples, seed, split: as in every task.
        num_digits: digits of both numbers.
        second_digits: digits of the second number, padded with zeros to `num_digits`; `num_digits` when `None`.

    Raises:
        ValueError: when a number of digits is out of range or has too few questions for `num_samples`.

    >>> generate(1, seed=1, num_digits=2)[0]["query"]
    '8 7 * 2 1'
    >>> generate(1, seed=1, num_digits=2, second_digits=1)[0]["query"]
    '8 5 * 8 0'
    """
    second_digits = num_digits if second_digits is None else second_digits
    if num_digits < 1:
        raise ValueError(f"num_digits={num_digits} must be at least 1.")
    if not 1 <= second_digits <= num_digits:
        raise ValueError(f"second_digits={second_digits} must be 1 to num_digits={num_digits}.")

    def draw(rng: random.Random) -> tuple[str, tuple[int, int]]:
        a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in (num_digits, second_digits))
        return _question(a, b, num_digits), (a, b)

    drawn = draw_distinct(draw, num_samples, task="multiplication", seed=seed, split=split)
    return [make_row(a, b, num_digits) for _, (a, b) in drawn]


def make_row(a: int, b: int, num_digits: int) -> dict:
    """Return the row of `a * b` in the dataset schema, one step per digit of `b`.

    Step i adds `a` times digit i of `b`, shifted by i places, and states the running sum in parentheses (except in the
    first and the last step). The condensed reasoning is the partial products, one word each.

    >>> row = make_row(2967, 6361, 4)
    >>> row["query"]
    '7 6 9 2 * 1 6 3 6'
    >>> row["steps"]
    ['7 6 9 2 0', '+ 0 2 0 8 7 1 ( 7 8 9 0 8 1 )', '+ 0 0 1 0 9 8 0 ( 7 8 0 1 7 0 1 )', '+ 0 0 0 2 0 8 7 1']
    >>> row["condensed_reasoning"], row["answer"]
    ('76920 020871 0010980 00020871', '7 8 0 3 7 8 8 1')
    """
    steps, partials, running = [], [], 0
    for place in range(num_digits):
        partial = a * (b // 10**place % 10) * 10**place
        running += partial
        width = num_digits + 1 + place
        partials.append(_reversed(partial, width))
        step = partials[-1] if place == 0 else f"+ {partials[-1]}"
        if 0 < place < num_digits - 1:
            step += f" ( {_reversed(running, width)} )"
        steps.append(step)
    condensed = " ".join(partial.replace(" ", "") for partial in partials)
    return row_of_steps(_question(a, b, num_digits), steps, condensed, _reversed(running, 2 * num_digits))


def solve(query: str) -> str:
    """Recompute the reversed product from the question's text.

    Raises:
        ValueError: when `query` is not a product of reversed digits.

    >>> solve("7 6 9 2 * 1 6 3 6")
    '7 8 0 3 7 8 8 1'
    """
    a, b = _digits(query)
    product = str(int("".join(reversed(a))) * int("".join(reversed(b))))
    return " ".join(reversed(product.zfill(len(a) + len(b))))


def column_sums(query: str) -> list[list[int]]:
    """Return the running sums of each column of the product: the carry, then one sum for each product of two digits.

    Column c holds the products of digits whose places sum to c. The last digit of its last sum is digit c of the
    product, and the rest is the carry to the next column; the carry of the last column is the product's first digit.

    Raises:
        ValueError: as in `solve`.

    >>> column_sums("7 6 * 1 6")
    [[0, 7], [0, 42, 48], [4, 40]]
    >>> solve("7 6 * 1 6")
    '7 8 0 4'
    """
    a, b = (list(map(int, digits)) for digits in _digits(query))
    columns: list[list[int]] = []
    carry = 0
    for column in range(len(a) + len(b) - 1):
        sums = [carry]
        for place in range(max(0, column - len(b) + 1), min(column, len(a) - 1) + 1):
            sums.append(sums[-1] + a[place] * b[column - place])
        columns.append(sums)
        carry = sums[-1] // 10
    return columns


def _digits(query: str) -> tuple[list[str], list[str]]:
    found = _QUESTION.fullmatch(query.strip())
    if not found:
        raise ValueError(f"query={query!r} is not a multiplication: write it as reversed digits, '7 6 9 2 * 1 6 3 6'.")
    return found["a"].split(), found["b"].split()


def _question(a: int, b: int, num_digits: int) -> str:
    return f"{_reversed(a, num_digits)} * {_reversed(b, num_digits)}"


def _reversed(number: int, width: int) -> str:
    return " ".join(str(number).zfill(width)[::-1])
