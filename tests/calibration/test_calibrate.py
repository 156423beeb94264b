"""Tests of `calibrate` and `semcot calibrate` on a tiny model: what is written, what stays, and what is refused."""

import json

import pytest
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_semcot_over
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.calibration import rule as rules
from semcot_hf.calibration.calibrate import calibrate, write_escalation
from semcot_hf.calibration.config import CalibrationConfig
from semcot_hf.cli.main import main
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.evaluation import evaluate
from semcot_hf.evaluation.escalation_report import signals_of
from semcot_hf.evaluation.predictions import read_predictions
from semcot_hf.inference.prompting import with_answer_prompt
from semcot_hf.modeling.escalation_semcot import Escalation

N = 40
OPTIONS = dict(batch_size=20, max_new_tokens=3, latency_samples=2, progress=False)


@pytest.fixture(autouse=True)
def one_partition(monkeypatch):
    monkeypatch.setattr(rules, "REPEATS", 1)
    monkeypatch.setattr(rules, "FOLDS", 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = coin_flip_tokenizer()
    tiny_semcot_over(answering_host(tokenizer), tokenizer).save_pretrained(folder)
    with_answer_prompt(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    return list(load_reasoning_dataset("coin_flip", split="validation", num_samples=N, seed=5))


@pytest.fixture
def loaded(saved):
    return SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_rule_is_fitted_to_the_answers(loaded, rows, tmp_path, monkeypatch):
    model, tokenizer = loaded
    found = calibrate(model, tokenizer, rows, target_accuracy="0.3", output_dir=str(tmp_path), **OPTIONS)
    assert model.config.escalation is None and [row["method"] for row in found.report["rows"]] == [
        "no_cot", "cot", "semcot"
    ]  # fmt: skip
    rule, records = found.rule, read_predictions(tmp_path / "predictions-semcot.jsonl")
    assert rule.signals == ["answer_probability", "min_token_probability"] and rule.max_reasoning_tokens == 3
    assert set(signals_of(records)) >= {*rule.signals, "host_probability", "host_entropy", "question_tokens"}
    expected = rule.expected
    assert expected["questions"] == N and expected["target_accuracy"] == 0.3
    assert expected["ways"]["implicit"]["accuracy"] == sum(record["correct"] for record in records) / N
    timed = found.report["latency"]["methods"]["semcot"][0]["mean"]
    assert expected["ways"]["implicit"]["seconds"] == pytest.approx(timed)
    # A second target starts from the answers that are there.
    monkeypatch.setattr(model, "generate", lambda *_, **__: pytest.fail("generate was called"))
    options = {**OPTIONS, "latency_samples": 0, "output_dir": str(tmp_path)}
    again = calibrate(model, tokenizer, rows, target_accuracy="0.2", router=False, **{**options})
    assert again.rule.calibration == rule.calibration and again.rule.router is None
    with pytest.raises(ValueError, match="is out of reach: the most accurate rule has"):
        calibrate(model, tokenizer, rows, target_accuracy="1", **options)
    model.config.escalation = rule.to_dict()
    with pytest.raises(ValueError, match="another run .max_new_tokens: 3 there, 4 now"):
        calibrate(model, tokenizer, rows, **{**options, "max_new_tokens": 4})
    assert model.config.escalation == rule.to_dict()


def test_explicit_reasoning_has_its_own_limit(loaded, rows):
    options = {**OPTIONS, "target_accuracy": "0.3", "router": False, "latency_samples": 0}
    found = calibrate(*loaded, rows, max_reasoning_tokens=4, **options)
    assert found.rule.max_reasoning_tokens == found.report["max_reasoning_tokens"] == 4
    assert found.report["max_new_tokens"] == 3
    with pytest.raises(ValueError, match="max_reasoning_tokens=0 must lie"):
        CalibrationConfig(max_reasoning_tokens=0)


def test_the_command_writes_config_json_alone(saved, rows, tmp_path, capsys):
    write_splits({"validation": rows, "test": rows[:8]}, tmp_path / "data")
    before, command = files(saved), ["calibrate", "--model", str(saved), "--dataset", str(tmp_path / "data")]
    command += ["--target_accuracy", "0.3", "--max_new_tokens", "3", "--latency_samples", "2", "--dtype", "float64"]
    command += ["--output_dir", str(tmp_path / "run")]
    assert main([*command, "--dry_run"]) == 0 and files(saved) == before
    assert "Nothing was written" in capsys.readouterr().out
    assert main(command) == 0
    printed, after = capsys.readouterr().out, files(saved)
    assert f"Calibrated on {N} questions for 0.3" in printed and "95 % interval" in printed
    assert {name for name in after if after[name] != before.get(name)} == {"config.json"} and {*after} == {*before}
    # The checksum of config.json is compared here.
    model, tokenizer = SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    rule = Escalation.from_dict(model.config.escalation)
    assert rule.expected["questions"] == N and rule.expected["target"] == "0.3"
    report = evaluate(
        model, tokenizer, rows[:12], methods=["no_cot", "cot", "semcot"], controls=False, batch_size=6,
        max_new_tokens=3, progress=False, latency_samples=0,
        signals=[*rule.signals, *(rule.router or {"signals": []})["signals"]],
    )  # fmt: skip
    assert report["escalation"]["point"]["threshold"] == rule.threshold
    assert report["escalation"]["promise"]["questions"] == N
    damaged = json.loads((saved / "config.json").read_text())
    damaged["escalation"]["threshold"] = 0.123
    (saved / "config.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="config.json of .* is not as it was saved"):
        write_escalation(saved, rule)
    (saved / "config.json").write_bytes(after["config.json"])
    # Without a validation split nothing is calibrated on test.
    write_splits({"test": rows}, tmp_path / "only_test")
    command[command.index("--dataset") + 1] = str(tmp_path / "only_test")
    assert main(command) == 1
    assert "split='validation'" in capsys.readouterr().err and files(saved) == after


def test_bad_input(loaded, rows, tmp_path, capsys):
    model, tokenizer = loaded
    with pytest.raises(ValueError, match="signals=.'agreement'.: this model has no 'agreement', since"):
        calibrate(model, tokenizer, rows, signals=["agreement"], **OPTIONS)
    with pytest.raises(ValueError, match="has no implicit answers to escalate from: pass a SemCoT checkpoint"):
        calibrate(model.host, tokenizer, rows, **OPTIONS)
    with pytest.raises(ValueError, match="a confidence needs at least 5 of each; calibrate on more questions"):
        calibrate(model, tokenizer, rows[:6], **OPTIONS)
    assert main(["calibrate", "--model", str(tmp_path), "--dataset", "coin_flip"]) == 1
    assert "is not a folder of a checkpoint" in capsys.readouterr().err
    for changes, message in [
        ({"target_accuracy": "90"}, "target_accuracy='90': must be a fraction"),
        ({"calibration": "forest"}, "calibration='forest': must be one of logistic, isotonic"),
        ({"signals": ["luck"]}, "signals=.'luck'.: choose among answer_probability"),
        ({"signals": ["agreement", "similarity"], "calibration": "isotonic"}, "takes one signal"),
        ({"batch_size": 0}, "batch_size=0 must lie in"),
    ]:
        with pytest.raises(ValueError, match=message):
            CalibrationConfig(**changes)
