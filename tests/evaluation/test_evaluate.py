"""Tests of whole evaluations: the report's contract and figures, resuming, reports, plots, comparisons."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_llama, tiny_semcot_over
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.evaluation import CONTROLS, EvaluationConfig, compare_runs, evaluate, markdown_report, summarize_runs
from semcot_hf.evaluation.controls import verdict
from semcot_hf.evaluation.predictions import read_predictions
from semcot_hf.evaluation.summary import summarize
from semcot_hf.inference.prompting import with_answer_prompt

OPTIONS = dict(batch_size=5, max_new_tokens=6, progress=False, command="test", dataset_name="coin_flip")


@pytest.fixture(scope="module")
def dataset():
    return load_reasoning_dataset("coin_flip", split="test", num_samples=24, seed=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a SemCoT checkpoint with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = coin_flip_tokenizer()
    tiny_semcot_over(answering_host(tokenizer), tokenizer).save_pretrained(folder)
    with_answer_prompt(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved):
    return SemCoTForCausalLM.from_pretrained(saved)


@pytest.fixture(scope="module")
def tokenizer(saved):
    return AutoTokenizer.from_pretrained(saved)


@pytest.fixture(scope="module")
def finished(model, tokenizer, dataset, tmp_path_factory):
    """Folder and report of an evaluation that ran in one go."""
    folder = tmp_path_factory.mktemp("run")
    report = evaluate(
        model, tokenizer, dataset, output_dir=folder, latency_samples=3, token_counts=[1, 4], model_name="m", **OPTIONS
    )
    return folder, report


def without_times(folder):
    """Predictions and report of a folder as text, with measured times taken out."""
    texts = {}
    for path in sorted(folder.glob("predictions-*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(record.pop("seconds") > 0 and record.pop("crc32") for record in records)
        texts[path.name] = json.dumps(records)
    report = json.loads((folder / "report.json").read_text())
    for row in report["rows"]:
        del row["seconds_per_query"], row["seconds_per_query_p95"], row["share_of_cot_time"]
    del report["latency"]
    texts["report.json"] = json.dumps(report)
    return texts


def test_explicit_reasoning_has_its_own_limit(tokenizer, dataset, tmp_path):
    """Answers of each method equal those of a run in which its limit is everyone's."""
    # Untrained, so that its answers do not end by themselves.
    model = tiny_semcot_over(tiny_llama(tokenizer, 32, seed=0), tokenizer)
    few, rules = dataset.select(range(6)), dict(escalate="1", latency_samples=0, controls=False)
    methods = ["no_cot", "cot", "semcot", "escalated"]
    limits = {"both": dict(max_new_tokens=2, max_reasoning_tokens=5)} | {n: dict(max_new_tokens=n) for n in (2, 5)}
    made = {}
    for name, limit in limits.items():
        folder = tmp_path / str(name)
        report = evaluate(model, tokenizer, few, output_dir=folder, methods=methods, **{**OPTIONS, **rules, **limit})
        made[name] = {method: read_predictions(folder / f"predictions-{method}.jsonl") for method in methods}
        assert report["max_reasoning_tokens"] == (2 if name == 2 else 5)
        cut = [record["output"] for record in made[name]["cot"] if not record["finished"]]
        text = (folder / "report.md").read_text()
        assert cut and f"explicit CoT: {len(cut)} of 6 answers were cut off at {2 if name == 2 else 5} new" in text

    def texts(name, method):
        return [(record["output"], record["finished"]) for record in made[name][method]]

    for method, alike, other in (("cot", 5, 2), ("escalated", 5, 2), ("no_cot", 2, 5), ("semcot", 2, 5)):
        assert texts("both", method) == texts(alike, method) != texts(other, method), method
    # Its limit depends on each answer's route.
    assert "escalated: 6 of 6 answers were cut off at their limit of new tokens." in text
    # Reports of earlier versions have one limit.
    del report["max_reasoning_tokens"]
    assert "explicit CoT: 6 of 6 answers were cut off at 5 new tokens." in markdown_report(report)
    with pytest.raises(ValueError, match="max_reasoning_tokens: None there, 4 now"):
        evaluate(model, tokenizer, few, output_dir=tmp_path / "2", methods=methods,
                 **{**OPTIONS, **rules, "max_new_tokens": 2, "max_reasoning_tokens": 4})  # fmt: skip
    with pytest.raises(ValueError, match="max_reasoning_tokens=0 must lie"):
        EvaluationConfig(max_reasoning_tokens=0)


