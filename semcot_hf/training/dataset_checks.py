"""Checks of the datasets that a trainer is given: a single split, its columns, overlap of training and evaluation."""

from collections.abc import Collection, Hashable

from datasets import Dataset, IterableDataset
from transformers.utils import logging

logger = logging.get_logger(__name__)


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the columns of a dataset; those of the first row when a stream does not know them."""
    return dataset.column_names or list(next(iter(dataset), {}))


def check_single_split(dataset: object, name: str) -> None:
    """Raise a ValueError when `dataset` is a `DatasetDict`, or another dict of splits."""
    if isinstance(dataset, dict):
        raise ValueError(f"{name} holds the splits {', '.join(dataset)}: pass one of them, such as dataset['train'].")


def warn_of_overlap(train: Collection[Hashable], evaluation: Collection[Hashable], name: str, rows: str) -> None:
    """Warn when rows of an evaluation set are also in the training set.

    Args:
        train, evaluation: one key for each row.
        name, rows: the words for the evaluation set and its rows in the warning.
    """
    known = set(train)
    shared = sum(key in known for key in evaluation)
    if shared:
        logger.warning(
            f"{name}: {shared} of {len(evaluation)} {rows} are in train_dataset too, so its metrics are too high."
        )
