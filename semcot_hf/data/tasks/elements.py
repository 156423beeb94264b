"""Division of labour for pretrained models: a walk around a circle of elements, and the atomic number of the last one.

Following the walk takes several steps, and the atomic number stands in no question: a model that has learned to walk
and one that knows the elements can answer together. Unlike those of `facts`, these facts need not be taught to a
host: pretrained models know them, larger ones more of them. Half of the elements are asked about in the training split
alone, the other half in the validation and test splits: what is learned from training questions does not contain the
answers of the others.
"""

import random
import re

from ..schema import row_of_steps
from ..splits import draw_distinct
from .coin_flip import NAMES

# In the order of their atomic numbers, from 1.
ELEMENTS = (
    "hydrogen", "helium", "lithium", "beryllium", "boron", "carbon", "nitrogen", "oxygen", "fluorine", "neon",
    "sodium", "magnesium", "aluminium", "silicon", "phosphorus", "sulfur", "chlorine", "argon", "potassium", "calcium",
    "scandium", "titanium", "vanadium", "chromium", "manganese", "iron", "cobalt", "nickel", "copper", "zinc",
    "gallium", "germanium", "arsenic", "selenium", "bromine", "krypton", "rubidium", "strontium", "yttrium",
    "zirconium", "niobium", "molybdenum", "technetium", "ruthenium", "rhodium", "palladium", "silver", "cadmium",
    "indium", "tin", "antimony", "tellurium", "iodine", "xenon",
)  # fmt: skip
# Elements that are asked about in the validation and test splits, and never in the training split.
HELD_OUT = frozenset(random.Random("elements").sample(ELEMENTS, len(ELEMENTS) // 2))
CIRCLE = 6
COUNTS = {"one": 1, "two": 2, "three": 3}

_CIRCLE = re.compile(r"^Bottles stand in a circle: ((?:\w+, )+\w+)\. \w+ is at (\w+)\.")
_MOVE = re.compile(r" Then (one|two|three) (on|back)\.")


def generate(
    num_samples: int, *, seed: int = 0, split: str = "train", min_steps: int = 2, max_steps: int = 4
) -> list[dict]:
    """Return `num_samples` different rows of `split` in the dataset schema.

    Somebody starts at one of six bottles, and walks a number of times, uniform in [min_steps, max_steps], one to three
    bottles on or back. Each step names every bottle that is passed, and the last one asks what is left of the
    question; no step states the atomic number. After "It ends at boron." a host recalls fewer (examples/real).

    Args:
        num_samples, seed, split: as in every task.
        min_steps, max_steps: number of walks.

    Raises:
        ValueError: when the steps are not 1 <= min_steps <= max_steps <= 6, or the difficulty has too few questions
            for `num_samples`.

    >>> row = generate(1, seed=2, max_steps=2)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Bottles stand in a circle: strontium, iodine, scandium, sodium, rhodium, titanium. Abe is at scandium. Then one
    on. Then two on. What is the atomic number of the element where this ends?'
    >>> row["steps"]
    ['One on: sodium.', 'Two on: rhodium, titanium.', 'What is the atomic number of titanium?']
    >>> row["condensed_reasoning"], row["answer"]
    ('sodium, titanium. Atomic number of titanium?', '22')
    """
    if not 1 <= min_steps <= max_steps <= 6:
        raise ValueError(f"min_steps={min_steps}, max_steps={max_steps}: need 1 <= min_steps <= max_steps <= 6.")
    asked = [element for element in ELEMENTS if (element in HELD_OUT) == (split != "train")]

    def draw(rng: random.Random) -> tuple[str, dict]:
        last = rng.choice(asked)
        circle = [last, *rng.sample([element for element in ELEMENTS if element != last], CIRCLE - 1)]
        rng.shuffle(circle)
        number = rng.randint(min_steps, max_steps)
        moves = [(rng.choice(list(COUNTS)), rng.choice(["on", "back"])) for _ in range(number)]
        place = (circle.index(last) - sum(_signed(*move) for move in moves)) % CIRCLE
        sentences = [f"Bottles stand in a circle: {', '.join(circle)}. {rng.choice(NAMES)} is at {circle[place]}."]
        steps, states = [], []
        for count, way in moves:
            places = [(place + _signed("one", way) * step) % CIRCLE for step in range(1, COUNTS[count] + 1)]
            place = places[-1]
            sentences.append(f"Then {count} {way}.")
            steps.append(f"{count.capitalize()} {way}: {', '.join(circle[each] for each in places)}.")
            states.append(circle[place])
        steps.append(f"What is the atomic number of {last}?")
        return f"{' '.join(sentences)} What is the atomic number of the element where this ends?", {
            "steps": steps,
            "condensed_reasoning": f"{', '.join(states)}. Atomic number of {last}?",
            "answer": str(ELEMENTS.index(last) + 1),
        }

    drawn = draw_distinct(draw, num_samples, task="elements", seed=seed, split=split)
    return [row_of_steps(question, **solution) for question, solution in drawn]


def element_of(query: str) -> str:
    """Return the element where the walk ends, from the question's text alone.

    Raises:
        ValueError: when `query` is not a question of this task.

    >>> element_of("Bottles stand in a circle: tin, iron, zinc. Ann is at tin. Then two on. Then one back. What ...")
    'iron'
    """
    start = _CIRCLE.search(query)
    if start is None or start[2] not in start[1].split(", "):
        raise ValueError(f"query={query!r} starts with no circle of bottles: pass one made by elements.generate.")
    circle = start[1].split(", ")
    moved = sum(_signed(count, way) for count, way in _MOVE.findall(query))
    return circle[(circle.index(start[2]) + moved) % len(circle)]


def solve(query: str) -> str:
    """Recompute the answer from the question's text.

    Raises:
        ValueError: when `query` is not a question of this task.

    >>> solve("Bottles stand in a circle: tin, iron, zinc. Ann is at tin. Then two on. Then one back. What ...")
    '26'
    """
    return str(ELEMENTS.index(element_of(query)) + 1)


def _signed(count: str, way: str) -> int:
    return COUNTS[count] if way == "on" else -COUNTS[count]
