"""CoinFlip: some people flip a coin, others do not; is it still heads up?"""

import random
import re

from ..schema import row_of_steps
from ..splits import draw_distinct

# fmt: off
NAMES = [
    "Abe", "Ann", "Ben", "Bob", "Cal", "Cid", "Dan", "Dot", "Eli", "Eve",
    "Fay", "Gil", "Gus", "Hal", "Ian", "Ida", "Jay", "Jon", "Kay", "Kim",
    "Leo", "Liz", "Max", "Meg", "Ned", "Nia", "Ola", "Pam", "Pat", "Ray",
    "Ron", "Sam", "Sue", "Ted", "Tom", "Uma", "Val", "Wes", "Yan", "Zoe",
]
# fmt: on

_ACTION = re.compile(r"(?P<name>\w+) (?P<action>flips|does not flip) the coin\.")


def generate(
    num_samples: int, *, seed: int = 0, split: str = "train", min_people: int = 3, max_people: int = 10
) -> list[dict]:
    """Return `num_samples` different CoinFlip rows of `split` in the dataset schema.

    The number of people is uniform in [min_people, max_people]; each flips with probability one half. Each step
    has six words and marks: who, flip or not, and the resulting state.

    Raises:
        ValueError: when the people's range is not within 1 to 40, or has too few questions for `num_samples`.

    >>> row = generate(1, seed=1, max_people=3)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'A coin is heads up. Max flips the coin. Yan flips the coin. Kay does not flip the coin. Is the coin still
    heads up?'
    >>> row["steps"]
    ['Max flips, now tails.', 'Yan flips, now heads.', 'Kay keeps, still heads.']
    >>> row["condensed_reasoning"], row["answer"]
    ('tails, heads, heads.', 'yes')
    """
    if not 1 <= min_people <= max_people <= len(NAMES):
        raise ValueError(
            f"min_people={min_people}, max_people={max_people}: need 1 <= min_people <= max_people <= {len(NAMES)}."
        )

    def draw(rng: random.Random) -> tuple[str, list[tuple[str, int]]]:
        count = min_people + int(rng.random() * (max_people - min_people + 1))
        people = rng.sample(NAMES, count)
        flips = rng.getrandbits(count)
        actions = [(name, flips >> i & 1) for i, name in enumerate(people)]
        return _question(actions), actions

    drawn = draw_distinct(draw, num_samples, task="coin_flip", seed=seed, split=split)
    return [_row(question, actions) for question, actions in drawn]


def solve(query: str) -> str:
    """Recompute the answer from the question's text: "yes" when the number of flips is even.

    Raises:
        ValueError: when `query` is not a CoinFlip question.

    >>> solve("A coin is heads up. Ann flips the coin. Bob does not flip the coin. Is the coin still heads up?")
    'no'
    """
    actions = _ACTION.findall(query)
    if not actions or "heads up" not in query:
        raise ValueError(f"query={query!r} is not a CoinFlip question: pass one made by coin_flip.generate.")
    return "yes" if sum(action == "flips" for _, action in actions) % 2 == 0 else "no"


def _question(actions: list[tuple[str, int]]) -> str:
    sentences = [f"{name} {'flips' if flip else 'does not flip'} the coin." for name, flip in actions]
    return f"A coin is heads up. {' '.join(sentences)} Is the coin still heads up?"


def _row(question: str, actions: list[tuple[str, int]]) -> dict:
    state, states, steps = "heads", [], []
    for name, flip in actions:
        if flip:
            state = "tails" if state == "heads" else "heads"
        steps.append(f"{name} flips, now {state}." if flip else f"{name} keeps, still {state}.")
        states.append(state)
    return row_of_steps(question, steps, ", ".join(states) + ".", "yes" if state == "heads" else "no")
