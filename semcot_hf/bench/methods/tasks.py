"""The bench's tasks: questions of graded difficulty, and the models that are made for them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ...data.tasks import arithmetic, coin_flip, graph, multiplication


@dataclass(frozen=True)
class BenchTask:
    """A generated task.

    Args:
        answer_type: of `check_answer`.
        generate: rows from (number, seed, split), of the bench's difficulty.
        host_rows: what the host learns, a function like `generate`, which it is by default.
        lessons: what the generator learns to reason on in words, easy to hard: a function like `generate`, and the
            number of steps of 64 questions.
        generator_shape: (layers, hidden size) of the generator.
        host_layers: the host has the generator's width and so many layers.
        whole_numbers: the tokenizer makes each number below it one token; with 0 digits stand alone.
        vocabulary: the tokenizer's size at most.
        host_steps, direct_share: the host's training, and the share of answers at once in it.
        num_implicit_tokens, steps_per_token: k of SemCoT, and the reasoning steps that one token stands for.
        best_mode, best_projection, best_step_weight, best_thought, best_words: see `Setting`; chosen
            on validation questions (`examples/bench/NOTES.md`).
        max_new_tokens: longest explicit reasoning with its answer.
    """

    answer_type: str
    generate: Callable[[int, int, str], list[dict]]
    lessons: tuple[tuple[Callable, int], ...]
    generator_shape: tuple[int, int]
    host_layers: int
    num_implicit_tokens: int
    steps_per_token: int
    best_mode: str = "sequential"
    best_projection: str = "linear"
    best_step_weight: float = 1.0
    best_thought: str | None = None
    best_words: float = 0.0
    host_steps: int = 240
    direct_share: float = 0.25
    max_new_tokens: int = 160
    whole_numbers: int = 0
    vocabulary: int = 512
    host_rows: Callable[[int, int, str], list[dict]] | None = None


def _coin_flip(fewest, most):
    return lambda count, seed, split="train": coin_flip.generate(
        count, seed=seed, split=split, min_people=fewest, max_people=most
    )


def _arithmetic(fewest, most, in_words=0, bare=False):
    """Equations only, as GSM8K-Aug has them, with numbers up to 20; `words` is what is held after each sentence.

    With numbers up to 99, all methods that were tried stay at chance for budgets of this size (NOTES.md).
    `in_words` and `bare`: see `_told`.
    """

    def generate(count, seed, split="train"):
        rows = arithmetic.generate(count, seed=seed, split=split, min_steps=fewest, max_steps=most, max_value=20)
        made = []
        for index, row in enumerate(rows):
            equations = row["condensed_reasoning"]
            words = f"Now {_padded(arithmetic.held_values(row['query']), ARITHMETIC_WORDS)}."
            told = _told(equations, words, index, in_words, bare)
            made.append({**row, "reasoning": told, "steps": equations.split(), "words": words})
        return made

    return generate


def _told(reasoning, words, index, in_words, bare):
    """The reasoning of row `index`: of `in_words` rows one reasons by `words`, of 0 none.

    `bare` leaves the first word and the full stop away there, as a host gets the words that are implicit tokens.
    """
    if not in_words or index % in_words:
        return reasoning
    return words[words.index(" ") :].rstrip(".") if bare else words


def _padded(words, count):
    """`count` words with spaces between, the last one repeated."""
    return " ".join(map(str, [*words, *[words[-1]] * (count - len(words))]))


def _multiplication(second_digits=4, in_words=0, bare=False):
    """Products of two 4-digit numbers by columns, a step telling a column's running sums; `words` is the last of each.

    By columns, since their sums are one word each, and the partial products of the ICoT-SI data are not.
    `in_words` and `bare`: see `_told`.
    """

    def generate(count, seed, split="train"):
        made = []
        rows = multiplication.generate(count, seed=seed, split=split, num_digits=4, second_digits=second_digits)
        for index, row in enumerate(rows):
            columns = multiplication.column_sums(row["query"])
            steps = [f"{' '.join(map(str, sums))}." for sums in columns]
            words = f"Sums {' '.join(str(sums[-1]) for sums in columns)}."
            told = _told(" ".join(steps), words, index, in_words, bare)
            made.append({**row, "reasoning": told, "condensed_reasoning": words, "steps": steps, "words": words})
        return made

    return generate


def _graph(fewest, most):
    """Chains of rules without people ("Is every P a Q or an R?") and without branches; `words` are their concepts.

    With either, a model of this size does not learn to reason in words (NOTES.md).
    """

    def generate(count, seed, split="train"):
        return [_without_people(row) for row in _with_people(fewest, most)(count, seed, split)]

    return generate


def _with_people(fewest, most):
    """Chains as in `_graph` with people, whose rules a model of this size learns to follow the sooner."""
    return lambda count, seed, split="train": graph.generate(
        count, seed=seed, split=split, min_depth=fewest, max_depth=most, num_distractors=0
    )


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
    words = f"Every {_padded(chain, GRAPH_WORDS)}."
    return {**row, "query": query, "steps": steps, "reasoning": " ".join(steps), "words": words}


# The most concepts of a chain of 6 rules, and the most sentences of 6 steps.
GRAPH_WORDS, ARITHMETIC_WORDS = 7, 6

TASKS = {
    "coin_flip": BenchTask(
        answer_type="yes_no",
        generate=_coin_flip(3, 10),
        lessons=((_coin_flip(1, 3), 400), (_coin_flip(2, 6), 400), (_coin_flip(3, 10), 800)),
        generator_shape=(2, 96),
        host_layers=10,
        num_implicit_tokens=4,
        steps_per_token=3,
        best_mode="parallel",
        best_step_weight=0.0,
        max_new_tokens=128,
    ),
    "arithmetic": BenchTask(
        answer_type="numeric",
        generate=_arithmetic(2, 6),
        lessons=(
            (_arithmetic(1, 2, in_words=2), 400),
            (_arithmetic(1, 4, in_words=2), 600),
            (_arithmetic(2, 6, in_words=2), 2400),
        ),
        host_rows=_arithmetic(2, 6, in_words=3, bare=True),
        generator_shape=(3, 128),
        host_layers=12,
        num_implicit_tokens=ARITHMETIC_WORDS,
        steps_per_token=1,
        best_projection="vocabulary",
        best_step_weight=0.0,
        best_thought="Now",
        best_words=3.0,
        whole_numbers=21,
        vocabulary=640,
    ),
    "multiplication": BenchTask(
        answer_type="sequence",
        generate=_multiplication(),
        lessons=(
            (_multiplication(1, in_words=1), 500),
            (_multiplication(2, in_words=1), 700),
            (_multiplication(3, in_words=1), 1000),
            (_multiplication(4, in_words=2), 500),
            (_multiplication(4, in_words=1), 3000),
            (_multiplication(4, in_words=2), 200),
        ),
        host_rows=_multiplication(4, in_words=3, bare=True),
        generator_shape=(3, 192),
        host_layers=12,
        num_implicit_tokens=7,
        steps_per_token=1,
        best_projection="vocabulary",
        best_step_weight=0.0,
        best_thought="Sums",
        best_words=3.0,
        whole_numbers=400,
        vocabulary=1024,
    ),
    "graph": BenchTask(
        answer_type="sequence",
        generate=_graph(2, 6),
        lessons=(
            (_with_people(1, 2), 400),
            (_with_people(1, 4), 600),
            (_with_people(2, 6), 2200),
            (_graph(1, 4), 100),
            (_graph(2, 6), 600),
        ),
        generator_shape=(2, 96),
        host_layers=10,
        num_implicit_tokens=GRAPH_WORDS,
        steps_per_token=1,
        best_projection="vocabulary",
        best_step_weight=0.0,
        best_thought="Every",
        best_words=3.0,
    ),
}
