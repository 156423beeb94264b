"""`Escalation`: confidences by hand, what it refuses, and the checkpoint's field."""

import json
import math

import pytest
import torch

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.storage import config_digest

LOGISTIC = {"kind": "logistic", "coefficients": [2.0, -1.0], "intercept": 0.5, "means": [0.6, 3.0], "scales": [0.1, 2]}
RULE = {"threshold": 0.5, "signals": ["answer_probability", "thought_entropy"], "calibration": LOGISTIC}
ROUTER = {"signals": ["host_probability"], "calibration": None, "threshold": 0.9, "sends": "at_once"}


def test_logistic_confidence_is_the_formula():
    signals = {"answer_probability": torch.tensor([0.9, 0.2]), "thought_entropy": torch.tensor([1.0, 7.0])}
    expected = [
        1 / (1 + math.exp(-(0.5 + 2 * (p - 0.6) / 0.1 - (entropy - 3) / 2))) for p, entropy in ((0.9, 1), (0.2, 7))
    ]
    found = Escalation.from_dict(RULE).confidence(signals)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert Escalation(0.5).confidence(signals).tolist() == pytest.approx([0.9, 0.2])


def test_a_signal_that_is_no_number_gives_no_confidence():
    rule = Escalation(0.5, calibration={"kind": "isotonic", "x": [0.5], "y": [0.75]})
    assert rule.confidence({"answer_probability": torch.tensor([math.nan, 0.1])}).tolist() == [0, 0.75]
    assert Escalation(0.5).confidence({"answer_probability": torch.tensor([math.nan])}).tolist() == [0]
    with pytest.raises(ValueError, match="signals thought_entropy are missing"):
        Escalation.from_dict(RULE).confidence({"answer_probability": torch.ones(1)})


def test_router():
    rule = Escalation(0.5, router=ROUTER)
    assert rule.router_confidence({"host_probability": torch.tensor([0.25])}).tolist() == [0.25]
    with pytest.raises(ValueError, match="has no router"):
        Escalation(0.5).router_confidence({})


@pytest.mark.parametrize("change", [{}, {"router": ROUTER}, {"expected": {"accuracy": 0.5}}], ids=str)
def test_dictionaries(change):
    rule = Escalation.from_dict({**RULE, **change})
    assert Escalation.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_what_an_argument_asks_for():
    own = Escalation.from_dict({**RULE, "max_reasoning_tokens": 9})
    assert Escalation.of(True, own.to_dict()) == own
    assert Escalation.of(0.25, own.to_dict()) == Escalation.from_dict({**own.to_dict(), "threshold": 0.25})
    assert Escalation.of(1, None) == Escalation(1.0)
    assert Escalation.of(RULE, None) == Escalation.from_dict(RULE)
    assert Escalation.of(own, None) is own
    with pytest.raises(ValueError, match="escalation=True.*semcot calibrate"):
        Escalation.of(True, None)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"threshold=.*from 0 to 1"):
            Escalation.of(value, None)
    for value in (False, "0.5", [0.5]):
        with pytest.raises(ValueError, match="escalation=.*must be True"):
            Escalation.of(value, None)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"threshold": "high"}, "threshold='high'"),
        ({"signals": []}, "signals"),
        ({"signals": "agreement"}, "signals='agreement'"),
        ({"signals": ["answer_probability", "mood"]}, "unknown are mood"),
        ({"signals": ["agreement", "agreement"]}, "twice"),
        ({"calibration": {"kind": "forest"}}, "'kind' must be one of logistic, isotonic"),
        ({"calibration": {**LOGISTIC, "means": [0.0]}}, "lengths"),
        ({"calibration": {**LOGISTIC, "scales": [0, 1]}}, "above 0"),
        ({"calibration": {**LOGISTIC, "intercept": math.inf}}, "finite"),
        ({"calibration": {"kind": "logistic"}}, "has the keys kind"),
        ({"calibration": {"kind": "isotonic", "x": [0], "y": [0]}}, "takes one signal"),
        ({"signals": ["agreement"], "calibration": {"kind": "isotonic", "x": [1, 0], "y": [0, 1]}}, "increasing"),
        ({"signals": ["agreement"], "calibration": {"kind": "isotonic", "x": [0, 1], "y": [0, 2]}}, "from 0 to 1"),
        ({"max_reasoning_tokens": 0}, "max_reasoning_tokens=0"),
        ({"expected": 0.9}, "expected=0.9"),
        ({"router": {}}, "router="),
        ({"router": {**ROUTER, "sends": "home"}}, "sends='home'"),
        ({"router": {**ROUTER, "signals": ["agreement"]}}, "unknown are agreement"),
        ({"router": {**ROUTER, "signals": ["host_entropy"]}}, "calibration=None"),
        ({"router": {**ROUTER, "threshold": 2}}, "router threshold=2"),
        ({"mood": 1}, "unknown keys mood"),
    ],
    ids=str,
)
def test_bad_values_are_refused_also_by_a_configuration(change, problem):
    for make in (Escalation.from_dict, lambda values: SemCoTConfig(escalation=values)):
        with pytest.raises(ValueError, match=problem):
            make({**RULE, **change})
    with pytest.raises(ValueError, match="lacks 'threshold'"):
        Escalation.from_dict({})


def test_a_checkpoint_keeps_it(tiny_semcot, tmp_path):
    model = tiny_semcot()
    before = config_digest(model)
    model.config.escalation = Escalation.from_dict({**RULE, "router": ROUTER}).to_dict()
    # Runs of a checkpoint go on after it was calibrated, and those of older versions go on.
    assert config_digest(model) == before
    model.config.includes_host = True
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.escalation == model.config.escalation
    assert SemCoTConfig(escalation=Escalation(0.5)).escalation == Escalation(0.5).to_dict()


def test_a_configuration_takes_a_rule(tiny_semcot, tmp_path):
    model = tiny_semcot(answer_prompt_ids=[9, 8])
    model.config.escalation = Escalation(0.5, max_reasoning_tokens=9)
    prompt = torch.tensor([[11, 12, 9, 8]])
    expected = model.generate(prompt, max_new_tokens=3, escalation=Escalation(0.5, max_reasoning_tokens=9))
    assert torch.equal(model.generate(prompt, max_new_tokens=3, escalation=True), expected)
    model.save_pretrained(tmp_path)
    assert SemCoTConfig.from_pretrained(tmp_path).escalation == Escalation(0.5, max_reasoning_tokens=9).to_dict()