def test_report_keeps_its_contract(finished, dataset):
    folder, report = finished
    assert report == json.loads((folder / "report.json").read_text())
    assert report["answer_type"] == "yes_no" and report["command"] == "test" and report["seed"] == 0
    assert [row["method"] for row in report["rows"]] == ["no_cot", "cot", "semcot"]
    assert [row["implicit_tokens"] for row in report["rows"]] == [0, 0, 4]
    assert [row["control"] for row in report["controls"]] == list(CONTROLS)
    for row in report["rows"]:
        records = [
            json.loads(line) for line in (folder / f"predictions-{row['method']}.jsonl").read_text().splitlines()
        ]
        records.sort(key=lambda record: record["index"])
        assert [record["question"] for record in records] == dataset["query"][:]
        right = [record["extracted"] == record["answer"] for record in records]
        assert row["accuracy"] == sum(right) / 24 and row["n"] == 24
        assert row["new_tokens_per_query"] == sum(record["new_tokens"] for record in records) / 24
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert sum(group["n"] * group["accuracy"] for group in row["by_steps"]) == pytest.approx(sum(right))
        assert row["seconds_per_query"] == report["latency"]["methods"][row["method"]][0]["median"] > 0
    assert report["controls"][0]["accuracy"] == report["rows"][0]["accuracy"] > 0
    assert report["controls"][0]["p_vs_no_cot"] == 1.0
    assert [row["implicit_tokens"] for row in report["by_k"]] == [1, 4]
    assert report["by_k"][1]["accuracy"] == report["rows"][2]["accuracy"]
    assert {"python", "torch", "transformers", "trl", "platform", "cpu", "threads", "device"} <= set(
        report["environment"]
    )
    assert report["verdict"] in (folder / "report.md").read_text()
    for name in ("accuracy_vs_latency", "accuracy_by_steps", "accuracy_by_k"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.slow
def test_killed_and_resumed_equals_one_go(finished, saved, model, tokenizer, dataset, tmp_path):
    """A process is killed by the operating system in the middle of a control; a torn line is added to what it left."""
    script = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import conftest
from semcot_hf import SemCoTForCausalLM
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.evaluation import evaluate
from transformers import AutoTokenizer

def kill_in_a_control(description, share):
    if description == "mean":
        os.kill(os.getpid(), signal.SIGKILL)

dataset = load_reasoning_dataset("coin_flip", split="test", num_samples=24, seed=3)
model = SemCoTForCausalLM.from_pretrained({str(saved)!r})
tokenizer = AutoTokenizer.from_pretrained({str(saved)!r})
options = {dict(OPTIONS, output_dir=str(tmp_path))!r}
options["progress"] = kill_in_a_control
evaluate(model, tokenizer, dataset, latency_samples=3, token_counts=[1, 4], model_name="m", **options)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=280)
    assert killed.returncode == -9, killed.stderr
    mean, semcot = tmp_path / "predictions-mean.jsonl", tmp_path / "predictions-semcot.jsonl"
    assert len(mean.read_text().splitlines()) == 5 and not (tmp_path / "report.json").exists()
    with mean.open("a") as file:
        file.write(mean.read_text()[:700])
    kept = semcot.read_bytes()
    evaluate(
        model,
        tokenizer,
        dataset,
        output_dir=tmp_path,
        latency_samples=3,
        token_counts=[1, 4],
        model_name="m",
        **OPTIONS,
    )
    assert semcot.read_bytes() == kept
    assert without_times(tmp_path) == without_times(finished[0])


def test_finished_run_generates_nothing_again(finished, model, tokenizer, dataset, monkeypatch):
    def fail(**kwargs):
        raise AssertionError("generate was called")

    monkeypatch.setattr(model, "generate", fail)
    before = without_times(finished[0])
    again = evaluate(
        model,
        tokenizer,
        dataset,
        output_dir=finished[0],
        latency_samples=0,
        token_counts=[1, 4],
        model_name="m",
        **OPTIONS,
    )
    assert without_times(finished[0]) == before
    assert again["rows"][0]["seconds_per_query"] is None


