"""The pairs of stage 1: selected from a dataset, divided into training and validation, and checked for overlap."""

from datasets import Dataset, IterableDataset
from transformers.utils import logging

from ..data.splits import question_fraction
from ..training.dataset_checks import check_single_split, column_names, warn_of_overlap
from .config import SemCoTAlignmentConfig

logger = logging.get_logger(__name__)

PAIR_COLUMNS = ("reasoning", "condensed_reasoning")

# The validation split must not depend on a seed by which datasets are split or generated, because their training
# splits are selected by the same hash. This is the paper's number on arXiv.
_SPLIT_SEED = 2510_24940


def reasoning_pairs(dataset: Dataset | IterableDataset, name: str = "train_dataset") -> Dataset:
    """Return the rows of `dataset` that have both `PAIR_COLUMNS`, with these columns and `query` if there is one.

    Raises:
        ValueError: for a dict of splits, a missing column, or no row with both texts.
    """
    check_single_split(dataset, name)
    columns = column_names(dataset)
    if missing := [column for column in PAIR_COLUMNS if column not in columns]:
        raise ValueError(
            f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {', '.join(columns)}. "
            "Rename its columns, or load it by semcot_hf.data.load_reasoning_dataset."
        )
    selected = dataset.select_columns([column for column in (*PAIR_COLUMNS, "query") if column in columns])
    rows = Dataset.from_list(list(selected)) if isinstance(selected, IterableDataset) else selected
    kept = [
        index
        for index, pair in enumerate(_pairs(rows))
        if all(isinstance(text, str) and text.strip() for text in pair)
    ]
    if not kept:
        raise ValueError(
            f"{name} has {len(rows)} rows, none of them with both {' and '.join(PAIR_COLUMNS)}: pass pairs."
        )
    if len(kept) == len(rows):
        return rows
    logger.warning(
        f"{name}: {len(rows) - len(kept)} of {len(rows)} rows have an empty {' or '.join(PAIR_COLUMNS)} and are left "
        "out."
    )
    return rows.select(kept)


def training_and_validation(
    train_dataset: Dataset | IterableDataset | None,
    eval_dataset: Dataset | IterableDataset | None,
    args: SemCoTAlignmentConfig,
) -> tuple[Dataset | None, Dataset | None]:
    """Return training and validation pairs; without an `eval_dataset`, a share of the training pairs is held out.

    Raises:
        ValueError: for a dataset that `reasoning_pairs` refuses, an `eval_dataset` equal to `train_dataset`, a
            validation split that leaves too few pairs, and training pairs without negatives.
    """
    train = None if train_dataset is None else reasoning_pairs(train_dataset)
    validation = None
    if eval_dataset is not None:
        validation = reasoning_pairs(eval_dataset, "eval_dataset")
        if train is not None:
            _check_overlap(train, validation)
    elif train is not None and args.eval_strategy != "no":
        train, validation = hold_out(train, args.validation_fraction)
    if train is not None:
        _check_negatives(train)
        train = train.select_columns(list(PAIR_COLUMNS))
    return train, None if validation is None else validation.select_columns(list(PAIR_COLUMNS))


def _pairs(rows: Dataset) -> list[tuple[str, str]]:
    return list(zip(*(rows[column] for column in PAIR_COLUMNS), strict=True))


def _check_negatives(train: Dataset) -> None:
    for column in PAIR_COLUMNS:
        if len(set(train[column])) < 2:
            raise ValueError(
                f"train_dataset: all of its {len(train)} pairs to train on have the same {column}, so InfoNCE has no "
                "negatives. Pass pairs that differ in it."
            )


def hold_out(pairs: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Return training and validation rows: those whose question (or reasoning) hashes below `fraction` are held out.

    Equal questions stay together.

    Raises:
        ValueError: for a fraction that leaves too few pairs.
    """
    keys = pairs["query" if "query" in pairs.column_names else "reasoning"]
    held_out = [question_fraction(key, _SPLIT_SEED) < fraction for key in keys]
    train = pairs.select([i for i, out in enumerate(held_out) if not out])
    seen = set(train["reasoning"])
    validation = pairs.select([i for i, text in enumerate(pairs["reasoning"]) if held_out[i] and text not in seen])
    if len(train) < 2 or not len(validation):
        raise ValueError(
            f"validation_fraction={fraction} of {len(pairs)} pairs leaves {len(train)} to train and "
            f"{len(validation)} to validate on: pass an eval_dataset, another fraction, or eval_strategy='no'."
        )
    return train, validation


def _check_overlap(train: Dataset, validation: Dataset) -> None:
    train_pairs, validation_pairs = _pairs(train), _pairs(validation)
    if set(validation_pairs) <= set(train_pairs):
        raise ValueError(
            f"eval_dataset: all of its {len(validation)} pairs are in train_dataset too. Pass held-out pairs; without "
            "an eval_dataset, validation_fraction of train_dataset is held out."
        )
    warn_of_overlap(train_pairs, validation_pairs, "eval_dataset", "pairs")
