"""Graph reachability in the style of ProsQA (arXiv 2412.06769): which of two concepts do the rules lead to?"""

import random
import re
from itertools import pairwise

from ..schema import row_of_steps
from ..splits import draw_distinct
from .coin_flip import NAMES

# fmt: off
CONCEPTS = [
    onset + ending
    for onset in ("bren", "dal", "fim", "gor", "hest", "jul", "kern", "lom", "mip", "nor", "pell", "quon", "rast",
                  "sul", "tev", "vond", "wim", "yarp", "zill", "crev")
    for ending in ("gus", "pod", "tar", "mix")
]
# fmt: on

_RULE = re.compile(r"Every (\w+) is a (\w+)\.")
_FACT = re.compile(r"(?<!Every )\b([A-Z]\w+) is a (\w+)\.")
_QUESTION = re.compile(r"Is (\w+) a (\w+) or a (\w+)\?")


def generate(
    num_samples: int,
    *,
    seed: int = 0,
    split: str = "train",
    min_depth: int = 3,
    max_depth: int = 5,
    num_distractors: int = 6,
) -> list[dict]:
    """Return `num_samples` different reachability rows of `split` in the dataset schema.

    Each of two people is at the root of a tree of rules: a chain of `depth` rules (uniform in [min_depth, max_depth])
    and branches that lead nowhere (`num_distractors` rules in all). The question asks whether the first person is the
    end of their own chain or of the other chain. Both trees have the same distribution: only following the rules gives
    the answer.

    Raises:
        ValueError: when the depths are not 1 <= min_depth <= max_depth, `num_distractors` is negative, or more
            concepts are needed than there are.

    >>> row = generate(1, seed=3, min_depth=2, max_depth=2, num_distractors=1)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Every sulmix is a lommix. Every gorpod is a fimpod. Every wimpod is a gorpod. Ned is a wimpod. Every quonpod is a
    sulmix. Every sulmix is a sulpod. Kay is a quonpod. Is Kay a fimpod or a sulpod?'
    >>> row["steps"][:2]
    ['Kay is a quonpod.', 'Every quonpod is a sulmix, so Kay is a sulmix.']
    >>> row["condensed_reasoning"], row["answer"]
    ('quonpod, sulmix, sulpod.', 'sulpod')
    """
    needed = 2 * (max_depth + 1) + num_distractors
    if not 1 <= min_depth <= max_depth or num_distractors < 0 or needed > len(CONCEPTS):
        raise ValueError(
            f"min_depth={min_depth}, max_depth={max_depth}, num_distractors={num_distractors}: need 1 <= min_depth <= "
            f"max_depth, num_distractors >= 0 and 2 * (max_depth + 1) + num_distractors <= {len(CONCEPTS)}."
        )

    def draw(rng: random.Random) -> tuple[str, tuple[str, list[str]]]:
        depth = rng.randint(min_depth, max_depth)
        concepts = rng.sample(CONCEPTS, 2 * (depth + 1) + num_distractors)
        chain, decoy = concepts[: depth + 1], concepts[depth + 1 : 2 * depth + 2]
        person, other = rng.sample(NAMES, 2)
        sentences = [f"{person} is a {chain[0]}.", f"{other} is a {decoy[0]}."]
        for path in (chain, decoy):
            sentences += [f"Every {lower} is a {upper}." for lower, upper in pairwise(path)]
        parents = chain[:-1] + decoy[:-1]
        for leaf in concepts[2 * depth + 2 :]:
            sentences.append(f"Every {rng.choice(parents)} is a {leaf}.")
            parents.append(leaf)
        rng.shuffle(sentences)
        first, second = rng.sample((chain[-1], decoy[-1]), 2)
        return f"{' '.join(sentences)} Is {person} a {first} or a {second}?", (person, chain)

    drawn = draw_distinct(draw, num_samples, task="graph", seed=seed, split=split)
    return [_row(question, *solution) for question, solution in drawn]


def solve(query: str) -> str:
    """Recompute the answer from the question's text: which of the two concepts the rules lead to.

    Raises:
        ValueError: when `query` is not such a question, or both or none of its concepts can be reached.

    >>> solve("Every dalpod is a sulgus. Tom is a dalpod. Ann is a wimtar. Is Tom a wimtar or a sulgus?")
    'sulgus'
    """
    asked = _QUESTION.search(query)
    if not asked:
        raise ValueError(f"query={query!r} asks no 'Is Tom a P or a Q?': pass one made by graph.generate.")
    person, *choices = asked.groups()
    rules = _RULE.findall(query)
    reached = {concept for name, concept in _FACT.findall(query) if name == person}
    while fresh := {upper for lower, upper in rules if lower in reached} - reached:
        reached |= fresh
    answers = [choice for choice in choices if choice in reached]
    if len(answers) != 1:
        raise ValueError(f"query={query!r}: {len(answers)} of its two concepts can be reached; exactly one must be.")
    return answers[0]


def _row(question: str, person: str, chain: list[str]) -> dict:
    steps = [f"{person} is a {chain[0]}."]
    steps += [f"Every {low} is a {up}, so {person} is a {up}." for low, up in pairwise(chain)]
    return row_of_steps(question, steps, ", ".join(chain) + ".", chain[-1])
