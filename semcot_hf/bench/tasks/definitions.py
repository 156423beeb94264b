"""The tasks of the bench: questions of graded difficulty, and how their models are pretrained."""

from dataclasses import dataclass

from ..recipe import Recipe
from .rows import (
    ARITHMETIC_WORDS,
    GRAPH_WORDS,
    Generate,
    arithmetic_rows,
    coin_flip_rows,
    graph_rows,
    multiplication_rows,
)


@dataclass(frozen=True)
class BenchTask:
    """A generated task.

    Args:
        answer_type: see `check_answer`.
        generate: makes rows of the bench's difficulty from (number, seed, split).
        lessons: what the generator learns to reason on in words, from easy to hard: a function like `generate`, and
            the number of steps of 64 questions.
        generator_shape: (layers, hidden size) of the generator.
        host_layers: layers of the host, which has the generator's width.
        num_implicit_tokens, steps_per_token: k of SemCoT, and the reasoning steps that one token represents.
        soft_words: the recipe of SemCoT (soft words).
        generator_rate: initial learning rate of the lessons.
        by_length: whether a batch of the lessons holds rows of similar length, for less padding; CoinFlip is not
            learned that way (NOTES.md).
        earlier_tokens: shares of the lessons' steps between which `EarlierTokens` are withdrawn from the generator;
            `None` for no such aid. Models that have to look things up need it (NOTES.md).
        host_steps, direct_share: training steps of the host, and the share of questions that it answers at once.
        max_new_tokens: maximum length of explicit reasoning with its answer.
        whole_numbers: numbers below it are one token each; with 0, each digit is a token.
        vocabulary: maximum size of the tokenizer.
        host_rows: what the host learns, a function like `generate`, which is the default.
    """

    answer_type: str
    generate: Generate
    lessons: tuple[tuple[Generate, int], ...]
    generator_shape: tuple[int, int]
    host_layers: int
    num_implicit_tokens: int
    steps_per_token: int
    soft_words: Recipe
    generator_rate: float = 3e-3
    by_length: bool = False
    earlier_tokens: tuple[float, float] | None = None
    host_steps: int = 240
    direct_share: float = 0.25
    max_new_tokens: int = 160
    whole_numbers: int = 0
    vocabulary: int = 512
    host_rows: Generate | None = None


BENCH_TASKS = {
    "coin_flip": BenchTask(
        answer_type="yes_no",
        generate=coin_flip_rows(3, 10),
        lessons=((coin_flip_rows(1, 3), 400), (coin_flip_rows(2, 6), 400), (coin_flip_rows(3, 10), 800)),
        generator_shape=(2, 96),
        host_layers=10,
        num_implicit_tokens=4,
        steps_per_token=3,
        soft_words=Recipe(mode="parallel", step_weight=0.0, thought=" now", words=3.0),
        max_new_tokens=128,
    ),
    "arithmetic": BenchTask(
        answer_type="numeric",
        generate=arithmetic_rows(2, 6),
        lessons=(
            (arithmetic_rows(1, 2, words_every=2), 400),
            (arithmetic_rows(1, 4, words_every=2), 600),
            (arithmetic_rows(2, 6, words_every=2), 2400),
        ),
        by_length=True,
        host_rows=arithmetic_rows(2, 6, bare_every=3),
        generator_shape=(3, 128),
        host_layers=12,
        num_implicit_tokens=ARITHMETIC_WORDS,
        steps_per_token=1,
        soft_words=Recipe(layers=(0, 2), projection="vocabulary", step_weight=0.0, thought="Now", words=3.0),
        whole_numbers=21,
        vocabulary=640,
    ),
    "multiplication": BenchTask(
        answer_type="sequence",
        generate=multiplication_rows(),
        lessons=(
            (multiplication_rows(1, bare_every=8), 700),
            (multiplication_rows(2, bare_every=8), 700),
            (multiplication_rows(3, bare_every=8), 1200),
            (multiplication_rows(4, bare_every=8), 10_000),
        ),
        host_rows=multiplication_rows(4, bare_every=2),
        host_steps=480,
        direct_share=0.1,
        generator_shape=(3, 192),
        generator_rate=1.5e-3,
        host_layers=12,
        num_implicit_tokens=7,
        steps_per_token=1,
        soft_words=Recipe(projection="vocabulary", step_weight=0.0, thought="Sums", words=3.0),
        whole_numbers=400,
        vocabulary=1024,
    ),
    "graph": BenchTask(
        answer_type="sequence",
        generate=graph_rows(2, 6),
        lessons=((graph_rows(1, 4), 1100), (graph_rows(2, 6), 600)),
        earlier_tokens=(0.2, 0.6),
        host_rows=graph_rows(2, 6, bare_every=3),
        generator_shape=(2, 96),
        host_layers=10,
        num_implicit_tokens=GRAPH_WORDS + 1,
        steps_per_token=1,
        soft_words=Recipe(tokens=GRAPH_WORDS, projection="vocabulary", step_weight=0.0, thought="Every", words=4.0),
    ),
}
