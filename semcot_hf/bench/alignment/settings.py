"""The settings of the sweep of stage 1, and its runs: one factor at a time around a centre."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...alignment.config import SemCoTAlignmentConfig
from ...alignment.encoder import POOLINGS, layer_range
from ...options import option

# Flags of `semcot align` with other defaults here: a sweep keeps no checkpoints and validates at the end of a run.
DEFAULTS: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False, "eval_strategy": "no"}
# What is swept, by its title in the report.
FACTORS = {
    "temperature": "temperature",
    "pooling": "pooling",
    "layers": "layers",
    "learning_rate": "learning rate of the layers",
    "batch_size": "pairs in a batch",
}


@dataclass
class AlignmentBenchSettings:
    """What is swept, one factor at a time. The centre is what the other flags say, those of `semcot align`."""

    temperatures: list[float] = option([0.01, 0.05, 0.1, 1.0], "Temperatures; the centre's alone sweeps nothing.")
    poolings: list[str] = option(list(POOLINGS), f"Poolings: {', '.join(POOLINGS)}.")
    layers: list[str] | None = option(
        None,
        "Layer ranges, each as first-last, counted from zero; by default as many layers as the centre has, a quarter "
        "of the host's depth before and behind it.",
    )
    learning_rates: list[float] = option([1e-6, 1e-5, 1e-4], "Learning rates of the layers.")
    batch_sizes: list[int] = option([16, 32, 64, 128], "Pairs in a batch, which are the negatives.")
    combine: bool = option(True, "Also try the best value of each factor together.")
    plot_samples: int = option(200, "Validation pairs in the plot of embeddings.")
    model: str | None = option(
        None, "SemCoT checkpoint whose implicit tokens are embedded and plotted too; by default those of alphas."
    )
    alphas: list[float] = option(
        [],
        "Weights of the alignment loss, 0 among them: `semcot distill --recipe paper` trains --generator with each "
        "and the best encoder, and `semcot evaluate` compares them on test (without one: validation) questions.",
    )
    distill_flags: str = option("", "Further flags of `semcot distill`, in one text.")
    evaluate_flags: str = option("", "Further flags of `semcot evaluate`, in one text.")

    def __post_init__(self) -> None:
        for name in ("temperatures", "learning_rates"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give one number or more, each above 0.")
        if not self.batch_sizes or min(self.batch_sizes) < 2:
            raise ValueError(f"batch_sizes={self.batch_sizes}: give one number or more, each 2 or more.")
        if not self.poolings or any(name not in POOLINGS for name in self.poolings):
            raise ValueError(f"poolings={self.poolings}: must be some of {', '.join(POOLINGS)}.")
        if self.plot_samples < 2:
            raise ValueError(f"plot_samples={self.plot_samples} must be 2 or more.")
        if self.alphas and (0 not in self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas)):
            raise ValueError(
                f"alphas={self.alphas}: give numbers in [0, 1], and among them 0, with which the others are compared."
            )
        for text in self.layers or []:
            _range_of(text)


@dataclass(frozen=True)
class Point:
    """One run of the sweep.

    Args:
        factor: one of `FACTORS`; "centre"; "untrained", the centre without training; or "best of each".
        values: value of each factor.
    """

    factor: str
    values: dict[str, Any] = field(hash=False)

    @property
    def trained(self) -> bool:
        """Whether the encoder is trained, not only cut out of the host."""
        return self.factor != "untrained"

    @property
    def label(self) -> str:
        """The run in a few words.

        >>> Point("layers", {"layers": (12, 15), "pooling": "mean"}).label
        'layers 12-15'
        """
        if self.factor not in FACTORS:
            return self.factor
        return f"{FACTORS[self.factor]} {shown(self.values[self.factor])}"

    def config(self, centre: SemCoTAlignmentConfig, output_dir: str) -> SemCoTAlignmentConfig:
        """Return the configuration of the run.

        Args:
            centre: the configuration that it changes.
            output_dir: the run's folder.
        """
        args = copy.copy(centre)
        args.output_dir, args.disable_tqdm = output_dir, True
        args.temperature, args.pooling = self.values["temperature"], self.values["pooling"]
        args.first_layer, args.last_layer = self.values["layers"]
        args.learning_rate, args.per_device_train_batch_size = (
            self.values["learning_rate"],
            self.values["batch_size"],
        )
        return args


def plan(settings: AlignmentBenchSettings, centre: SemCoTAlignmentConfig, num_layers: int) -> list[Point]:
    """Return the runs: the untrained encoder, the centre, and the other values of each factor at the centre.

    Args:
        settings: what is swept.
        centre: the configuration around which it is.
        num_layers: of the host.

    Raises:
        ValueError: for layers that the host does not have.
    """
    own = layer_range(centre.first_layer, centre.last_layer, num_layers)
    values = {
        "temperature": centre.temperature,
        "pooling": centre.pooling,
        "layers": own,
        "learning_rate": centre.learning_rate,
        "batch_size": centre.per_device_train_batch_size,
    }
    ranges = [_range_of(text) for text in settings.layers or []]
    for first, last in ranges:
        layer_range(first, last, num_layers)
    swept: dict[str, Sequence[Any]] = {
        "temperature": settings.temperatures,
        "pooling": settings.poolings,
        "layers": _neighbours(own, num_layers) if settings.layers is None else ranges,
        "learning_rate": settings.learning_rates,
        "batch_size": settings.batch_sizes,
    }
    points = [Point("untrained", values), Point("centre", values)]
    for factor in FACTORS:
        points += [
            Point(factor, {**values, factor: value})
            for value in dict.fromkeys(swept[factor])
            if value != values[factor]
        ]
    return points


def shown(value: Any) -> str:
    """Return a value as text.

    >>> shown((12, 15)), shown(1e-05), shown("mean"), shown(64)
    ('12-15', '1e-05', 'mean', '64')
    """
    if isinstance(value, tuple | list):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _neighbours(own: tuple[int, int], num_layers: int) -> list[tuple[int, int]]:
    """Return ranges of the same size a quarter of the depth before and behind, as far as the host reaches.

    >>> _neighbours((12, 15), 24), _neighbours((1, 1), 2)
    ([(6, 9), (18, 21)], [(0, 0)])
    """
    step = max(1, num_layers // 4)
    before = max(0, own[0] - step) - own[0]
    behind = min(num_layers - 1, own[1] + step) - own[1]
    return [(own[0] + shift, own[1] + shift) for shift in (before, behind) if shift]


def _range_of(text: str) -> tuple[int, int]:
    """Return (first, last) of a text such as "12-15"; one layer may be given as "12"."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise ValueError(f"layers={text!r}: write a range as first-last, counted from zero, such as 12-15.")
    return int(match[1]), int(match[2] or match[1])
