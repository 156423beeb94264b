"""The bench of methods as a whole: runs that are kept, the search, the report, the command."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from semcot_hf.bench import method_run as runs
from semcot_hf.bench.catalogue import SOFT_WORDS
from semcot_hf.bench.method_run import QuestionSet, RunSettings, run_method
from semcot_hf.bench.recipe import Recipe
from semcot_hf.bench.report import markdown, overview, write_report
from semcot_hf.bench.run import BenchSettings, _run_settings, run_bench
from semcot_hf.bench.summary import paired_p_value, seeds_interval, summarize_task
from semcot_hf.bench.tasks import pretraining as hosts
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.data.splits import normalise_question
from semcot_hf.data.tasks import coin_flip
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH
from semcot_hf.evaluation.statistics import accuracy_interval

OTHER_GENERATOR = Path(__file__).parents[2] / "examples" / "bench" / "models" / "graph" / "generator"
SMALL = {
    "steps": 2,
    "batch_size": 4,
    "train_questions": 40,
    "validation_questions": 6,
    "eval_questions": 8,
    "latency_samples": 2,
}


BUDGET = {"learning_rates": [1e-3], "search_share": 0.5}


def settings(**changes):
    options = {
        "task": "coin_flip",
        "method": "no_cot",
        "seed": 0,
        "host": str(HOST_PATH),
        "generator": str(GENERATOR_PATH),
        "num_implicit_tokens": 2,
        "steps_per_token": 3,
        "soft_words": Recipe(),
        "learning_rates": (1e-3,),
        "search_share": 0.5,
        "device": "cpu",
    }
    return RunSettings(**{**options, **SMALL, **changes})


def questions():
    splits = (coin_flip.generate(count, seed=1, split=split) for count, split in ((40, "train"), (6, "validation")))
    return QuestionSet(*splits, coin_flip.generate(8, seed=1, split="test"), "yes_no", 16)


@pytest.mark.slow
def test_semcot_is_timed_compiled_too_where_asked(tmp_path, captured, capturing):
    small = settings(method="semcot_no_alignment", eval_questions=2)
    made = run_method(small, questions(), tmp_path / "semcot", compiled_latency=True)
    # The generator, and the forward of either host, each with a graph at least.
    assert len(captured) == 3 and capturing.graphs >= 3
    # Two layers of the host's ten, their own word embeddings, and a projection.
    assert 0.2 < made["training"]["generator_share"] < 0.3
    assert all(made["latency"][name] > 0 for name in ("ratio", "compiled_generator_ratio", "compiled_ratio"))
    plain = run_method(settings(), questions(), tmp_path / "no_cot", compiled_latency=True)
    assert len(captured) == 3 and "compiled_ratio" not in plain["latency"]


def test_a_compiled_forward_lasts_for_its_own_calls(tiny_lm, captured):
    host = tiny_lm()
    asked = []
    timed = runs._with_compiled_forward(host, lambda batch: asked.append((batch, "forward" in vars(host))))
    timed(["a"])
    assert asked == [(["a"], True)] and len(captured) == 1 and "forward" not in vars(host)


def test_a_finished_run_is_kept_whatever_is_asked_of_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    made = run_method(settings(), questions(), folder)
    assert made["training"]["seen_questions"] == 8 and made["training"]["trainable_parameters"] > 1_000_000
    assert made["training"]["operations"] > 2 * 3 * 1_000_000 * 8
    assert made["report"]["rows"][0]["n"] == 8 and made["latency"]["ratio"] > 0
    assert not (folder / "work").exists()
    trainings = []
    monkeypatch.setattr(runs, "_train", lambda *args: trainings.append(args) or 1 / 0)
    assert run_method(settings(), questions(), folder) == made and not trainings
    with pytest.raises(ValueError, match=r"holds another run \(steps: 2 there, 3 now\)"):
        run_method(settings(steps=3), questions(), folder)
    others = replace(questions(), test=coin_flip.generate(8, seed=2, split="test"))
    with pytest.raises(ValueError, match=r"holds another run \(test: .*'digest'.* there, .* now\)"):
        run_method(settings(), others, folder)
    assert run_method(settings(), questions(), folder) == made
    # As written before runs told their questions.
    del made["questions"]
    (folder / "run.json").write_text(json.dumps(made))
    assert run_method(settings(), others, folder) == made


def test_the_search_takes_the_rate_that_is_best_on_validation_and_is_made_once(tmp_path, monkeypatch):
    accuracies = {3e-4: 0.5, 1e-3: 0.75, 2e-3: 0.75}
    asked = []

    def train(settings, questions, rate, steps, work):
        asked.append((rate, steps))
        return rate, 1.0

    def accuracy(trained, settings, questions, rows):
        assert rows == questions.validation
        return accuracies[trained]

    monkeypatch.setattr(runs, "_train", train)
    monkeypatch.setattr(runs, "_accuracy", accuracy)
    given = settings(learning_rates=tuple(accuracies), steps=10)
    best, found = runs._search(given, questions(), tmp_path / "search.json", tmp_path)
    assert best == 1e-3 and asked == [(3e-4, 5), (1e-3, 5), (2e-3, 5)]
    again, _ = runs._search(
        settings(learning_rates=tuple(accuracies), steps=10, seed=2), questions(), tmp_path / "search.json", tmp_path
    )
    assert again == best and len(asked) == 3
    runs._search(given, replace(questions(), train=questions().validation), tmp_path / "search.json", tmp_path)
    assert len(asked) == 6


def test_the_paired_test_agrees_with_the_binomial_one_on_one_seed():
    a, b = np.zeros((1, 40)), np.zeros((1, 40))
    a[0, :9], b[0, 9:10] = 1, 1
    assert paired_p_value(a, b, resamples=99_999) == pytest.approx(2 * (1 + 10) / 2**10, abs=2e-3)
    assert paired_p_value(a, b) == paired_p_value(b, a)
    repeated = np.repeat(a, 3, axis=0), np.repeat(b, 3, axis=0)
    assert paired_p_value(*repeated) == paired_p_value(a, b)


def test_the_interval_of_several_seeds_covers_their_spread():
    rng = np.random.default_rng(1)
    verdicts = rng.random((3, 400)) < np.array([[0.8], [0.9], [0.99]])
    low, high = seeds_interval(verdicts)
    drawn = []
    for _ in range(2_000):
        rows = verdicts[rng.integers(3, size=3)]
        drawn.append(rows[:, rng.integers(400, size=400)].mean())
    slow = np.percentile(drawn, [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(slow), abs=0.006)
    # Of the questions alone: 0.86 to 0.92.
    assert low < 0.84 and high > 0.95 and seeds_interval(verdicts) == (low, high)
    assert seeds_interval(verdicts[:1]) == accuracy_interval(verdicts[0].sum(), 400)
    for share in (0, 1):
        assert seeds_interval(np.full((3, 400), share)) == accuracy_interval(400 * share, 400)


def fake_run(folder, method, accuracy, ratio, seed=0, n=200, generator_share=None, **compiled):
    verdicts = [index < accuracy * n for index in range(n)]
    name = {"no_cot": "no_cot", "cot": "cot"}.get(method, "semcot")
    others = ["no_cot", "other_question", "mean", "noise"] if name == "semcot" else []
    (folder / "evaluation").mkdir(parents=True)
    for file, share in [(name, accuracy), *((other, 0.5) for other in others)]:
        lines = [json.dumps({"index": index, "correct": index < share * n}) for index in range(n)]
        (folder / "evaluation" / f"predictions-{file}.jsonl").write_text("\n".join(lines) + "\n")
    row = {"accuracy": sum(verdicts) / n, "n": n, "new_tokens_per_query": 2.0, "implicit_tokens": 4, "by_steps": []}
    run = {
        "settings": {**SMALL, "task": "coin_flip", "method": method, "seed": seed, **BUDGET},
        "training": {
            "seconds": 1.0,
            "trainable_parameters": 5,
            "seen_questions": 8,
            "learning_rate": 1e-3,
            "generator_share": generator_share,
        },
        "latency": {"ratio": ratio, "seconds": 0.1, **compiled},
        "report": {
            "rows": [{"method": name, **row}],
            "controls": [{"control": other, "accuracy": 0.5} for other in ("none", *others[1:])],
            "environment": dict.fromkeys(("cpu", "threads", "device", "torch", "transformers", "trl"), "x"),
        },
    }
    return run, folder


def test_the_report_compares_every_method_with_explicit_cot_no_cot_and_soft_words(tmp_path):
    figures = {"compiled_generator_ratio": 1.25, "compiled_ratio": 1.35}
    made = [
        fake_run(tmp_path / "cot", "cot", 1.0, 9.0),
        fake_run(tmp_path / "codi", "codi", 0.9, 2.0),
        fake_run(tmp_path / "pause", "pause", 0.99, 1.1),
        fake_run(tmp_path / "soft", SOFT_WORDS, 0.98, 1.2, generator_share=0.33, **figures),
    ]
    rows = {row["method"]: row for row in summarize_task(made)["rows"]}
    assert list(rows) == ["cot", "pause", "codi", SOFT_WORDS]
    assert rows["codi"]["p_against_soft_words"] < 0.001 and rows["pause"]["p_against_soft_words"] > 0.1
    assert rows[SOFT_WORDS]["p_against_soft_words"] is None
    # Each control answers as many questions as no tokens do, and the same ones.
    assert rows[SOFT_WORDS]["control_p_values"] == dict.fromkeys(("other_question", "mean", "noise"), 1.0)
    assert rows["cot"]["control_p_values"] == {}
    report = write_report(made, tmp_path / "out", command="x")
    written = (tmp_path / "out/report.md").read_text()
    assert markdown(report) == written
    row = next(line for line in written.splitlines() if line.startswith("| SemCoT (soft words) |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "98.0 %" and cells[4:8] == [
        "50.0, 50.0, 50.0, 50.0",
        "1.0000, 1.0000, 1.0000",
        "1.20",
        "1.25, 1.35",
    ]
    assert cells[10] == "0.33"
    # A control that answers other questions than no tokens do.
    folder, n = tmp_path / "soft" / "evaluation", 200
    lines = [json.dumps({"index": index, "correct": index >= n / 2}) for index in range(n)]
    (folder / "predictions-mean.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    lines = [json.dumps({"index": index, "correct": index < n / 10}) for index in range(n)]
    (folder / "predictions-noise.jsonl").write_text("\n".join(lines) + "\n")
    p_values = summarize_task(made)["rows"][-1]["control_p_values"]
    assert p_values["mean"] > 0.9 and p_values["noise"] < 0.001 and p_values["other_question"] == 1.0


def test_seeds_that_lie_apart_have_a_wide_interval(tmp_path):
    made = [fake_run(tmp_path / str(seed), "pause", share, 2.0, seed) for seed, share in enumerate((0.4, 0.9))]
    row = summarize_task(made)["rows"][0]
    assert row["verdicts"] == ["1" * 80 + "0" * 120, "1" * 180 + "0" * 20]
    assert row["accuracy"] == 0.65 and row["ci95"][0] < 0.41 and row["ci95"][1] > 0.89


def test_the_overview_tells_what_there_is():
    timed = {"accuracy": 0.5, "latency_ratio": 1.25, "compiled_generator_ratio": None, "controls": {}}
    rows = [{"method": "no_cot", **timed}, {"method": "pause", "title": "Pause", **timed}]
    peer = {"method": "codi", "title": "CODI", **timed, "accuracy": 0.75, "latency_ratio": None}
    best = {
        "method": "semcot_soft_words",
        **timed,
        "controls": {"other_question": 0.125},
        "compiled_generator_ratio": 1.125,
    }
    *_, first, second = overview(
        {"tasks": [{"task": "one", "rows": rows}, {"task": "two", "rows": [*rows, peer, best]}]}
    )
    assert first == "| one | 50.0 | – | Pause 50.0 (1.25) | – | – | – | – |"
    assert second == "| two | 50.0 | – | CODI 75.0 | – | 50.0 | 12.5 | 1.25 (1.12) |"


def test_runs_that_cannot_be_compared_are_not_reported_together(tmp_path):
    one, other = fake_run(tmp_path / "a", "no_cot", 0.5, 1.0), fake_run(tmp_path / "b", "pause", 0.6, 2.0)
    # Runs of earlier versions do not tell their questions.
    told = {split: {"rows": 7, "digest": split} for split in ("train", "validation", "test")}
    other[0]["questions"] = told
    report = write_report([one, other], tmp_path / "out", command="x")
    budget = report["tasks"][0]["budget"]
    assert [budget[f"{split}_questions"] for split in ("train", "validation", "eval")] == [7, 7, 200]
    written = (tmp_path / "out/report.md").read_text()
    assert "of 7 training questions" in written and "200 test questions" in written
    # None of their questions tell their steps.
    assert "number of reasoning steps" not in written and not (tmp_path / "out/difficulty-coin_flip.png").exists()
    other[0]["settings"]["steps"] = 5
    with pytest.raises(ValueError, match=r"coin_flip differ in steps \(2: no_cot/seed0; 5: pause/seed0\)"):
        write_report([one, other], tmp_path / "out", command="x")
    other[0]["settings"]["steps"] = 2
    one[0]["questions"] = {**told, "test": {"rows": 7, "digest": "others"}}
    with pytest.raises(ValueError, match=r"differ in test questions \(others: no_cot/seed0; test: pause/seed0\)"):
        write_report([one, other], tmp_path / "out", command="x")


@pytest.mark.parametrize("task", BENCH_TASKS)
def test_tasks_have_separate_splits_and_lessons_up_to_their_difficulty(task):
    own = BENCH_TASKS[task]
    texts = {
        split: {normalise_question(row["query"]) for row in own.generate(60, 0, split)} for split in ("train", "test")
    }
    assert len(texts["train"]) == len(texts["test"]) == 60 and not texts["train"] & texts["test"]
    steps = [max(len(row["steps"]) for row in lesson(60, 0)) for lesson, _ in own.lessons]
    assert steps[0] == min(steps) and steps[-1] == max(len(row["steps"]) for row in own.generate(60, 0, "train"))


def test_equations_alternate_with_words_where_a_lesson_asks_for_both():
    reasoning = [row["reasoning"] for row in BENCH_TASKS["arithmetic"].lessons[0][0](6, 0)]
    assert [text.startswith("Now ") for text in reasoning] == [True, False] * 3
    assert not any(row["reasoning"].startswith("Now") for row in BENCH_TASKS["arithmetic"].generate(6, 0))


def test_multiplication_is_learned_with_bare_words_in_every_lesson():
    for lesson, _ in BENCH_TASKS["multiplication"].lessons:
        assert [index for index, row in enumerate(lesson(20, 0)) if row.get("given")] == [0, 8, 16]


@pytest.mark.parametrize(("task", "every"), [("multiplication", 2), ("graph", 3), ("arithmetic", 3)])
def test_a_host_reads_bare_words_and_does_not_learn_to_write_them(task, every):
    own = BENCH_TASKS[task]
    rows = own.host_rows(every, 0)
    assert [bool(row.get("given")) for row in rows] == [True] + [False] * (every - 1)
    assert rows[0]["reasoning"] == rows[0]["words"].removeprefix(own.soft_words.thought).rstrip(".")
    tokenizer = hosts.train_tokenizer(own)
    made = hosts.training_rows(tokenizer, ((own.host_rows, 1),), 0.0, seed=0)
    learned = [tokenizer.decode([label for label in row["labels"] if label != -100]) for row in made]
    texts = [tokenizer.decode(row["input_ids"]) for row in made]
    assert {text.startswith("\nAnswer:") for text in learned} == {True, False}
    for text, part in zip(texts, learned, strict=True):
        reasoning = text.partition("<|assistant|>")[2].partition("\nAnswer:")[0]
        if part.startswith("\nAnswer:"):
            assert text.endswith(part) and len(reasoning.split()) == (own.soft_words.tokens or own.num_implicit_tokens)
            assert reasoning.startswith(" ") and not reasoning.endswith(".")
        else:
            assert text.endswith(reasoning + "\nAnswer:" + part.partition("\nAnswer:")[2])
            assert part.startswith(reasoning) and not reasoning.startswith(" ")


@pytest.mark.parametrize(
    "task", [name for name, own in BENCH_TASKS.items() if own.soft_words.projection == "vocabulary"]
)
def test_words_are_one_token_each_and_tell_the_answer(task):
    own = BENCH_TASKS[task]
    tokenizer, rows = hosts.train_tokenizer(own), own.generate(300, 0, "train")
    for row in rows:
        thought, *words = row["words"].rstrip(".").split()
        assert thought == own.soft_words.thought
        digits = [word[-1] for word in words] + [words[-1][:-1] or "0"]
        assert (" ".join(digits) if task == "multiplication" else words[-1]) == row["answer"]
        tokens = tokenizer(row["words"], add_special_tokens=False)["input_ids"]
        assert len(tokens) == 1 + (own.soft_words.tokens or own.num_implicit_tokens) + 1, (
            tokenizer.convert_ids_to_tokens(tokens)
        )


def test_words_of_coin_flips_tell_the_state_that_is_left():
    own = BENCH_TASKS["coin_flip"]
    tokenizer, rows = hosts.train_tokenizer(own), own.generate(300, 0, "train")
    words = {"yes": " now heads.", "no": " now tails."}
    assert all(row["words"] == words[row["answer"]] for row in rows)
    for text in words.values():
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens[:1]) == own.soft_words.thought and len(tokens) == 3


@pytest.mark.slow
def test_models_of_a_task_are_made_once_and_the_host_starts_as_its_generator(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    by_length, rows, spans, earlier_tokens = [], hosts.training_rows, [], hosts.EarlierTokens

    def noted(*args):
        by_length.append(args[-1])
        return rows(*args)

    def given(span, seed):
        spans.append(span)
        return earlier_tokens(span, seed)

    monkeypatch.setattr(hosts, "training_rows", noted)
    monkeypatch.setattr(hosts, "EarlierTokens", given)
    own = replace(BENCH_TASKS["graph"], by_length=True)
    host, generator = hosts.make_models(own, tmp_path, steps_factor=0.001, eval_samples=2)
    made = os.stat(host / "figures.json").st_mtime_ns
    assert json.loads((host / "figures.json").read_text())["cot"]["n"] == 2
    assert hosts.make_models(BENCH_TASKS["graph"], tmp_path)[0] == host
    assert os.stat(host / "figures.json").st_mtime_ns == made
    # The generator's batches where its task asks for it, and never the host's, whose kinds of rows share each batch.
    assert by_length == [True, False] and not BENCH_TASKS["graph"].by_length
    # Earlier tokens are for the generator alone, where its task asks for them.
    assert spans == [own.earlier_tokens] and BENCH_TASKS["coin_flip"].earlier_tokens is None
    small = AutoModelForCausalLM.from_pretrained(generator)
    ids = torch.arange(20, 40)[None]
    torch.testing.assert_close(hosts.expand(small, 5)(ids).logits, small(ids).logits)
    assert small.num_parameters() <= AutoModelForCausalLM.from_pretrained(host).num_parameters() / 3
    # A deeper host from the same generator.
    (tmp_path / "deep").mkdir()
    shutil.copytree(generator, tmp_path / "deep/generator")
    deep, same = hosts.make_models(
        BENCH_TASKS["graph"], tmp_path / "deep", host_layers=12, steps_factor=0.001, eval_samples=2
    )
    assert AutoModelForCausalLM.from_pretrained(deep).config.num_hidden_layers == 12
    assert (same / "model.safetensors").read_bytes() == (generator / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"host_layers=1: .* pass at least its layers, 2"):
        hosts.make_models(BENCH_TASKS["graph"], tmp_path / "shallow", host_layers=1)
    assert not (tmp_path / "shallow").exists()


@pytest.mark.slow
def test_a_training_of_models_that_was_cut_off_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(hosts, "SAVE_STEPS", 2)
    monkeypatch.setattr(hosts, "LOG_STEPS", 2)
    monkeypatch.setattr(hosts, "BATCH_SIZE", 4)
    made = {"steps_factor": 0.005, "eval_samples": 2}
    whole = hosts.make_models(BENCH_TASKS["graph"], tmp_path / "whole", **made)
    cut = []

    def cut_off(self, args, state, control, **kwargs):
        if state.global_step == 5 and not cut:
            cut.append(state.max_steps)
            raise KeyboardInterrupt

    monkeypatch.setattr(hosts._Progress, "on_step_end", cut_off, raising=False)
    with pytest.raises(KeyboardInterrupt):
        hosts.make_models(BENCH_TASKS["graph"], tmp_path / "cut", **made)
    # Settings stand in the folder's name, so that others do not go on from there; a checkpoint that was being written
    # is passed over.
    training = tmp_path / "cut/generator.training-seed0-x0.005"
    assert cut == [8] and list((tmp_path / "cut").iterdir()) == [training]
    (training / "checkpoint-6").mkdir()
    resumed = hosts.make_models(BENCH_TASKS["graph"], tmp_path / "cut", **made)
    told = capsys.readouterr().err
    assert "generator: step 8 of 8, loss" in told and "about 0 min left" in told
    assert json.loads((resumed[1] / "figures.json").read_text())["resumed_at_step"] == 4
    assert "resumed_at_step" not in json.loads((resumed[0] / "figures.json").read_text())
    for path, other in zip(whole, resumed, strict=True):
        weights, others = (load_file(folder / "model.safetensors") for folder in (path, other))
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["generator", "host"]


def test_batches_hold_rows_of_one_length_and_every_row_once():
    import torch

    lengths = torch.randint(10, 200, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    order = hosts.bucket_by_length(lengths, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(2000))
    window = hosts.WINDOW_BATCHES * hosts.BATCH_SIZE
    assert all(index // window == place // window for place, index in enumerate(order))
    batches = [[lengths[index] for index in order[start : start + 64]] for start in range(0, 2000, 64)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert sum(lengths) > 0.8 * padded
    assert [max(batch) for batch in batches[:8]] != sorted(max(batch) for batch in batches[:8])
    own = BENCH_TASKS["arithmetic"]
    tokenizer = hosts.train_tokenizer(own)
    sorted_rows, mixed = (
        hosts.training_rows(tokenizer, own.lessons[:1], 0.0, 0, 0.05, by_length=by_length)["input_ids"]
        for by_length in (True, False)
    )
    assert sorted_rows != mixed and sorted(sorted_rows) == sorted(mixed)


@pytest.mark.slow
def test_the_command_runs_and_goes_on_where_it_was(tmp_path):
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-m", "semcot_hf.cli.main", "bench", "methods", "--methods", "pause", "no_cot"]
    command += ["--seeds", "0", "--learning_rates", "1e-3", "--output_dir", str(tmp_path / "out"), *flags]
    first = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert first.returncode == 0, first.stderr[-2000:]
    assert "[2/2] coin_flip/pause/seed0" in first.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["command"].startswith("semcot bench methods --methods pause no_cot")
    assert [row["method"] for row in report["tasks"][0]["rows"]] == ["no_cot", "pause"]
    assert (tmp_path / "out" / "pareto-coin_flip.png").stat().st_size > 10_000
    told = (tmp_path / "out" / "report.md").read_text()
    assert "| Pause |" in told and "Accuracy in % by number of reasoning steps" in told
    assert f"{SMALL['steps']} steps of {SMALL['batch_size']} of" in told and "0.001 (not searched)" in told
    kept = os.stat(tmp_path / "out/coin_flip/pause/seed0/run.json").st_mtime_ns
    again = run_bench(
        BenchSettings(str(tmp_path / "out"), methods=["pause", "no_cot"], seeds=[0], learning_rates=[1e-3], **SMALL)
    )
    assert os.stat(tmp_path / "out/coin_flip/pause/seed0/run.json").st_mtime_ns == kept
    assert again["tasks"] == report["tasks"]


def test_any_host_and_dataset_can_be_benched(tmp_path):
    rows = coin_flip.generate(60, seed=2)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({key: row[key] for key in ("query", "reasoning", "answer")}) for row in rows))
    report = run_bench(
        BenchSettings(
            str(tmp_path / "out"),
            task=[str(data)],
            methods=["semcot_no_alignment"],
            host=str(HOST_PATH),
            generator=str(GENERATOR_PATH),
            seeds=[0],
            learning_rates=[1e-3],
            **{**SMALL, "train_questions": 20_000, "latency_samples": 0},
        )
    )
    n = report["tasks"][0]["rows"][0]["n"]
    budget = report["tasks"][0]["budget"]
    assert 2 <= n == budget["eval_questions"] < 8 and 40 < budget["train_questions"] < 60


def test_the_recipe_of_the_best_is_the_tasks_own_unless_flags_say_otherwise():
    def recipe(task, **given):
        return _run_settings(BenchSettings("x", **given), task, "semcot_soft_words", 0, "host", "generator").soft_words

    own = BENCH_TASKS["arithmetic"].soft_words
    assert recipe("arithmetic") == own != Recipe() and recipe("org/data") == Recipe()
    assert recipe("arithmetic", soft_words_layers=[1], soft_words_words=0.0) == replace(own, layers=(1,), words=0.0)
    given = {
        "soft_words_mode": "parallel",
        "soft_words_projection": "identity",
        "soft_words_step_weight": 2.0,
        "soft_words_thought": " x",
    }
    assert recipe("org/data", **given) == Recipe(None, None, "parallel", "identity", 2.0, " x", 0.0)


def test_k_of_the_best_is_the_tasks_own_unless_one_is_given():
    def tokens(task="graph", **given):
        made = _run_settings(BenchSettings("x", **given), task, "semcot_soft_words", 0, "host", "generator")
        return made.num_implicit_tokens, made.soft_words.tokens

    assert tokens() == (7, 6) and tokens("coin_flip") == (4, None)
    assert tokens(num_implicit_tokens=3) == (3, None) and tokens(soft_words_tokens=2) == (7, 2)
    assert tokens(num_implicit_tokens=3, soft_words_tokens=2) == (3, 2)


def test_what_cannot_be_benched_is_refused(tmp_path):
    with pytest.raises(ValueError, match="task=\\['gsm8k'\\]: choose among coin_flip"):
        run_bench(BenchSettings(str(tmp_path), task=["gsm8k"]))
    with pytest.raises(ValueError, match="host and generator go together"):
        run_bench(BenchSettings(str(tmp_path), host="somewhere"))
    with pytest.raises(ValueError, match="has other tokens than host="):
        run_bench(BenchSettings(str(tmp_path), host=str(HOST_PATH), generator=str(OTHER_GENERATOR)))
    with pytest.raises(ValueError, match="holds no finished run"):
        run_bench(BenchSettings(str(tmp_path), report_only=True))
