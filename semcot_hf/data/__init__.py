"""Datasets: schema, loading, generated tasks and checks."""

from .check import DataReport, check_dataset, clean_dataset
from .loading import load_reasoning_dataset
from .rationale import rationale_agrees
from .schema import COLUMNS, FEATURES, split_answer, split_steps
from .splits import SPLITS, normalise_question

__all__ = [
    "COLUMNS",
    "FEATURES",
    "SPLITS",
    "DataReport",
    "check_dataset",
    "clean_dataset",
    "load_reasoning_dataset",
    "normalise_question",
    "rationale_agrees",
    "split_answer",
    "split_steps",
]
