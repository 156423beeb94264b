"""Calibration: when a model's implicit answers are kept, and when its host reasons in words."""

from .rule import CalibrationOptions, Target, choose_rule

__all__ = ["CalibrationOptions", "Target", "choose_rule"]
