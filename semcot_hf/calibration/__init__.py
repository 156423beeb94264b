"""Calibration on validation questions: when a model's implicit answers are kept, and the answer prompt."""

from .rule import CalibrationOptions, Target, choose_rule

__all__ = ["CalibrationOptions", "Target", "choose_rule"]
