"""The tasks of the bench: questions of graded difficulty, and how their models are pretrained."""

from dataclasses import dataclass

from .rows import (
    Generate,
    arithmetic_rows,
    coin_flip_rows,
    countdown_rows,
    facts_rows,
    graph_rows,
    multiplication_rows,
    told_rows,
    town_rows,
)


@dataclass(frozen=True)
class BenchTask:
    """A generated task.

    Hosts are pretrained on explicit reasoning and answers at once. In most tasks this reasoning is also the words of
    SemCoT (soft words), see `words_column`; no host has learned the shorter ones of the graph and countdown.

    Args:
        answer_type: see `check_answer`.
        generate: makes rows of the bench's difficulty from (number, seed, split).
        lessons: what the generator learns to reason on in words, from easy to hard: a function like `generate`, and
            the number of steps of 64 questions.
        generator_shape: (layers, hidden size) of the generator.
        host_layers: layers of the host, which has the generator's width.
        num_implicit_tokens, steps_per_token: k of methods with a fixed number of tokens, and the reasoning steps that
            one token represents.
        words_column: column of the words of SemCoT (soft words); see `SemCoTDistillationConfig`.
        coconut: latents per step and number of stages of Coconut's curriculum.
        generator_rate: initial learning rate of the lessons.
        by_length: whether a batch of the lessons holds rows of similar length, for less padding; CoinFlip is not
            learned that way (NOTES.md).
        host_steps, host_rate: training steps of the host, and their initial learning rate.
        direct_share: share of the host's questions that it answers at once.
        max_new_tokens: maximum length of explicit reasoning with its answer.
        whole_numbers: numbers below it are one token each; with 0, each digit is a token.
        vocabulary: maximum size of the tokenizer.
        host_lessons: what the host learns, like `lessons`; by default `generate`, for `host_steps`.
        by_script: whether its generator is learned only with the training aid of `examples/pretrain_task_models.py`.
    """

    answer_type: str
    generate: Generate
    lessons: tuple[tuple[Generate, int], ...]
    generator_shape: tuple[int, int]
    host_layers: int
    num_implicit_tokens: int
    steps_per_token: int
    words_column: str = "condensed_reasoning"
    coconut: tuple[int, int] = (2, 3)
    generator_rate: float = 3e-3
    by_length: bool = False
    host_steps: int = 240
    host_rate: float = 5e-4
    direct_share: float = 0.25
    max_new_tokens: int = 160
    whole_numbers: int = 0
    vocabulary: int = 512
    host_lessons: tuple[tuple[Generate, int], ...] = ()
    by_script: bool = False

    def lessons_of_host(self) -> tuple[tuple[Generate, int], ...]:
        """Return what the host learns, and for how many steps."""
        return self.host_lessons or ((self.generate, self.host_steps),)


BENCH_TASKS = {
    "facts": BenchTask(
        answer_type="sequence",
        generate=facts_rows(2, 5),
        lessons=((town_rows(1, 2), 400), (town_rows(1, 3), 400), (town_rows(2, 5), 800)),
        host_lessons=((told_rows(1, 2), 300), (told_rows(2, 5), 600)),
        host_rate=1e-3,
        direct_share=0.1,
        generator_shape=(2, 96),
        host_layers=8,
        num_implicit_tokens=6,
        steps_per_token=1,
        # The towns alone are not learned in a bench's budget (NOTES.md).
        words_column="reasoning",
        max_new_tokens=80,
        vocabulary=640,
    ),
    "coin_flip": BenchTask(
        answer_type="yes_no",
        generate=coin_flip_rows(3, 10),
        lessons=((coin_flip_rows(1, 3), 400), (coin_flip_rows(2, 6), 400), (coin_flip_rows(3, 10), 800)),
        generator_shape=(2, 96),
        host_layers=10,
        num_implicit_tokens=4,
        steps_per_token=3,
        # The host finds the answer in whole steps only (NOTES.md).
        words_column="reasoning",
        max_new_tokens=128,
    ),
    "arithmetic": BenchTask(
        answer_type="numeric",
        generate=arithmetic_rows(2, 6),
        lessons=((arithmetic_rows(1, 2), 400), (arithmetic_rows(1, 4), 600), (arithmetic_rows(2, 6), 2400)),
        by_length=True,
        generator_shape=(3, 128),
        host_layers=12,
        num_implicit_tokens=6,
        steps_per_token=1,
        whole_numbers=21,
        vocabulary=640,
    ),
    "multiplication": BenchTask(
        answer_type="sequence",
        generate=multiplication_rows(),
        lessons=(
            (multiplication_rows(1), 700),
            (multiplication_rows(2), 700),
            (multiplication_rows(3), 1200),
            (multiplication_rows(4), 10_000),
        ),
        host_steps=480,
        direct_share=0.1,
        generator_shape=(3, 192),
        generator_rate=1.5e-3,
        host_layers=12,
        num_implicit_tokens=7,
        steps_per_token=1,
        whole_numbers=400,
        vocabulary=1024,
    ),
    "graph": BenchTask(
        answer_type="sequence",
        generate=graph_rows(2, 6),
        lessons=((graph_rows(1, 4), 1100), (graph_rows(2, 6), 600)),
        generator_shape=(2, 96),
        host_layers=10,
        num_implicit_tokens=7,
        steps_per_token=1,
        # As published for such graphs (ProsQA).
        coconut=(1, 6),
        by_script=True,
    ),
    "countdown": BenchTask(
        answer_type="expression",
        generate=countdown_rows(3, 4),
        lessons=((countdown_rows(3, 3), 800), (countdown_rows(3, 4), 2400)),
        generator_shape=(3, 128),
        host_layers=12,
        num_implicit_tokens=4,
        steps_per_token=1,
        max_new_tokens=80,
    ),
}
