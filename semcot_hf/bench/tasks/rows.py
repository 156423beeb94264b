"""Rows of the bench's tasks, of a given difficulty: functions of (number, seed, split)."""

import re
from itertools import pairwise

from ...data.tasks import arithmetic, coin_flip, graph, multiplication

# The most rules of a chain, and the most sentences of 6 steps.
GRAPH_WORDS, ARITHMETIC_WORDS = 6, 6


def coin_flip_rows(fewest, most):
    """Coin flips by `fewest` to `most` people; `words` is the state that they leave."""

    def generate(count, seed, split="train"):
        rows = coin_flip.generate(count, seed=seed, split=split, min_people=fewest, max_people=most)
        return [{**row, "words": f" now {row['condensed_reasoning'].split()[-1]}"} for row in rows]

    return generate


def arithmetic_rows(fewest, most, words_every=0, bare_every=0):
    """Equations only, as GSM8K-Aug has them, with numbers up to 20; `words` is what is held after each sentence.

    With numbers up to 99, all methods that were tried stay at chance for budgets of this size (NOTES.md).
    Of `words_every` rows one reasons by them; of `bare_every` one is `_bare`; of 0 none.
    """

    def generate(count, seed, split="train"):
        rows = arithmetic.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most, max_value=20)
        made = []
        for index, row in enumerate(rows):
            equations = row["condensed_reasoning"]
            words = f"Now {_padded(arithmetic.held_values(row['query']), ARITHMETIC_WORDS)}."
            row = {**row, "reasoning": equations, "steps": equations.split(), "words": words}
            if words_every and index % words_every == 0:
                row = {**row, "reasoning": words}
            made.append(row)
        return _with_bare(made, bare_every)

    return generate


def _with_bare(rows, every):
    """The rows, of every so many the first one `_bare`; none with 0."""
    return [_bare(row) if every and index % every == 0 else row for index, row in enumerate(rows)]


def _bare(row):
    """The row reasoning by its words without the first one and the full stop, which are `given`.

    So does a host get the words that are implicit tokens, which it is to read and not to write. Where all questions
    are of one length, its generator has to have read them too (NOTES.md).
    """
    words = row["words"]
    return {**row, "reasoning": words[words.index(" ") :].rstrip("."), "given": True}


def _padded(words, count):
    """`count` words with spaces between, the last one repeated."""
    return " ".join(map(str, [*words, *[words[-1]] * (count - len(words))]))


def multiplication_rows(second_digits=4, bare_every=0):
    """Products of two 4-digit numbers by columns; a step, and a word, is the sum of a column, its carry included.

    By columns, since their sums are one word each, and the partial products of the ICoT-SI data are not.
    Of `bare_every` rows one is `_bare`, of 0 none.
    """

    def generate(count, seed, split="train"):
        made = []
        rows = multiplication.generate(count, seed=seed, split=split, num_digits=4, second_digits=second_digits)
        for row in rows:
            first, *others = (str(sums[-1]) for sums in multiplication.column_sums(row["query"]))
            steps = [f"Sums {first}", *others[:-1], f"{others[-1]}."]
            words = " ".join(steps)
            made.append({**row, "reasoning": words, "condensed_reasoning": words, "steps": steps, "words": words})
        return _with_bare(made, bare_every)

    return generate


def graph_rows(fewest, most, bare_every=0):
    """Chains of rules without people ("Is every P a Q or an R?") and without branches.

    `words` is where each rule leads, and `start` what the first one starts from.
    With people or branches, a model of this size did not learn to reason in words; that was without `EarlierTokens`
    (NOTES.md).
    Of `bare_every` rows one is `_bare`, of 0 none.
    """

    def generate(count, seed, split="train"):
        rows = graph.generate(count, seed=seed, split=split, min_depth=fewest, max_depth=most, num_distractors=0)
        return _with_bare((_without_people(row) for row in rows), bare_every)

    return generate


def _without_people(row):
    """A row of `graph` that asks about the concept that its person starts from.

    >>> row = graph.generate(1, seed=3, min_depth=2, max_depth=2, num_distractors=0)[0]
    >>> row["query"]  # doctest: +NORMALIZE_WHITESPACE
    'Every kernmix is a julgus. Val is a rasttar. Every rasttar is a quonpod. Every quonpod is a fimmix. Every quonmix
    is a kernmix. Nia is a quonmix. Is Val a fimmix or a julgus?'
    >>> told = _without_people(row)
    >>> told["query"].partition(" Is ")[2], told["steps"]
    ('every rasttar a fimmix or a julgus?', ['Every rasttar is a quonpod.', 'Every quonpod is a fimmix.'])
    """
    chain = row["condensed_reasoning"].rstrip(".").split(", ")
    rules = re.findall(r"Every \w+ is a \w+\.", row["query"])
    choices = row["query"].rpartition(" Is ")[2].partition(" ")[2]
    steps = [f"Every {lower} is a {upper}." for lower, upper in pairwise(chain)]
    query = f"{' '.join(rules)} Is every {chain[0]} {choices}"
    words = f"Every {_padded(chain[1:], GRAPH_WORDS)}."
    return {
        **row,
        "query": query,
        "steps": steps,
        "reasoning": " ".join(steps),
        "words": words,
        "start": f" {chain[0]}",
    }
