"""Flags that several sub-commands share, and how they become datasets and models."""

from dataclasses import dataclass, field

from trl import TrlParser

from ..data import load_reasoning_dataset
from ..demo import GENERATOR_PATH, HOST_PATH


@dataclass
class DataArguments:
    """Which questions."""

    dataset: str = field(
        default="coin_flip",
        metadata={"help": "A task (coin_flip, arithmetic, multiplication, graph), a Hub id, a file or a folder."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first so many evaluation rows."})


@dataclass
class ModelArguments:
    """Which models; the embedded ones by default."""

    host: str = field(default=str(HOST_PATH), metadata={"help": "Id or path of the host causal LM (frozen)."})
    generator: str = field(default=str(GENERATOR_PATH), metadata={"help": "Id or path of the generator."})


def parse(prog, dataclasses, argv):
    """Parse TRL-style flags and `--config file.yaml` into the dataclasses."""
    epilog = "--config FILE.yaml sets any of these flags by their names; flags given beside it win."
    return TrlParser(dataclasses, prog=prog, epilog=epilog).parse_args_and_config(args=argv)


def load_splits(arguments):
    """Train, validation and test rows of the dataset, cut to the sample limits; a missing split is `None`."""
    splits = load_reasoning_dataset(arguments.dataset)
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_eval_samples,
    }
    return {
        name: splits[name].select(range(min(limit, len(splits[name])))) if limit else splits[name]
        for name, limit in limits.items()
        if name in splits
    }


def resume_point(value):
    """`--resume_from_checkpoint`: a checkpoint's folder, or "true" for the last one in the output folder.

    >>> resume_point("true"), resume_point("runs/model/checkpoint-10"), resume_point(None)
    (True, 'runs/model/checkpoint-10', None)
    """
    return True if str(value).lower() == "true" else value
