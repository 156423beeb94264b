"""Answer judging: what an output states as its answer, and whether that is the right one."""

from .check import check_answer, extract_answer, infer_answer_type

__all__ = ["check_answer", "extract_answer", "infer_answer_type"]
