"""`Escalation`: the rule by which a model's own confidence decides whether its host reasons in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

# What is known of an implicit answer once it is made.
ANSWER_SIGNALS = (
    "answer_probability", "min_token_probability", "agreement", "thought_entropy", "thought_ended", "similarity",
)  # fmt: skip
# What is known before any token is made; a router goes by these.
ROUTER_SIGNALS = ("host_probability", "host_entropy", "question_tokens")
SIGNALS = (*ANSWER_SIGNALS, *ROUTER_SIGNALS)
ROUTES = ("at_once", "implicit", "explicit")
MAX_REASONING_TOKENS = 256

_KEYS = {"logistic": {"coefficients", "intercept", "means", "scales"}, "isotonic": {"x", "y"}}
_ROUTER_KEYS = {"signals", "calibration", "threshold", "sends"}


@dataclass
class Escalation:
    """When an implicit answer is kept, and when the host reasons in words instead.

    A checkpoint stores it as `config.escalation`, a dictionary; `semcot calibrate` writes it there.

    The signals of an answer are
    - "answer_probability": the geometric mean of the probabilities of its tokens, its end included;
    - "min_token_probability": the smallest of them;
    - "agreement": 1 if the answer with the most probable words alone (`mixture_top_k=1`) has the same tokens, else 0;
    - "thought_entropy": the mean entropy, in nats, of the generator's next-word distributions in its thought;
    - "thought_ended": 1 if the thought was ended before the limit, else 0;
    - "similarity": of thought and question by an alignment encoder, which the caller provides;
    and those of a question, known before any token is made,
    - "host_probability": the largest probability of a first token of the host's own answer, without implicit tokens;
    - "host_entropy": the entropy, in nats, of this distribution;
    - "question_tokens": the number of tokens before the answer prompt.

    Args:
        threshold: answers whose confidence is below it are replaced by explicit reasoning; from 0 (none) to 1.
        signals: names of the signals that `calibration` reads, in its order.
        calibration: how the signals become a confidence: `{"kind": "logistic", "coefficients": [...], "intercept": x,
            "means": [...], "scales": [...]}`, the logistic function of `intercept` plus the sum of `coefficients *
            (signals - means) / scales`, or for one signal `{"kind": "isotonic", "x": [...], "y": [...]}`, linear
            interpolation between these points. `None` takes "answer_probability" as it is.
        max_reasoning_tokens: most new tokens of explicit reasoning, its answer included.
        expected: what the calibration expects on new questions; for people, not read here.
        router: a rule on the signals of a question, `{"signals": [...], "calibration": {...}, "threshold": t,
            "sends": way}`. With the way "at_once", questions whose confidence is `t` or above are answered by the host
            without implicit tokens; with "explicit", those below `t` are reasoned about without an implicit answer.
            `None` makes an implicit answer to every question.

    Raises:
        ValueError: for a value out of range; the message names the argument, the value and the remedy.

    >>> rule = Escalation(0.8, calibration={"kind": "isotonic", "x": [0.5, 1.0], "y": [0.2, 0.9]})
    >>> rule.confidence({"answer_probability": torch.tensor([0.4, 0.75, 1.0])}).tolist()
    [0.2, 0.55, 0.9]
    """

    threshold: float
    signals: list[str] = field(default_factory=lambda: ["answer_probability"])
    calibration: dict[str, Any] | None = None
    max_reasoning_tokens: int = MAX_REASONING_TOKENS
    expected: dict[str, Any] | None = None
    router: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.threshold = _probability(self.threshold, "threshold")
        self.signals = _names(self.signals, SIGNALS, "signals")
        _check_calibration(self.calibration, len(self.signals), "calibration")
        limit = self.max_reasoning_tokens
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"escalation's max_reasoning_tokens={limit!r}: must be an integer of 1 or more.")
        if self.expected is not None and not isinstance(self.expected, Mapping):
            raise ValueError(f"escalation's expected={self.expected!r}: must be a dictionary or None.")
        if self.router is not None:
            self.router = _checked_router(self.router)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Escalation":
        """Return the rule of a dictionary as `to_dict` gives it."""
        if not isinstance(values, Mapping):
            raise ValueError(f"escalation={values!r}: must be a dictionary with 'threshold' and 'signals'.")
        known = [entry.name for entry in fields(cls)]
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown or "threshold" not in values:
            problem = f"has the unknown keys {', '.join(unknown)}" if unknown else "lacks 'threshold'"
            raise ValueError(f"escalation={dict(values)!r} {problem}: it has {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def of(cls, value: Any, own: Mapping[str, Any] | None) -> "Escalation":
        """Return the rule that an argument `escalation` asks for.

        Args:
            value: `True` for the checkpoint's own; a threshold, on the confidence of the checkpoint's calibration or
                else on the answer's probability; a rule, or its dictionary.
            own: the checkpoint's `config.escalation`.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        stored = None if own is None else cls.from_dict(own)
        if value is True:
            if stored is None:
                raise ValueError(
                    "escalation=True, but this checkpoint has no calibration (config.escalation is None): run "
                    "`semcot calibrate`, or pass a threshold on the answer's probability such as escalation=0.9."
                )
            return stored
        if isinstance(value, bool) or not _is_number(value):
            raise ValueError(
                f"escalation={value!r}: must be True, a threshold from 0 to 1, an Escalation, its dictionary, or None."
            )
        threshold = _probability(value, "threshold")
        return cls(threshold) if stored is None else replace(stored, threshold=threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a dictionary of JSON's types."""
        return asdict(self)

    @property
    def read_signals(self) -> list[str]:
        """Names of the signals that the confidence is made of: `signals`, or the one of a rule without calibration."""
        return self.signals if self.calibration is not None else ["answer_probability"]

    @property
    def all_signals(self) -> list[str]:
        """Names of all signals that the rule goes by, its router's too."""
        return list(dict.fromkeys([*self.read_signals, *(self.router or {}).get("signals", ())]))

    def confidence(self, signals: Mapping[str, Tensor]) -> Tensor:
        """Return the confidence (batch,), from 0 to 1, that the implicit answers are right.

        Args:
            signals: FloatTensor (batch,) by name; those of `read_signals`. Values that are no numbers give a
                confidence of 0.
        """
        return _calibrated(signals, self.read_signals, self.calibration)

    def router_confidence(self, signals: Mapping[str, Tensor]) -> Tensor:
        """Return the router's confidence (batch,) in the way that it is about; see `router`."""
        if self.router is None:
            raise ValueError("escalation has no router: calibrate one, or leave router_confidence out.")
        return _calibrated(signals, self.router["signals"], self.router["calibration"])

    def routed(self, signals: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return which questions the router sends its way, BoolTensor (batch,), and its confidence (batch,)."""
        if self.router is None:
            raise ValueError("escalation has no router: calibrate one, or leave routed out.")
        sure, threshold = self.router_confidence(signals), self.router["threshold"]
        return (sure >= threshold if self.router["sends"] == "at_once" else sure < threshold), sure


def _calibrated(signals: Mapping[str, Tensor], names: Sequence[str], calibration: Mapping[str, Any] | None) -> Tensor:
    missing = [name for name in names if name not in signals]
    if missing:
        raise ValueError(f"the signals {', '.join(missing)} are missing: escalation reads {', '.join(names)}.")
    values = torch.stack([signals[name].double() for name in names], dim=-1)
    if calibration is None:
        found = values[..., 0]
    elif calibration["kind"] == "logistic":
        coefficients, means, scales = (
            values.new_tensor(calibration[name]) for name in ("coefficients", "means", "scales")
        )
        found = torch.sigmoid(((values - means) / scales * coefficients).sum(dim=-1) + calibration["intercept"])
    else:
        found = _interpolated(values[..., 0], values.new_tensor(calibration["x"]), values.new_tensor(calibration["y"]))
    return found.nan_to_num(nan=0.0).clamp(0, 1)


def _interpolated(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate linearly between points of increasing x; beyond them the first and the last y hold.

    >>> _interpolated(torch.tensor([0.0, 1.5, 9.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    if len(x) == 1:
        return torch.where(values.isnan(), values, y[0])
    inside = values.clamp(x[0], x[-1])
    right = torch.searchsorted(x, inside.contiguous()).clamp(1, len(x) - 1)
    share = (inside - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1], y[right], share)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (str, bool)) and getattr(value, "ndim", 0) == 0


def _probability(value: Any, name: str) -> float:
    if not _is_number(value) or not 0 <= float(value) <= 1:
        raise ValueError(f"escalation's {name}={value!r}: must be a number from 0 to 1.")
    return float(value)


def _names(names: Any, known: Sequence[str], name: str) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"escalation's {name}={names!r}: must be a list of names among {', '.join(known)}.")
    wrong = [str(entry) for entry in names if entry not in known]
    if wrong or len({*names}) < len(names):
        problem = f"unknown are {', '.join(wrong)}" if wrong else "one of them stands there twice"
        raise ValueError(f"escalation's {name}={list(names)!r}: {problem}; choose among {', '.join(known)}.")
    return list(names)


def _check_calibration(calibration: Any, signals: int, name: str) -> None:
    """Raise ValueError for anything but a calibration of this number of signals, or `None`."""
    if calibration is None:
        return
    kind = calibration.get("kind") if isinstance(calibration, Mapping) else None
    if kind not in _KEYS:
        raise ValueError(f"escalation's {name}={calibration!r}: its 'kind' must be one of {', '.join(_KEYS)}.")
    if {*calibration} != {"kind", *_KEYS[kind]}:
        raise ValueError(
            f"escalation's {name} has the keys {', '.join(sorted(map(str, calibration)))}: a {kind} one has kind, "
            f"{', '.join(sorted(_KEYS[kind]))}."
        )
    lists = {key: calibration[key] for key in _KEYS[kind] - {"intercept"}}
    numbers = [calibration["intercept"]] if kind == "logistic" else []
    for key, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"escalation's {name} has {key}={values!r}: must be a list of numbers.")
        numbers += values
    if not all(_is_number(value) and math.isfinite(value) for value in numbers):
        raise ValueError(f"escalation's {name} holds {numbers!r}: all must be finite numbers.")
    lengths = {key: len(values) for key, values in lists.items()}
    if kind == "logistic":
        if any(length != signals for length in lengths.values()):
            raise ValueError(
                f"escalation's {name} has lists of lengths {lengths} for {signals} signals: give as many."
            )
        if not all(scale > 0 for scale in calibration["scales"]):
            raise ValueError(f"escalation's {name} has scales={calibration['scales']!r}: all must be above 0.")
        return
    x, y = calibration["x"], calibration["y"]
    if signals != 1:
        raise ValueError(f"escalation's {name} is isotonic, which takes one signal, got {signals}: use 'logistic'.")
    if not x or len(x) != len(y) or any(a >= b for a, b in zip(x, x[1:], strict=False)):
        raise ValueError(f"escalation's {name} has x={x!r}, y={y!r}: give as many of both, x increasing.")
    if not all(0 <= value <= 1 for value in y):
        raise ValueError(f"escalation's {name} has y={y!r}: all must lie from 0 to 1.")


def _checked_router(router: Any) -> dict[str, Any]:
    if not isinstance(router, Mapping) or {*router} != _ROUTER_KEYS:
        raise ValueError(f"escalation's router={router!r}: must be a dictionary of {', '.join(sorted(_ROUTER_KEYS))}.")
    if router["sends"] not in ("at_once", "explicit"):
        raise ValueError(f"escalation's router has sends={router['sends']!r}: must be 'at_once' or 'explicit'.")
    signals = _names(router["signals"], ROUTER_SIGNALS, "router signals")
    _check_calibration(router["calibration"], len(signals), "router calibration")
    if router["calibration"] is None and signals != ["host_probability"]:
        raise ValueError(
            f"escalation's router has calibration=None with signals={signals!r}: only ['host_probability'] is a "
            "confidence as it is."
        )
    return {**router, "signals": signals, "threshold": _probability(router["threshold"], "router threshold")}
