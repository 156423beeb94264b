"""The demo at toy size: interrupted, gone on with, finished, and not overwritten."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.bench.tasks.pretraining import measure_accuracy
from semcot_hf.bench.tasks.rows import town_rows
from semcot_hf.cli.main import main
from semcot_hf.data.tasks import facts
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH, pipeline
from semcot_hf.demo.pipeline import DemoSettings, run_demo
from semcot_hf.evaluation import answer_questions

TOY = DemoSettings(train_samples=64, eval_samples=12, words_steps=2, batch_size=8)


def test_embedded_models_are_small_and_fit_each_other():
    size = sum(path.stat().st_size for path in HOST_PATH.parent.rglob("*") if path.is_file())
    assert size <= 6e6
    host, generator = (AutoModelForCausalLM.from_pretrained(path) for path in (HOST_PATH, GENERATOR_PATH))
    assert 3 * generator.num_parameters() <= host.num_parameters()
    vocabularies = [AutoTokenizer.from_pretrained(path).get_vocab() for path in (HOST_PATH, GENERATOR_PATH)]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.parametrize(("path", "asks"), [(HOST_PATH, None), (GENERATOR_PATH, town_rows(2, 5))])
def test_embedded_models_are_those_of_their_figures(path, asks):
    figures = json.loads((path / "figures.json").read_text())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert (figures["model"], figures["seed"]) == (path.name, 0)
    assert figures["parameters"] == model.num_parameters()
    measured = measure_accuracy(model, tokenizer, BENCH_TASKS["facts"], 200, asks)
    for method in ("cot", "no_cot"):
        # Three standard errors of 200 questions.
        share = figures[method]["accuracy"]
        error = 3 * (share * (1 - share) / 200) ** 0.5 + 0.005
        assert measured[method]["accuracy"] == pytest.approx(share, abs=error)


def test_neither_model_can_do_the_task_at_once_or_alone():
    """The host knows the facts and reasons in words; the generator follows the letter and has never met a fact."""

    def right(path, method, rows):
        answers = answer_questions(
            AutoModelForCausalLM.from_pretrained(path),
            AutoTokenizer.from_pretrained(path),
            [row["query"] for row in rows],
            method=method,
            batch_size=100,
            max_new_tokens=80,
        )
        return sum(
            answer.output.rpartition("Answer:")[2].strip() == row["answer"]
            for answer, row in zip(answers, rows, strict=True)
        )

    asked, towns = facts.generate(100, seed=9, split="test"), town_rows(2, 5)(100, 9, "test")
    assert right(HOST_PATH, "cot", asked) >= 95
    # The best guess from the town where the letter starts is right in 23 of 100.
    assert right(HOST_PATH, "no_cot", asked) <= 35
    assert right(GENERATOR_PATH, "cot", towns) >= 95
    assert right(GENERATOR_PATH, "cot", asked) == 0


def test_demo_goes_on_after_ctrl_c_and_keeps_its_result(tmp_path, monkeypatch, capfd):
    output = tmp_path / "demo"

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "evaluate", interrupt)
        run_demo(output, TOY)
    assert not output.exists()
    weights = load_file(tmp_path / "demo.unfinished" / "model" / "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "SemCoTDistillationTrainer", interrupt)
        report, answers = run_demo(output, TOY, command="semcot demo")
    assert {path.name for path in output.iterdir()} >= {
        "accuracy_vs_latency.png",
        "model",
        "report.json",
        "report.md",
    }
    assert not (tmp_path / "demo.unfinished").exists()
    kept = load_file(output / "model" / "model.safetensors")
    assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in kept)
    assert len(answers) == 3

    stored = json.loads((output / "report.json").read_text())
    assert stored["rows"] == report["rows"]
    assert [row["method"] for row in stored["rows"]] == [
        "no_cot",
        "cot",
        "semcot",
        "generator",
        "generator_no_cot",
    ]
    assert {control["control"] for control in stored["controls"]} >= {"none", "other_question", "mean"}
    for row in stored["rows"]:
        low, high = row["ci95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1 and row["n"] == TOY.eval_samples
        assert row["seconds_per_query"] > 0 and row["new_tokens_per_query"] > 0
    assert [row["implicit_tokens"] > 0 for row in stored["rows"]] == [False, False, True, False, False]
    assert all(row["p_vs_generator"] <= 1 for row in stored["rows"] if row["method"] != "generator")
    assert stored["command"] == "semcot demo" and stored["seed"] == 0 and stored["environment"]

    with pytest.raises(ValueError, match="holds a result already: choose another, or pass --overwrite"):
        run_demo(output, TOY)
    assert main(["demo", "--output_dir", str(output)]) == 1
    assert "holds a result already" in capfd.readouterr().err


def test_a_full_disk_leaves_no_result(tmp_path, monkeypatch, capfd):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr(pipeline, "_distill", full)
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 1
    assert "the disk is full (model.safetensors)" in capfd.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_other_settings_start_anew(tmp_path):
    work = tmp_path / "demo.unfinished"
    pipeline._start(work, TOY)
    (work / "model").mkdir()
    pipeline._start(work, TOY)
    assert (work / "model").exists()
    pipeline._start(work, DemoSettings())
    assert not (work / "model").exists()
