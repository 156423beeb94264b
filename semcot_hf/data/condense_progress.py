"""The progress bar of a condensation: stages done, time left, tokens and cost; silent off a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
