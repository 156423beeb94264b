"""Rows of the bench's tasks at a given difficulty: functions of (number, seed, split)."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from ...data.tasks import arithmetic, coin_flip, graph, multiplication

# Maximum number of rules in a chain, and of sentences in a question of 6 steps.
GRAPH_WORDS, ARITHMETIC_WORDS = 6, 6
Generate = Callable[[int, int, str], list[dict]]


def coin_flip_rows(fewest: int, most: int) -> Generate:
    """Return a generator of coin flips by `fewest` to `most` people; `words` is the final state."""

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = coin_flip.generate(count, seed=seed, split=split, min_people=fewest, max_people=most)
        return [{**row, "words": f" now {row['condensed_reasoning'].split()[-1]}"} for row in rows]

    return generate


def arithmetic_rows(fewest: int, most: int, words_every: int = 0, bare_every: int = 0) -> Generate:
    """Return a generator of arithmetic with numbers up to 20; `words` is the number held after each sentence.

    The reasoning is equations only, as in GSM8K-Aug. With numbers up to 99, all methods tried stay at chance for
    budgets of this size (NOTES.md).

    Args:
        fewest, most: number of steps.
        words_every: interval of the rows that reason in their words; 0 for none.
        bare_every: interval of the rows that are `_bare`; 0 for none.
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = arithmetic.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most, max_value=20)
        made = []
        for index, row in enumerate(rows):
            equations = row["condensed_reasoning"]
            words = f"Now {_padded(arithmetic.held_values(row['query']), ARITHMETIC_WORDS)}."
            reasoning = words if words_every and index % words_every == 0 else equations
            made.append({**row, "reasoning": reasoning, "steps": equations.split(), "words": words})
        return _with_bare(made, bare_every)

    return generate


def _with_bare(rows: Iterable[dict], every: int) -> list[dict]:
    """Return the rows, with the first of every `every` rows `_bare`; none with 0."""
    return [_bare(row) if every and index % every == 0 else row for index, row in enumerate(rows)]


def _bare(row: dict) -> dict:
    """Return the row with its words as reasoning, without the first word and the full stop; they are `given`.

    From these rows a host learns to read the words that become implicit tokens, without learning to write them. Where
    all questions have one length, its generator must have read them too (NOTES.md).
    """
    words = row["words"]
    return {**row, "reasoning": words[words.index(" ") :].rstrip("."), "given": True}


def _padded(words: Sequence[object], count: int) -> str:
    """Join `count` words with spaces, the last one repeated."""
    return " ".join(map(str, [*words, *[words[-1]] * (count - len(words))]))


def multiplication_rows(second_digits: int = 4, bare_every: int = 0) -> Generate:
    """Return a generator of products by columns; a step, and a word, is the sum of a column with its carry.

    Column sums are one word each, unlike the partial products of the ICoT-SI data.

    Args:
        second_digits: digits of the second factor; the first has 4.
        bare_every: interval of the rows that are `_bare`; 0 for none.
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        made = []
        rows = multiplication.generate(count, seed=seed, split=split, num_digits=4, second_digits=second_digits)
        for row in rows:
            first, *others = (str(sums[-1]) for sums in multiplication.column_sums(row["query"]))
            steps = [f"Sums {first}", *others[:-1], f"{others[-1]}."]
            words = " ".join(steps)
            made.append({**row, "reasoning": words, "condensed_reasoning": words, "steps": steps, "words": words})
        return _with_bare(made, bare_every)

    return generate


def graph_rows(fewest: int, most: int, bare_every: int = 0) -> Generate:
    """Return a generator of rule chains without people ("Is every P a Q or an R?") and without branches.

    `words` is the conclusion of each rule, and `start` the first rule's premise. With people or branches, a model of
    this size did not learn to reason in words; that was without `EarlierTokens` (NOTES.md).

    Args:
        fewest, most: number of rules in the chain.
        bare_every: interval of the rows that are `_bare`; 0 for none.
    """

    def generate(count: int, seed: int, split: str = "train") -> list[dict]:
        rows = graph.generate(count, seed=seed, split=split, min_depth=fewest, max_depth=most, num_distractors=0)
        return _with_bare(map(_without_people, rows), bare_every)

    return generate


def _without_people(row: dict) -> dict:
    """Return a row of `graph` that asks about the concept at which its person's chain starts.

    >>> row = graph.generate(1, seed=3, min_depth=2, max_depth=2, num_distractors=0)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Every kernmix is a julgus. Val is a rasttar. Every rasttar is a quonpod. Every quonpod is a fimmix. Every quonmix
    is a kernmix. Nia is a quonmix. Is Val a fimmix or a julgus?'
    >>> bare = _without_people(row)
    >>> bare["query"].partition(" Is ")[2], bare["steps"]
    ('every rasttar a fimmix or a julgus?', ['Every rasttar is a quonpod.', 'Every quonpod is a fimmix.'])
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
        "words": f"Every {_padded(chain[1:], GRAPH_WORDS)}.",
        "start": f" {chain[0]}",
    }
