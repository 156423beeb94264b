"""Division of labour: a chain of turns leads to a person, and a fact about that person, in no question, is the answer.

A model that can follow the chain but has never met the facts, and one that knows the facts but cannot follow the chain
at once, can only answer together. The facts are those of `FACTS`. Half of them are asked about in the training split
alone, the other half in the validation and test splits: what is learned from training questions does not contain the
answers of the others.
"""

import random
import re

from ..schema import row_of_steps
from ..splits import draw_distinct
from .coin_flip import NAMES

SEATS = ("north", "east", "south", "west")
# Quarter turns to the right.
TURNS = {"right": 1, "around": 2, "left": 3}
# Each attribute with its values, its question about the person in the chain, and its question about a name.
ATTRIBUTES = {
    "colour": (
        ("black", "blue", "brown", "green", "grey", "pink", "red", "white"),
        "What colour is the house of the one it points at?",
        "What colour is the house of {}?",
    ),
    "pet": (
        ("bird", "cat", "dog", "fish", "horse", "mouse", "rabbit", "snake"),
        "Which pet does the one it points at have?",
        "Which pet does {} have?",
    ),
    "town": (
        ("Berlin", "Cairo", "Delhi", "Lima", "Oslo", "Paris", "Rome", "Tokyo"),
        "Where does the one it points at live?",
        "Where does {} live?",
    ),
}


def _facts() -> dict[str, dict[str, str]]:
    rng = random.Random("facts")
    return {name: {attribute: rng.choice(ATTRIBUTES[attribute][0]) for attribute in ATTRIBUTES} for name in NAMES}


# What is true of each person: a value of each attribute.
FACTS = _facts()

_SEATED = re.compile(r"(north|east|south|west) (\w+)[,.]")
_START = re.compile(r"The arrow points (\w+)\.")
_MOVE = re.compile(r"(?<=\. )\w+ (?:turns it (left|right|around)|(leaves it))\.")


def is_held_out(name: str, attribute: str) -> bool:
    """Return whether a fact is asked about in the validation and test splits, and never in the training split.

    Of each attribute it is half of the names, and of each name one or two attributes.
    """
    return (NAMES.index(name) + list(ATTRIBUTES).index(attribute)) % 2 == 1


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

    Four people sit around an arrow, and each of a number of others, uniform in [min_steps, max_steps], turns it or
    leaves it. The last step names the person at whom it points in the end; no step states the fact.

    Args:
        num_samples, seed, split: as in every task.
        min_steps, max_steps: number of people who turn the arrow or leave it.
        all_facts: whether the questions are about all facts in every split, for a model that is to know them.

    Raises:
        ValueError: when the steps are not 1 <= min_steps <= max_steps <= 36, or the difficulty has too few questions
            for `num_samples`.

    >>> row = generate(1, seed=1, max_steps=2)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Seats: north Max, west Kim, south Gil, east Val. The arrow points east. Nia turns it left. Yan turns it around.
    Which pet does the one it points at have?'
    >>> row["steps"]
    ['Nia turns it left, now north.', 'Yan turns it around, now south.', 'Seat south Gil.']
    >>> row["condensed_reasoning"], row["answer"]
    ('north, south. Seat south Gil.', 'snake')
    """
    most = len(NAMES) - len(SEATS)
    if not 1 <= min_steps <= max_steps <= most:
        raise ValueError(
            f"min_steps={min_steps}, max_steps={max_steps}: need 1 <= min_steps <= max_steps <= {most}, the number of "
            "people who do not sit around the arrow."
        )

    def draw(rng: random.Random) -> tuple[str, dict]:
        count = rng.randint(min_steps, max_steps)
        people = rng.sample(NAMES, len(SEATS) + count)
        seated, movers = people[: len(SEATS)], people[len(SEATS) :]
        start, moves = rng.randrange(len(SEATS)), [rng.choice([*TURNS, None]) for _ in movers]
        states, place = [], start
        for move in moves:
            place = (place + TURNS.get(move or "", 0)) % len(SEATS)
            states.append(SEATS[place])
        pointed = seated[place]
        asked = [
            attribute for attribute in ATTRIBUTES if all_facts or is_held_out(pointed, attribute) == (split != "train")
        ]
        attribute = rng.choice(asked)
        order = rng.sample(range(len(SEATS)), len(SEATS))
        sentences = ["Seats: " + ", ".join(f"{SEATS[seat]} {seated[seat]}" for seat in order) + "."]
        sentences.append(f"The arrow points {SEATS[start]}.")
        for mover, move in zip(movers, moves, strict=True):
            sentences.append(f"{mover} turns it {move}." if move else f"{mover} leaves it.")
        question = f"{' '.join(sentences)} {ATTRIBUTES[attribute][1]}"
        steps = [
            f"{mover} turns it {move}, now {state}." if move else f"{mover} leaves it, still {state}."
            for mover, move, state in zip(movers, moves, states, strict=True)
        ]
        steps.append(f"Seat {SEATS[place]} {pointed}.")
        return question, {
            "steps": steps,
            "condensed_reasoning": f"{', '.join(states)}. {steps[-1]}",
            "answer": FACTS[pointed][attribute],
        }

    drawn = draw_distinct(draw, num_samples, task="facts", seed=seed, split=split)
    return [row_of_steps(question, **solution) for question, solution in drawn]


def fact_rows() -> list[dict]:
    """Return all facts as questions about a name, without reasoning; none of them is a question of `generate`.

    >>> rows = fact_rows()
    >>> len(rows), rows[0]["query"], rows[0]["answer"] == FACTS["Abe"]["colour"]
    (120, 'What colour is the house of Abe?', True)
    """
    return [
        row_of_steps(ATTRIBUTES[attribute][2].format(name), [], "", value)
        for name, known in FACTS.items()
        for attribute, value in known.items()
    ]


def person_of(query: str) -> str:
    """Return the person at whom the arrow points in the end, from the question's text alone.

    Raises:
        ValueError: when `query` is not a question of this task.

    >>> person_of(
    ...     "Seats: west Ann, north Bob, south Cal, east Dan. The arrow points north. Eve turns it left. "
    ...     "Fay leaves it. Gil turns it around. Where does the one it points at live?"
    ... )
    'Dan'
    """
    seated = dict(_SEATED.findall(query.partition(".")[0] + "."))
    start = _START.search(query)
    if start is None or start[1] not in SEATS or len(seated) != len(SEATS):
        raise ValueError(
            f"query={query!r} does not seat four people around an arrow: pass one made by facts.generate."
        )
    place = SEATS.index(start[1]) + sum(TURNS.get(turn, 0) for turn, _ in _MOVE.findall(query))
    return seated[SEATS[place % len(SEATS)]]


def solve(query: str) -> str:
    """Recompute the answer from the question's text and `FACTS`.

    Raises:
        ValueError: when `query` is not a question of this task.

    >>> solve(
    ...     "Seats: west Ann, north Bob, south Cal, east Dan. The arrow points north. Eve turns it left. "
    ...     "Where does the one it points at live?"
    ... ) == FACTS["Ann"]["town"]
    True
    """
    for attribute, (_, asked, _) in ATTRIBUTES.items():
        if query.endswith(asked):
            return FACTS[person_of(query)][attribute]
    raise ValueError(f"query={query!r} asks for no attribute of {', '.join(ATTRIBUTES)}: pass one of facts.generate.")
