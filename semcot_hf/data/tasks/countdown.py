"""Countdown: a calculation that uses each of some numbers once and has a given result. Many answers can be right."""

import random
import re
from fractions import Fraction
from itertools import combinations

from ..schema import row_of_steps
from ..splits import draw_distinct

MAX_TARGET = 100
_QUESTION = re.compile(r"Use each of the numbers (?P<numbers>\d+(?:, \d+)*) once to make (?P<target>\d+)\.")


def generate(
    num_samples: int,
    *,
    seed: int = 0,
    split: str = "train",
    min_numbers: int = 3,
    max_numbers: int = 4,
    max_value: int = 20,
) -> list[dict]:
    """Return `num_samples` different rows of `split` in the dataset schema.

    The steps are those of one solution, in which all results are positive whole numbers; `check_answer` with
    answer_type="expression" accepts every other one. Numbers stand in ascending order, so that no order of the same
    ones is another question.

    Args:
        num_samples, seed, split: as in every task.
        min_numbers, max_numbers: how many numbers.
        max_value: largest number.

    Raises:
        ValueError: when the numbers are not 2 <= min_numbers <= max_numbers <= 6, or the difficulty has too few
            questions for `num_samples`.

    >>> row = generate(1, seed=1)[0]
    >>> row["query"], row["steps"], row["answer"]
    ('Use each of the numbers 1, 3, 7 once to make 4.', ['1 * 3 = 3.', '7 - 3 = 4.'], '7 - (1 * 3)')
    """
    if not 2 <= min_numbers <= max_numbers <= 6:
        raise ValueError(
            f"min_numbers={min_numbers}, max_numbers={max_numbers}: need 2 <= min_numbers <= max_numbers <= 6."
        )
    if max_value < 2:
        raise ValueError(f"max_value={max_value} must be at least 2.")

    def draw(rng: random.Random) -> tuple[str, dict]:
        while True:
            numbers = sorted(rng.randint(1, max_value) for _ in range(rng.randint(min_numbers, max_numbers)))
            pool, steps = [(Fraction(number), str(number)) for number in numbers], []
            while len(pool) > 1:
                one, other = rng.sample(range(len(pool)), 2)
                value, text, sign = rng.choice(_whole(pool[one], pool[other]))
                steps.append(f"{pool[one][0]} {sign} {pool[other][0]} = {value}.")
                pool = [each for place, each in enumerate(pool) if place not in (one, other)] + [(value, text)]
            if pool[0][0] <= MAX_TARGET:
                break
        answer = _bare(pool[0][1])
        question = f"Use each of the numbers {', '.join(map(str, numbers))} once to make {pool[0][0]}."
        condensed = " ".join(step.rstrip(".").replace(" ", "") for step in steps)
        return question, {"steps": steps, "condensed_reasoning": condensed, "answer": answer}

    drawn = draw_distinct(draw, num_samples, task="countdown", seed=seed, split=split)
    return [row_of_steps(question, **solution) for question, solution in drawn]


def solve(query: str) -> str:
    """Return a calculation that answers a question, found by trying all.

    Raises:
        ValueError: for another question, or one without an answer.

    >>> solve("Use each of the numbers 3, 5, 8 once to make 16.")
    '8 + (3 + 5)'
    """
    match = _QUESTION.search(query)
    if match is None:
        raise ValueError(f"query={query!r} is no question of this task.")
    numbers = [(Fraction(number), number) for number in match["numbers"].split(", ")]
    found = _search(numbers, Fraction(match["target"]))
    if found is None:
        raise ValueError(f"query={query!r} has no answer.")
    return _bare(found)


def _search(pool: list[tuple[Fraction, str]], target: Fraction) -> str | None:
    if len(pool) == 1:
        return pool[0][1] if pool[0][0] == target else None
    for one, other in combinations(range(len(pool)), 2):
        rest = [each for place, each in enumerate(pool) if place not in (one, other)]
        for value, text, _ in [*_all(pool[one], pool[other]), *_all(pool[other], pool[one])]:
            if (found := _search([*rest, (value, text)], target)) is not None:
                return found
    return None


def _all(one: tuple[Fraction, str], other: tuple[Fraction, str]) -> list[tuple[Fraction, str, str]]:
    """Return (value, text, sign) of the four operations on two values with their texts."""
    values = {"+": one[0] + other[0], "-": one[0] - other[0], "*": one[0] * other[0]}
    if other[0]:
        values["/"] = one[0] / other[0]
    return [(value, f"({one[1]} {sign} {other[1]})", sign) for sign, value in values.items()]


def _whole(one: tuple[Fraction, str], other: tuple[Fraction, str]) -> list[tuple[Fraction, str, str]]:
    """Return the operations whose value is a positive whole number."""
    return [each for each in _all(one, other) if each[0] > 0 and each[0].denominator == 1]


def _bare(text: str) -> str:
    """Return a calculation without the parentheses around the whole."""
    return text[1:-1] if text.startswith("(") else text