def test_times_are_measured_again_only_under_other_conditions(
    finished, model, tokenizer, dataset, tmp_path, monkeypatch
):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    report = finished[1]
    (folder / "report.json").write_text(json.dumps(report))

    def fail(**kwargs):
        raise AssertionError("generate was called")

    options = dict(OPTIONS, output_dir=folder, token_counts=[1, 4], model_name="m")
    monkeypatch.setattr(model, "generate", fail)
    again = evaluate(model, tokenizer, dataset, latency_samples=3, **options)
    assert again["latency"] == report["latency"] and again["rows"] == report["rows"]
    changes = ({"latency_samples": 2}, {"latency_batch_sizes": [1, 2]}, {"methods": ["no_cot", "semcot"]})
    for change in changes:
        with pytest.raises(AssertionError, match="generate was called"):
            evaluate(model, tokenizer, dataset, **{**options, "latency_samples": 3, **change})
    written = json.loads((folder / "report.json").read_text())
    written["environment"]["cpu"] = "another one"
    (folder / "report.json").write_text(json.dumps(written))
    with pytest.raises(AssertionError, match="generate was called"):
        evaluate(model, tokenizer, dataset, latency_samples=3, **options)
    (folder / "report.json").write_text('{"latency": ')
    with pytest.raises(AssertionError, match="generate was called"):
        evaluate(model, tokenizer, dataset, latency_samples=3, **options)


def test_another_run_is_refused_in_the_same_folder(model, tokenizer, dataset, tmp_path):
    few = dataset.select(range(4))
    options = dict(OPTIONS, methods=["no_cot"], controls=False, latency_samples=0, output_dir=tmp_path)
    evaluate(model, tokenizer, few, **options)
    with pytest.raises(ValueError, match=r"another run \(max_new_tokens: 6 there, 7 now\).*overwrite=True"):
        evaluate(model, tokenizer, few, **{**options, "max_new_tokens": 7})
    with pytest.raises(ValueError, match=r"another run \(num_candidates: None there, 2 now\)"):
        evaluate(model, tokenizer, few, **options, num_candidates=2)
    weight = model.host.lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.01)
        with pytest.raises(ValueError, match="weights: "):
            evaluate(model, tokenizer, few, **options)
        report = evaluate(model, tokenizer, few, **options, overwrite=True)
    finally:
        weight.data.copy_(kept)
    assert report["rows"][0]["n"] == 4


def test_plain_causal_lm(model, tokenizer, dataset, finished):
    report = evaluate(model.host, tokenizer, dataset, latency_samples=0, **OPTIONS)
    assert [row["method"] for row in report["rows"]] == ["no_cot", "cot"]
    assert report["controls"] == [] and report["verdict"] is None
    for alone, inside in zip(report["rows"], finished[1]["rows"], strict=False):
        assert alone["accuracy"] == inside["accuracy"]


def test_answers_may_be_numbers_as_in_training(model, tokenizer, tmp_path):
    options = dict(OPTIONS, methods=["no_cot"], controls=False, latency_samples=0)
    rows = [{"query": "2 + 3?", "answer": 5}, {"query": "1 + 3?", "answer": 4.0}]
    report = evaluate(model, tokenizer, rows, **options, output_dir=tmp_path)
    written = [{"query": row["query"], "answer": f"{row['answer']:g}"} for row in rows]
    assert report["answer_type"] == "numeric"
    assert evaluate(model, tokenizer, written, **options, output_dir=tmp_path)["rows"] == report["rows"]


def test_bad_arguments_are_refused(model, tokenizer, dataset):
    with pytest.raises(ValueError, match="methods=.*leaves out what the controls are compared with"):
        evaluate(model, tokenizer, dataset, methods=["semcot"], **OPTIONS)
    with pytest.raises(ValueError, match="dataset is empty"):
        evaluate(model, tokenizer, dataset.select([]), **OPTIONS)
    with pytest.raises(ValueError, match="dataset row 1: gold='perhaps'"):
        rows = [dataset[0], {**dataset[1], "answer": "perhaps"}]
        evaluate(model, tokenizer, rows, answer_type="yes_no", **OPTIONS)
    with pytest.raises(ValueError, match="answer_prompt='\\\\nSo:' ends a prompt on the ids"):
        evaluate(model, tokenizer, dataset, answer_prompt="\nSo:", **OPTIONS)
    with pytest.raises(TypeError, match="unknown options task, k: EvaluationConfig has output_dir, answer_type,"):
        evaluate(model, tokenizer, dataset, task="yes_no", k=3, **OPTIONS)
    with pytest.raises(ValueError, match="batch_size=0 must lie in"):
        EvaluationConfig(batch_size=0)


def test_a_question_beyond_the_context_is_told_before_any_answer(model, tokenizer, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "generate", None)
    rows = [dataset[0], {**dataset[1], "query": " flips" * 490}, dataset[2]]
    options = {**OPTIONS, "methods": ["cot", "no_cot", "semcot"], "output_dir": tmp_path / "run", "max_new_tokens": 40}
    problem = r"dataset row 1, cot: a prompt of \d+ tokens, 0 implicit tokens and 40 new tokens are more than the"
    with pytest.raises(ValueError, match=problem):
        evaluate(model, tokenizer, rows, **options)
    assert not (tmp_path / "run").exists()


