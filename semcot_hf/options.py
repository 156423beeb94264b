"""Options of configurations and commands: fields with help texts, and range checks."""

from dataclasses import field
from typing import TypeVar, cast

T = TypeVar("T")


def option(default: T, help: str, alone: str | None = None) -> T:
    """Return a dataclass field with a default and a help text, in the form that `HfArgumentParser` reads.

    Like `dataclasses.field`, it is typed as the default that it stands for. A list is copied for each instance.

    Args:
        default, help: the field's.
        alone: the value of a flag that stands without one; `None` if it needs one.
    """
    if alone is not None:
        return field(default=default, metadata={"help": help, "nargs": "?", "const": alone})
    if isinstance(default, list):
        return cast(T, field(default_factory=default.copy, metadata={"help": help}))
    return field(default=default, metadata={"help": help})


def check_range(args: object, interval: str, *names: str, optional: bool = False) -> None:
    """Raise a ValueError for the first field of `args` that is outside an interval such as "[0, 1)".

    `optional` fields may be `None`.

    >>> check_range(1.5, "[0, 1)", "real")
    Traceback (most recent call last):
    ...
    ValueError: real=1.5 must lie in [0, 1).
    """
    low, high = map(float, interval[1:-1].split(","))
    for name in names:
        value = getattr(args, name)
        if optional and value is None:
            continue
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name}={value} must lie in {interval}.")
