"""Division of labour: a walk along a known road leads to a town, and a fact about that town is the answer.

A model that can follow the walk but has never met the facts, and one that knows the facts but cannot follow the walk
at once, can only answer together. The facts, those of `FACTS`, stand in no question. Half of them are asked about in
the training split alone, the other half in the validation and test splits: what is learned from training questions
does not contain the answers of the others.
"""

import random
import re

from ..schema import row_of_steps
from ..splits import draw_distinct
from .coin_flip import NAMES

# In the order of the road, which leads from the last one back to the first.
TOWNS = (
    "Bern", "Cairo", "Delhi", "Kyiv", "Lima", "Lyon", "Minsk", "Oslo",
    "Paris", "Porto", "Quito", "Riga", "Rome", "Seoul", "Tokyo", "Turin",
)  # fmt: skip
# Towns that a person carries the letter on.
MOVES = {"one on": 1, "two on": 2, "one back": -1, "two back": -2}
# Each attribute with its values, its question about the town at the end, and its question about a town's name.
ATTRIBUTES = {
    "colour": (
        ("black", "blue", "brown", "green", "grey", "pink", "red", "white"),
        "What colour is the tower where it ends?",
        "What colour is the tower of {}?",
    ),
    "animal": (
        ("bear", "cat", "dog", "fish", "horse", "mouse", "rabbit", "snake"),
        "Which animal is on the flag where it ends?",
        "Which animal is on the flag of {}?",
    ),
    "fruit": (
        ("apple", "cherry", "fig", "grape", "lemon", "melon", "peach", "plum"),
        "Which fruit grows where it ends?",
        "Which fruit grows in {}?",
    ),
}


def is_held_out(town: str, attribute: str) -> bool:
    """Return whether a fact is asked about in the validation and test splits, and never in the training split.

    Of each attribute it is half of the towns, and of each town one or two attributes.
    """
    return (TOWNS.index(town) + list(ATTRIBUTES).index(attribute)) % 2 == 1


def _facts() -> dict[str, dict[str, str]]:
    """Draw facts of which each value is that of one town in either half, so that no guess is better than another."""
    rng = random.Random("facts")
    known: dict[str, dict[str, str]] = {town: {} for town in TOWNS}
    for attribute, (values, *_) in ATTRIBUTES.items():
        for held_out in (False, True):
            half = [town for town in TOWNS if is_held_out(town, attribute) == held_out]
            for town, value in zip(half, rng.sample(values, len(half)), strict=True):
                known[town][attribute] = value
    return known


# What is true of each town: a value of each attribute.
FACTS = _facts()

_START = re.compile(r"^A letter is in (\w+)\.")
_MOVE = re.compile(r"(?<=\. )\w+ (?:carries it (one|two) (on|back)|(keeps) it)\.")


def generate(
    num_samples: int,
    *,
    seed: int = 0,
    split: str = "train",
    min_steps: int = 2,
    max_steps: int = 5,
    all_facts: bool = False,
) -> list[dict]:
    """Return `num_samples` different rows of `split` in the dataset schema.

    A letter starts in a town, and each of a number of people, uniform in [min_steps, max_steps], carries it one or two
    towns on or back, or keeps it. The last step names the town where it ends; no step states the fact.

    Args:
        num_samples, seed, split: as in every task.
        min_steps, max_steps: number of people.
        all_facts: whether the questions are about all facts in every split, for a model that is to know them.

    Raises:
        ValueError: when the steps are not 1 <= min_steps <= max_steps <= 40, or the difficulty has too few questions
            for `num_samples`.

    >>> row = generate(1, seed=1, max_steps=2)[0]
    >>> row["query"]
    'A letter is in Seoul. Ned carries it two on. Ola carries it one on. What colour is the tower where it ends?'
    >>> row["steps"]
    ['Ned two on, now Turin.', 'Ola one on, now Bern.', 'It ends in Bern.']
    >>> row["condensed_reasoning"], row["answer"]
    ('Turin, Bern. It ends in Bern.', 'white')
    """
    if not 1 <= min_steps <= max_steps <= len(NAMES):
        raise ValueError(
            f"min_steps={min_steps}, max_steps={max_steps}: need 1 <= min_steps <= max_steps <= {len(NAMES)}, the "
            "number of people."
        )

    def draw(rng: random.Random) -> tuple[str, dict]:
        people = rng.sample(NAMES, rng.randint(min_steps, max_steps))
        place = rng.randrange(len(TOWNS))
        sentences, steps, states = [f"A letter is in {TOWNS[place]}."], [], []
        for person in people:
            move = rng.choice([*MOVES, None])
            place = (place + MOVES.get(move or "", 0)) % len(TOWNS)
            states.append(TOWNS[place])
            sentences.append(f"{person} carries it {move}." if move else f"{person} keeps it.")
            steps.append(f"{person} {move}, now {states[-1]}." if move else f"{person} keeps, still {states[-1]}.")
        town = TOWNS[place]
        asked = [
            attribute for attribute in ATTRIBUTES if all_facts or is_held_out(town, attribute) == (split != "train")
        ]
        attribute = rng.choice(asked)
        steps.append(f"It ends in {town}.")
        return f"{' '.join(sentences)} {ATTRIBUTES[attribute][1]}", {
            "steps": steps,
            "condensed_reasoning": f"{', '.join(states)}. {steps[-1]}",
            "answer": FACTS[town][attribute],
        }

    drawn = draw_distinct(draw, num_samples, task="facts", seed=seed, split=split)
    return [row_of_steps(question, **solution) for question, solution in drawn]


def fact_rows() -> list[dict]:
    """Return all facts as questions about a town's name, without reasoning; none is a question of `generate`.

    >>> rows = fact_rows()
    >>> len(rows), rows[0]["query"], rows[0]["answer"] == FACTS["Bern"]["colour"]
    (48, 'What colour is the tower of Bern?', True)
    """
    return [
        row_of_steps(ATTRIBUTES[attribute][2].format(town), [], "", value)
        for town, known in FACTS.items()
        for attribute, value in known.items()
    ]


def town_of(query: str) -> str:
    """Return the town where the letter ends, from the question's text alone.

    Raises:
        ValueError: when `query` is not a question of this task.

    >>> town_of("A letter is in Bern. Eve carries it one back. Fay keeps it. Gil carries it two back. Which fruit ...")
    'Seoul'
    """
    start = _START.search(query)
    if start is None or start[1] not in TOWNS:
        raise ValueError(f"query={query!r} starts with no letter in a town: pass one made by facts.generate.")
    moved = sum(MOVES[f"{size} {way}"] for size, way, kept in _MOVE.findall(query) if not kept)
    return TOWNS[(TOWNS.index(start[1]) + moved) % len(TOWNS)]


def solve(query: str) -> str:
    """Recompute the answer from the question's text and `FACTS`.

    Raises:
        ValueError: when `query` is not a question of this task.

    >>> question = "A letter is in Bern. Eve carries it one back. Which fruit grows where it ends?"
    >>> solve(question) == FACTS["Turin"]["fruit"]
    True
    """
    for attribute, (_, asked, _) in ATTRIBUTES.items():
        if query.endswith(asked):
            return FACTS[town_of(query)][attribute]
    raise ValueError(f"query={query!r} asks for no attribute of {', '.join(ATTRIBUTES)}: pass one of facts.generate.")
