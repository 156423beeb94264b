"""One progress bar with the time left, on a terminal; off it, silence."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback


@contextmanager
def progress_bar(
    total: float, done: float, show: bool | Callable[[str, float], None]
) -> Iterator[Callable[[str, float], None]]:
    """Give a function `advance(description, amount)` that shows how far the work has come.

    Args:
        total: amount of work, in questions.
        done: amount that is done already.
        show: `True` for a bar on the terminal, `False` for none, or a function that is called instead with the
            description and the share done, 0 to 1.
    """
    if callable(show):
        state = [done]

        def advance(description: str, amount: float) -> None:
            state[0] += amount
            show(description, state[0] / total)

        yield advance
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task("evaluate", total=total, completed=done)
        yield lambda description, amount: bar.update(task, advance=amount, description=f"evaluate: {description}")


@contextmanager
def generate_progress(
    questions: int, done: int, work: int, work_done: int, show: bool
) -> Iterator[Callable[[int, int, int], None]]:
    """Give a function `advance(questions, new tokens, work)` that moves the bar after each batch.

    Args:
        questions: how many there are; done: how many are answered already.
        work: all that is to be computed, in tokens: the longest prompts come first, so that a count of questions
            would tell a wrong time; work_done: how much of it is done already.
        show: whether to show it, on a terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("generate"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    counts, start = [0, 0], time.monotonic()

    def text():
        seconds = max(time.monotonic() - start, 1e-9)
        rates = (
            "" if not counts[0] else f", {counts[0] / seconds:,.1f} questions/s, {counts[1] / seconds:,.0f} tokens/s"
        )
        return f"{done + counts[0]:,}/{questions:,}{rates}"

    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task("generate", total=work, completed=work_done, text=text())

        def advance(answered: int, tokens: int, amount: int) -> None:
            counts[0] += answered
            counts[1] += tokens
            bar.update(task, advance=amount, text=text())

        yield advance


def cost_of(input_tokens: int, output_tokens: int, prices: tuple[float, float] | None) -> float | None:
    """Price of tokens, with `prices` per million of input and of output tokens; None without prices.

    >>> cost_of(2_000_000, 500_000, (0.15, 0.6))
    0.6
    """
    if prices is None:
        return None
    return round((input_tokens * prices[0] + output_tokens * prices[1]) / 1e6, 6)


def tokens_text(input_tokens: int, output_tokens: int, cost: float | None) -> str:
    """Tokens and cost for people.

    >>> tokens_text(12_345, 678, 0.0123)
    '12,345 + 678 tokens, cost 0.0123'
    """
    told = f"{input_tokens:,} + {output_tokens:,} tokens"
    return told if cost is None else f"{told}, cost {cost:,.4f}"


@contextmanager
def condense_progress(total: int, show: bool) -> Iterator[Callable[[int, str], None]]:
    """Give a function `update(done, text)` that sets the bar.

    Args:
        total: stages to make.
        show: whether to show it, on a terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("condense"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task("condense", total=total, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text)


class Stages:
    """A bar for each stage on a terminal; elsewhere a line when a stage starts and when it ends.

    Args:
        names: the stages in their order.
        stream: where to write, standard error by default.
    """

    def __init__(self, names, stream=None):
        self.names = list(names)
        self._console = Console(file=stream or sys.stderr)
        self._live = self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._live,
        )
        self._index = -1
        self._task = None
        self._began = 0.0

    def __enter__(self):
        self._bars.start()
        return self

    def __exit__(self, *_):
        self._bars.stop()

    def start(self, name):
        """Begin stage `name`, the next one."""
        self._index = self.names.index(name)
        self._began = time.monotonic()
        title = f"{self._index + 1}/{len(self.names)} {name}"
        if self._live:
            self._task = self._bars.add_task(title, total=1.0)
        else:
            self._console.print(f"{title} ...")

    def update(self, share):
        """Say that `share` (0 to 1) of the running stage is done."""
        if self._live:
            self._bars.update(self._task, completed=share)

    def finish(self):
        """End the running stage."""
        if self._live:
            self._bars.update(self._task, completed=1.0)
        else:
            name = self.names[self._index]
            self._console.print(
                f"{self._index + 1}/{len(self.names)} {name} done in {time.monotonic() - self._began:.0f} s"
            )


class StageCallback(TrainerCallback):
    """Hands a trainer's progress to the running stage."""

    def __init__(self, stages):
        self._stages = stages

    def on_step_end(self, args, state, control, **kwargs):
        self._stages.update(state.global_step / state.max_steps)
