"""Rows of the bench's tasks at a given difficulty: functions of (number, seed, split)."""

import random
import re
from collections.abc import Callable
from itertools import pairwise

from ...data.tasks import arithmetic, coin_flip, countdown, facts, graph, multiplication

Generate = Callable[[int, int, str], list[dict]]


def coin_flip_rows(fewest: int, most: int) -> Generate:
    """Return a generator of coin flips by `fewest` to `most` people."""

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        return coin_flip.generate(count, seed=seed, split=split, min_people=fewest, max_people=most)

    return generate


def arithmetic_rows(fewest: int, most: int) -> Generate:
    """Return a generator of arithmetic with numbers up to 20, whose reasoning is equations only, as in GSM8K-Aug.

    With numbers up to 99, all methods tried stay at chance for budgets of this size (NOTES.md).

    Args:
        fewest, most: number of steps.
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = arithmetic.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most, max_value=20)
        return [{**row, "reasoning": (short := row["condensed_reasoning"]), "steps": short.split()} for row in rows]

    return generate


def multiplication_rows(second_digits: int = 4) -> Generate:
    """Return a generator of products by columns, whose steps are the sums of each column with its carry.

    Column sums are one token each, unlike the partial products of the ICoT-SI data.

    Args:
        second_digits: digits of the second factor; the first has 4.
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        made = []
        rows = multiplication.generate(count, seed=seed, split=split, num_digits=4, second_digits=second_digits)
        for row in rows:
            first, *others = (str(sums[-1]) for sums in multiplication.column_sums(row["query"]))
            steps = [f"Sums {first}", *others[:-1], f"{others[-1]}."]
            reasoning = " ".join(steps)
            made.append({**row, "reasoning": reasoning, "condensed_reasoning": reasoning, "steps": steps})
        return made

    return generate


def graph_rows(fewest: int, most: int) -> Generate:
    """Return a generator of rule chains without people ("Is every P a Q or an R?") and without branches.

    With people or branches, a model of this size did not learn to reason in words (NOTES.md).

    Args:
        fewest, most: number of rules in the chain.
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = graph.generate(count, seed=seed, split=split, min_depth=fewest, max_depth=most, num_distractors=0)
        return [_without_people(row) for row in rows]

    return generate


def _without_people(row: dict) -> dict:
    """Return a row of `graph` that asks about the concept at which its person's chain starts.

    >>> row = graph.generate(1, seed=3, min_depth=2, max_depth=2, num_distractors=0)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Every kernmix is a julgus. Val is a rasttar. Every rasttar is a quonpod. Every quonpod is a fimmix. Every quonmix
    is a kernmix. Nia is a quonmix. Is Val a fimmix or a julgus?'
    >>> short = _without_people(row)
    >>> short["query"].partition(" Is ")[2], short["steps"]
    ('every rasttar a fimmix or a julgus?', ['Every rasttar is a quonpod.', 'Every quonpod is a fimmix.'])
    >>> short["condensed_reasoning"]
    'Every rasttar quonpod fimmix.'
    """
    chain = row["condensed_reasoning"].rstrip(".").split(", ")
    rules = re.findall(r"Every \w+ is a \w+\.", row["query"])
    choices = row["query"].rpartition(" Is ")[2].partition(" ")[2]
    steps = [f"Every {lower} is a {upper}." for lower, upper in pairwise(chain)]
    return {
        **row,
        "query": f"{' '.join(rules)} Is every {chain[0]} {choices}",
        "steps": steps,
        "reasoning": " ".join(steps),
        "condensed_reasoning": f"Every {' '.join(chain)}.",
    }


def facts_rows(fewest: int, most: int) -> Generate:
    """Return a generator of questions that need a walk of `fewest` to `most` steps and a fact."""

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        return facts.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most)

    return generate


def town_rows(fewest: int, most: int) -> Generate:
    """Return a generator of the same walks that ask for the town instead of a fact: what a generator learns from.

    >>> row = town_rows(2, 2)(1, 0)[0]
    >>> row["query"].rpartition(". ")[2], row["reasoning"].rpartition(" ")[2] == row["answer"] + "."
    ('Where does it end?', True)
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = facts.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most, all_facts=True)
        return [
            {
                **row,
                "query": f"{row['query'].rpartition('. ')[0]}. Where does it end?",
                "answer": facts.town_of(row["query"]),
            }
            for row in rows
        ]

    return generate


def told_rows(fewest: int, most: int) -> Generate:
    """Return a generator of what the host of `facts` learns: a third single facts, else walks with any fact."""

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = facts.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most, all_facts=True)
        told, rng = facts.fact_rows(), random.Random(f"told/{seed}")
        return [rng.choice(told) if index % 3 == 0 else row for index, row in enumerate(rows)]

    return generate


def countdown_rows(fewest: int, most: int) -> Generate:
    """Return a generator of calculations with `fewest` to `most` numbers up to 20."""

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        return countdown.generate(count, seed=seed, split=split, min_numbers=fewest, max_numbers=most)

    return generate
