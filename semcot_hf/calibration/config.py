"""`CalibrationConfig`: the options of `calibrate` and the flags of `semcot calibrate`."""

from dataclasses import dataclass

from ..modeling.escalation_semcot import ANSWER_SIGNALS, SIGNALS
from ..options import check_range, option
from .confidence import KINDS
from .rule import Target


@dataclass
class CalibrationConfig:
    """What is calibrated, to what target, and how."""

    output_dir: str | None = option(
        None, "Folder of the answers, from which an interrupted calibration continues; by default they are not kept."
    )
    target_accuracy: str = option(
        "cot-1", "Accuracy to reach: a fraction such as 0.9, or that of explicit reasoning and some points, as cot-1."
    )
    calibration: str = option(
        "logistic", "logistic (regression over all signals) or isotonic (regression over one signal)."
    )
    signals: list[str] | None = option(
        None,
        f"Of {', '.join(ANSWER_SIGNALS)}; by default those of the model that cost no time, answer_probability alone "
        "for isotonic.",
    )
    router: bool = option(True, "Also fit a router that skips the thought where the host knows at once.")
    alignment_encoder: str | None = option(
        None, "Folder or id of the encoder of semcot align, for the signal similarity."
    )
    answer_type: str | None = option(
        None, "numeric, choice, yes_no, sequence or expression; by default inferred from the answers."
    )
    overwrite: bool = option(False, "Discard another run's answers in output_dir.")
    batch_size: int = option(64, "Questions answered at once.")
    max_new_tokens: int = option(256, "Most tokens of one answer.")
    max_reasoning_tokens: int | None = option(
        None, "Most tokens of an answer by explicit reasoning; by default max_new_tokens."
    )
    seed: int = option(0, "Seed of cross-fitting and of the choice of questions for latency.")
    latency_samples: int = option(
        20, "Questions whose latency is measured, one at a time; 0 takes the times of the batches."
    )

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "batch_size", "max_new_tokens")
        check_range(self, "[1, inf)", "max_reasoning_tokens", optional=True)
        check_range(self, "[0, inf)", "latency_samples")
        Target.parse(self.target_accuracy)
        if self.calibration not in KINDS:
            raise ValueError(f"calibration={self.calibration!r}: must be one of {', '.join(KINDS)}.")
        if self.signals is not None:
            unknown = [name for name in self.signals if name not in ANSWER_SIGNALS]
            if unknown or not self.signals:
                known = ", ".join(name for name in SIGNALS if name in ANSWER_SIGNALS)
                raise ValueError(f"signals={self.signals}: choose among {known}.")
            if self.calibration == "isotonic" and len(self.signals) > 1:
                raise ValueError(f"calibration='isotonic' takes one signal, got signals={self.signals}.")
