"""Evaluation: verdicts on answers, controls, latency, statistics and reports."""

from ..inference.answering import Answer, answer_questions
from ..inference.settings import ANSWER_METHODS
from .config import EvaluationConfig
from .controls import CONTROLS, ControlTokens
from .evaluate import evaluate
from .latency import measure_latency
from .plots import save_plots
from .report import markdown_report, print_report
from .statistics import (
    accuracy_interval,
    mcnemar,
    paired_difference_interval,
    summarize_latency,
    summarize_seeds,
)
from .summary import compare_runs, summarize_runs

__all__ = [
    "CONTROLS",
    "ANSWER_METHODS",
    "Answer",
    "ControlTokens",
    "EvaluationConfig",
    "accuracy_interval",
    "answer_questions",
    "compare_runs",
    "evaluate",
    "markdown_report",
    "mcnemar",
    "measure_latency",
    "paired_difference_interval",
    "print_report",
    "save_plots",
    "summarize_latency",
    "summarize_runs",
    "summarize_seeds",
]
