"""The progress bar of many answers: questions done, rates and time left; silent off a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