def records(verdicts, tokens=2):
    return [{"correct": right, "new_tokens": tokens, "finished": True} for right in verdicts]


def test_figures_by_hand():
    """10 questions: SemCoT answers 9, no CoT 1 of them, the controls none or the same as no CoT."""
    semcot, no_cot = [True] * 9 + [False], [True] + [False] * 9
    made = {
        "no_cot": records(no_cot),
        "semcot": records(semcot, tokens=3),
        "other_question": records([False] * 10),
        "mean": records(no_cot),
        "noise": records([False] * 10),
    }
    report = summarize(made, steps=[1] * 5 + [2] * 5, implicit_tokens=4, latency=None, seed=0)
    assert [row["accuracy"] for row in report["rows"]] == [0.1, 0.9]
    assert [(group["steps"], group["accuracy"], group["n"]) for group in report["rows"][1]["by_steps"]] == [
        (1, 1.0, 5),
        (2, 0.8, 5),
    ]
    assert [row["p_vs_semcot"] for row in report["controls"]] == [2 / 2**8, 2 / 2**9, 2 / 2**8, 2 / 2**9]
    assert [row["p_vs_no_cot"] for row in report["controls"]] == [1.0] * 4
    assert report["tokens_carry_reasoning"] is True
    [comparison] = report["comparisons"]
    assert (comparison["a"], comparison["b"], comparison["difference"]) == ("semcot", "no_cot", 0.8)


@pytest.mark.parametrize(
    ("no_cot", "noise", "reason"),
    [
        ([False] * 10, [True] * 9 + [False], "better than noise of the same norm (90.0 %, p = 1.00)."),
        ([True] * 6 + [False] * 4, [False] * 10, "better than no CoT (60.0 %, p = 0.25)."),
        ([True] * 8 + [False] * 2, [True] * 10, "better than no CoT (80.0 %, p = 1.00) or noise of the same norm"),
    ],
)
def test_verdict_names_the_condition_that_fails(no_cot, noise, reason):
    carries, sentence = verdict([True] * 9 + [False], no_cot, {"noise": noise})
    assert not carries and reason in sentence


def test_runs_are_compared_in_pairs(finished, model, tokenizer, dataset, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    options = dict(OPTIONS, methods=["no_cot"], controls=False, latency_samples=0)
    evaluate(model, tokenizer, dataset, output_dir=same, **options)
    [row] = compare_runs(finished[0], same)
    assert row["method"] == "no_cot" and row["difference"] == 0 and row["p"] == 1.0 and row["n"] == 24
    path = same / "predictions-no_cot.jsonl"
    lines = read_predictions(path)
    right = sum(line["correct"] for line in lines)
    path.write_text("".join(json.dumps({**line, "correct": False}) + "\n" for line in lines))
    [row] = compare_runs(finished[0], same)
    assert row["difference"] == right / 24 and row["p"] == min(1.0, 2 / 2**right)
    assert summarize_runs([finished[0], same])["no_cot"] == {"mean": pytest.approx(right / 24), "sd": 0.0, "n": 2}
    evaluate(model, tokenizer, dataset.select(range(5)), output_dir=other, **options)
    with pytest.raises(ValueError, match="not about the same questions"):
        compare_runs(finished[0], other)


def test_predictions_of_another_method_or_run_are_refused(finished, model, tokenizer, dataset, tmp_path):
    """Files of one dataset are alike; their checksums tell which run and method they are from."""
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    shutil.copy(folder / "predictions-noise.jsonl", folder / "predictions-mean.jsonl")
    with pytest.raises(ValueError, match="line 1 of .*predictions-mean.jsonl is damaged, or another run's"):
        read_predictions(folder / "predictions-mean.jsonl")
    options = dict(OPTIONS, output_dir=folder, latency_samples=3, token_counts=[1, 4], model_name="m")
    with pytest.raises(ValueError, match="line 1 of .*predictions-mean.jsonl is not a record of this run"):
        evaluate(model, tokenizer, dataset, **options)


def test_off_the_terminal_progress_is_silent(model, tokenizer, dataset, capfd):
    evaluate(model, tokenizer, dataset.select(range(4)), **{**OPTIONS, "progress": True}, latency_samples=0)
    assert capfd.readouterr() == ("", "")
