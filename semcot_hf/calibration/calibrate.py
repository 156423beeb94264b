"""`calibrate`: answers of a model on validation questions, and the rule of escalation that fits them."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.escalation_report import WAY_METHODS, signals_of, ways_of
from ..evaluation.evaluate import evaluate
from ..evaluation.predictions import read_predictions
from ..inference.settings import with_overrides
from ..modeling.configuration_semcot import SemCoTConfig, file_checksum
from ..modeling.escalation_semcot import ANSWER_SIGNALS, ROUTER_SIGNALS, SIGNALS, Escalation
from ..storage import write_atomically
from ..training.checkpoints import CHECKSUMS_NAME
from .config import CalibrationConfig
from .rule import CalibrationOptions, Target, choose_rule

# Those that need a second answer, or another model.
_COSTLY = ("agreement", "similarity")


@dataclass(frozen=True)
class Calibration:
    """A calibrated rule.

    Args:
        rule: the rule, with what it expects of new questions.
        without_router: why it has no router; `None` if it has one.
        report: of the evaluation that it was fitted to.
    """

    rule: Escalation
    without_router: str | None
    report: dict[str, Any]


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    config: CalibrationConfig | None = None,
    *,
    progress: bool | Callable[[str, float], object] = True,
    **overrides: Any,
) -> Calibration:
    """Answer validation questions at once, with implicit tokens and by explicit reasoning, and fit a rule to them.

    `evaluate` makes the answers; in `output_dir` an interrupted calibration continues, and another target or
    calibration of the same signals starts from the answers that are there. The model stays as it is:
    `write_escalation` puts the rule into a checkpoint.

    Args:
        model: a SemCoT model.
        tokenizer: its tokenizer.
        dataset: rows with `query` and `answer` that the model was not trained on, and that its accuracy is not
            reported on.
        config: see `CalibrationConfig`.
        progress: see `progress_bar`'s `show`.
        overrides: fields of the config, such as `target_accuracy`.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for a model without escalation or without one of the signals, questions that determine no
            confidence, or a target that cannot be reached.
    """
    config = with_overrides(config or CalibrationConfig(), overrides)
    signals = _signals(model, config)
    routers = list(ROUTER_SIGNALS if config.calibration == "logistic" else ROUTER_SIGNALS[:1]) if config.router else []
    own, model.config.escalation = model.config.escalation, None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(config.output_dir or temporary)
        try:
            report = evaluate(
                model,
                tokenizer,
                dataset,
                output_dir=str(folder),
                methods=list(WAY_METHODS.values()),
                controls=False,
                signals=_recorded(model, signals),
                alignment_encoder=config.alignment_encoder,
                answer_type=config.answer_type,
                overwrite=config.overwrite,
                batch_size=config.batch_size,
                max_new_tokens=config.max_new_tokens,
                max_reasoning_tokens=config.max_reasoning_tokens,
                seed=config.seed,
                latency_samples=config.latency_samples,
                progress=progress,
            )
        finally:
            model.config.escalation = own
        records = {name: read_predictions(folder / f"predictions-{name}.jsonl") for name in WAY_METHODS.values()}
    options = CalibrationOptions(
        Target.parse(config.target_accuracy),
        signals=signals,
        kind=config.calibration,
        router_signals=routers,
        max_reasoning_tokens=config.max_reasoning_tokens or config.max_new_tokens,
        seed=config.seed,
    )
    ways = ways_of(records, report["latency"] and report["latency"]["methods"])
    rule, reason = choose_rule(signals_of(records["semcot"]), ways, options)
    return Calibration(rule, reason, report)


def write_escalation(folder: str | Path, rule: Escalation) -> None:
    """Put a rule into a checkpoint's config.json, as a whole or not at all; no other file is touched.

    Raises:
        ValueError: as `check_checkpoint`.
    """
    path = check_checkpoint(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["escalation"] = rule.to_dict()
    if "config_checksum" in content:
        content["config_checksum"] = file_checksum(content)
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def check_checkpoint(folder: str | Path) -> Path:
    """Return the config.json of a SemCoT checkpoint that is changed in place.

    Raises:
        ValueError: when the folder has none, or a damaged one, or is a checkpoint that a training resumes from.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"model={str(folder)!r} is not a folder of a checkpoint, which is changed in place: pass one, such as a "
            "downloaded copy."
        )
    if Path(folder, CHECKSUMS_NAME).is_file():
        raise ValueError(
            f"model={str(folder)!r} is a checkpoint that a training resumes from, which takes it for damaged once it "
            "is changed: pass the folder of the trained model, or a copy without the file " + CHECKSUMS_NAME + "."
        )
    # Damaged files and those of other models are refused.
    SemCoTConfig.from_pretrained(str(folder))
    return path


def _recorded(model: Any, signals: list[str]) -> list[str]:
    """Return the signals that answers are stored with: also those that cost no time, for other calibrations."""
    free = [name for name in ANSWER_SIGNALS if name not in _COSTLY and model.signal_problem(name) is None]
    return [name for name in SIGNALS if name in (*free, *signals, *ROUTER_SIGNALS)]


def _signals(model: Any, config: CalibrationConfig) -> list[str]:
    """Return the signals that are fitted."""
    if not hasattr(model, "signal_problem"):
        raise ValueError(
            f"a model of type {model.config.model_type!r} has no implicit answers to escalate from: pass a SemCoT "
            "checkpoint."
        )
    if config.signals is None:
        if config.calibration == "isotonic":
            return ["answer_probability"]
        return [name for name in _recorded(model, []) if name in ANSWER_SIGNALS]
    for name in config.signals:
        problem = model.signal_problem(name)
        if problem is not None and not (name == "similarity" and config.alignment_encoder):
            remedy = "pass alignment_encoder" if name == "similarity" else "leave it out"
            raise ValueError(f"signals={config.signals}: this model has no {name!r}, since {problem}: {remedy}.")
    return list(config.signals)
