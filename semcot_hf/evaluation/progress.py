"""One progress bar with the time left, on a terminal; off it, silence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
