"""Multi-step arithmetic word problems in the style of GSM8K, with `<<a+b=c>>` equations in the steps."""

import random
import re
from collections.abc import Callable

from ..schema import row_of_steps
from ..splits import draw_distinct
from .coin_flip import NAMES

# fmt: off
ITEMS = [
    "apples", "beads", "books", "buttons", "cakes", "cards", "coins", "cookies", "cups", "flowers", "lemons",
    "marbles", "oranges", "pears", "pencils", "photos", "plums", "shells", "stamps", "stickers",
]
# fmt: on

_MAX_OPERAND = 60


class _Story:
    """A word problem under construction: its sentences, the steps that solve it, and the number held so far."""

    def __init__(self, rng: random.Random, max_value: int):
        self.rng, self.max_value = rng, max_value
        self.name, self.friend = rng.sample(NAMES, 2)
        self.items = rng.choice(ITEMS)
        self.held = rng.randint(2, min(100, max_value // 2))
        self.sentences = [f"{self.name} has {self.held} {self.items}."]
        self.steps: list[tuple[str, int, str, int, int, str]] = []
        self.question = f"How many {self.items} does {self.name} have now?"

    def operand(self, most: int) -> int:
        return self.rng.randint(2, min(_MAX_OPERAND, most))

    def step(self, subject: str, left: int, sign: str, right: int, unit: str = "") -> int:
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        unit = unit or self.items
        self.steps.append((subject, left, sign, right, result, unit[:-1] if result == 1 else unit))
        return result


# Each event adds a sentence and its steps, or leaves the story unchanged when the numbers do not fit.
def _buy(s: _Story) -> None:
    if s.held + 2 <= s.max_value:
        more = s.operand(s.max_value - s.held)
        verb = s.rng.choice(("buys", "finds", "wins"))
        s.sentences.append(f"{s.name} {verb} {more} more {s.items}.")
        s.held = s.step(f"{s.name} then has", s.held, "+", more)


def _give(s: _Story) -> None:
    if s.held >= 3:
        fewer = s.operand(s.held - 1)
        gives, loses = f"{s.name} gives {fewer} {s.items} to {s.friend}.", f"{s.name} loses {fewer} {s.items}."
        s.sentences.append(s.rng.choice((gives, loses)))
        s.held = s.step(f"{s.name} is left with", s.held, "-", fewer)


def _grow(s: _Story) -> None:
    if factors := [k for k in (2, 3, 4, 5) if s.held * k <= s.max_value]:
        factor = s.rng.choice(factors)
        s.sentences.append(f"{s.name} trades them for {factor} times as many {s.items}.")
        s.held = s.step(f"{s.name} trades them for", s.held, "*", factor)


def _share(s: _Story) -> None:
    if parts := [k for k in range(2, 13) if s.held % k == 0]:
        part = s.rng.choice(parts)
        s.sentences.append(f"{s.name} puts the {s.items} equally into {part} boxes and keeps only one box.")
        s.held = s.step("One box holds", s.held, "/", part)


def _bags(s: _Story) -> None:
    if (room := s.max_value - s.held) >= 4:
        bags = s.rng.randint(2, min(9, room // 2))
        each = s.rng.randint(2, min(12, room // bags))
        s.sentences.append(f"{s.name} gets {bags} bags with {each} {s.items} in each bag.")
        inside = s.step("The bags hold", bags, "*", each)
        s.held = s.step(f"{s.name} then has", s.held, "+", inside)


def _join(s: _Story) -> None:
    if (most := s.max_value - 2 * s.held) >= 2:
        more = s.operand(most)
        s.sentences.append(f"{s.friend} has {more} more {s.items} than {s.name} and gives them all to {s.name}.")
        theirs = s.step(f"{s.friend} has", s.held, "+", more)
        s.held = s.step(f"{s.name} then has", s.held, "+", theirs)


def _halve(s: _Story) -> None:
    if s.held % 2 == 0:
        s.sentences.append(f"{s.name} gives half of the {s.items} to {s.friend}.")
        given = s.step(f"{s.friend} gets", s.held, "/", 2)
        s.held = s.step(f"{s.name} is left with", s.held, "-", given)


def _sell(s: _Story) -> None:
    if (most := min(9, s.max_value // s.held)) >= 2:
        price = s.rng.randint(2, most)
        s.sentences.append(f"{s.name} sells all the {s.items} for {price} dollars each.")
        s.question = f"How many dollars does {s.name} get?"
        s.held = s.step(f"{s.name} gets", s.held, "*", price, unit="dollars")


# Each with its number of steps.
_EVENTS = ((_buy, 1), (_give, 1), (_grow, 1), (_share, 1), (_bags, 2), (_join, 2), (_halve, 2), (_sell, 1))


def generate(
    num_samples: int,
    *,
    seed: int = 0,
    split: str = "train",
    min_steps: int = 2,
    max_steps: int = 6,
    max_value: int = 999,
) -> list[dict]:
    """Return `num_samples` different word problems of `split` in the dataset schema.

    The number of equations is uniform in [min_steps, max_steps]; all numbers are integers from 1 to `max_value`, and
    divisions are exact. The condensed reasoning consists of the equations.

    Raises:
        ValueError: when the steps are not 1 <= min_steps <= max_steps, `max_value` is below 20, or the difficulty
            has too few questions for `num_samples`.

    >>> row = generate(1, seed=1, max_steps=3)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Nia has 96 plums. Nia puts the plums equally into 2 boxes and keeps only one box. Nia trades them for 4 times as
    many plums. How many plums does Nia have now?'
    >>> row["steps"]
    ['One box holds 96 / 2 = <<96/2=48>>48 plums.', 'Nia trades them for 48 * 4 = <<48*4=192>>192 plums.']
    >>> row["condensed_reasoning"], row["answer"]
    ('<<96/2=48>> <<48*4=192>>', '192')
    """
    if not 1 <= min_steps <= max_steps:
        raise ValueError(f"min_steps={min_steps}, max_steps={max_steps}: need 1 <= min_steps <= max_steps.")
    if max_value < 20:
        raise ValueError(f"max_value={max_value} must be at least 20 for the templates to fit.")

    def draw(rng: random.Random) -> tuple[str, _Story]:
        story = _Story(rng, max_value)
        wanted = rng.randint(min_steps, max_steps)
        while (left := wanted - len(story.steps)) > 0:
            event, cost = rng.choice(_EVENTS)
            if cost <= left and (event is not _sell or left == 1):
                event(story)
        return f"{' '.join(story.sentences)} {story.question}", story

    drawn = draw_distinct(draw, num_samples, task="arithmetic", seed=seed, split=split)
    return [_row(question, story) for question, story in drawn]


def _row(question: str, story: _Story) -> dict:
    equations = [f"<<{left}{sign}{right}={result}>>" for _, left, sign, right, result, _ in story.steps]
    steps = [
        f"{subject} {left} {sign} {right} = {equation}{result} {unit}."
        for (subject, left, sign, right, result, unit), equation in zip(story.steps, equations, strict=True)
    ]
    return row_of_steps(question, steps, " ".join(equations), str(story.held))


_READINGS: tuple[tuple[str, Callable[..., float]], ...] = (
    (r"\w+ (?:buys|finds|wins) (\d+) more \w+", lambda held, n: held + n),
    (r"\w+ (?:gives|loses) (\d+) \w+(?: to \w+)?", lambda held, n: held - n),
    (r"\w+ trades them for (\d+) times as many \w+", lambda held, n: held * n),
    (r"\w+ puts the \w+ equally into (\d+) boxes and keeps only one box", lambda held, n: held / n),
    (r"\w+ gets (\d+) bags with (\d+) \w+ in each bag", lambda held, bags, each: held + bags * each),
    (r"\w+ has (\d+) more \w+ than \w+ and gives them all to \w+", lambda held, n: 2 * held + n),
    (r"\w+ gives half of the \w+ to \w+", lambda held: held / 2),
    (r"\w+ sells all the \w+ for (\d+) dollars each", lambda held, n: held * n),
)


def solve(query: str) -> str:
    """Recompute the answer from the question's sentences; raises the errors of `held_values`.

    >>> solve("Ann has 12 pears. Ann gives half of the pears to Bob. Ann buys 5 more pears. How many does Ann have?")
    '11'
    """
    return str(held_values(query)[-1])


def held_values(query: str) -> list[int]:
    """Return the number held after each sentence between the first one and the question.

    Raises:
        ValueError: when a sentence fits no template, or a result is not an integer.

    >>> held_values("Ann has 12 pears. Ann loses 2 pears. Ann buys 5 more pears. How many pears does Ann have now?")
    [10, 15]
    """
    *sentences, _question = query.strip().split(". ")
    start = re.fullmatch(r"\w+ has (\d+) \w+", sentences[0]) if sentences else None
    if not start:
        raise ValueError(f"query={query!r} does not begin with 'NAME has NUMBER THINGS.': pass one of generate's.")
    held: float = int(start[1])
    values: list[int] = []
    for sentence in sentences[1:]:
        for pattern, effect in _READINGS:
            if found := re.fullmatch(pattern, sentence):
                held = effect(held, *map(int, found.groups()))
                break
        else:
            raise ValueError(f"query: the sentence {sentence!r} fits no template.")
        if held != int(held):
            raise ValueError(f"query={query!r} leads to {held}, which is not an integer.")
        values.append(int(held))
    return values
