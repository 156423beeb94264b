"""The progress display of every command: a bar with the time left on a terminal, silence or plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Update(Protocol):
    """A function that moves a bar and sets the text beside it."""

    def __call__(self, amount: float, text: str = "") -> object: ...


@contextmanager
def progress_bar(
    title: str,
    total: float,
    done: int = 0,
    show: bool | Callable[[str, float], object] = True,
    lines: bool = False,
) -> Iterator[Update]:
    """Give a function `advance(amount, text="")` that moves a bar on standard error.

    Args:
        title: the text before the bar.
        total: amount of work, in a unit that takes about the same time throughout: the time left is computed from it.
        done: amount that an earlier run completed.
        show: `True` for a bar on a terminal and silence elsewhere, `False` for no bar, or a function that is called
            instead with the text and the share done, 0 to 1.
        lines: whether each call of `advance` prints a line with the minutes left when there is no terminal.
    """
    console, start = Console(stderr=True), time.monotonic()
    state: float = done

    def report(amount: float, text: str = "") -> None:
        nonlocal state
        state += amount
        if callable(show):
            show(text, state / total)
        elif lines:
            minutes = (time.monotonic() - start) / max(state - done, 1e-9) * (total - state) / 60
            console.print(f"{title}: {text}, about {minutes:.0f} min left", highlight=False, soft_wrap=True)

    if callable(show) or not (show and console.is_terminal):
        yield report
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, text="")
        yield lambda amount, text="": bar.update(task, advance=amount, text=text)


@contextmanager
def stage(title: str) -> Iterator[Callable[[float], None]]:
    """Give a function `update(share)` for a stage of a job; without a terminal, print when it starts and ends.

    Args:
        title: for example "2/5 alignment".
    """
    console, start, shown = Console(stderr=True), time.monotonic(), 0.0
    if not console.is_terminal:
        console.print(f"{title} ...", soft_wrap=True)
    with progress_bar(title, 1.0) as advance:

        def update(share: float) -> None:
            nonlocal shown
            advance(share - shown)
            shown = share

        yield update
        update(1.0)
    if not console.is_terminal:
        console.print(f"{title} done in {time.monotonic() - start:.0f} s", soft_wrap=True)
