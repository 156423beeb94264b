"""The bench of methods as a whole: runs that are kept, the search, the report, the command."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from semcot_hf.bench import method_run as runs
from semcot_hf.bench.catalogue import PARTS, SOFT_WORDS, UNTRAINED
from semcot_hf.bench.method_run import QuestionSet, RunSettings, run_method
from semcot_hf.bench.report import markdown, overview, write_report
from semcot_hf.bench.run import BenchSettings, _run_settings, run_bench
from semcot_hf.bench.summary import paired_p, paired_p_value, seeds_interval, summarize_task
from semcot_hf.bench.tasks import pretraining as hosts
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.bench.tasks.rows import town_rows
from semcot_hf.data.splits import normalise_question
from semcot_hf.data.tasks import facts
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH
from semcot_hf.distillation.words import words_of
from semcot_hf.evaluation.statistics import accuracy_interval
from semcot_hf.inference.prompting import ANSWER_PROMPT

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
        "task": "facts",
        "method": "no_cot",
        "seed": 0,
        "host": str(HOST_PATH),
        "generator": str(GENERATOR_PATH),
        "num_implicit_tokens": 2,
        "steps_per_token": 3,
        "coconut": (2, 3),
        "words_column": "reasoning",
        "words_limit": 32,
        "joint_share": 0.0,
        "learning_rates": (1e-3,),
        "search_share": 0.5,
        "device": "cpu",
    }
    return RunSettings(**{**options, **SMALL, **changes})


def questions(generate=BENCH_TASKS["facts"].generate):
    splits = (generate(count, 1, split) for count, split in ((40, "train"), (6, "validation"), (8, "test")))
    return QuestionSet(*splits, "sequence", 16)


@pytest.mark.slow
def test_semcot_is_timed_compiled_too_where_asked(tmp_path, captured, capturing):
    small = settings(method="semcot_no_alignment", eval_questions=2)
    made = run_method(small, questions(), tmp_path / "semcot", compiled_latency=True)
    # The generator, and the forward of either host, each with a graph at least.
    assert len(captured) == 3 and capturing.graphs >= 3
    # Two layers of the host's eight, their own word embeddings, and a projection.
    assert 0.25 < made["training"]["generator_share"] < 0.35
    assert all(made["latency"][name] > 0 for name in ("ratio", "compiled_generator_ratio", "compiled_ratio"))
    plain = run_method(settings(), questions(), tmp_path / "no_cot", compiled_latency=True)
    assert len(captured) == 3 and "compiled_ratio" not in plain["latency"]


def test_runs_of_soft_words_have_rows_of_the_generator_alone(tmp_path):
    small = {"words_limit": 96, "latency_samples": 1, "eval_questions": 4}
    made = run_method(settings(method=SOFT_WORDS, **small), questions(), tmp_path / "soft")
    parts = {"semcot_hard", "words", "generator", "generator_no_cot"}
    assert {row["method"] for row in made["report"]["rows"]} == {"no_cot", "semcot", *parts}
    assert made["latency"]["parts"].keys() == parts and min(made["latency"]["parts"].values()) > 0
    assert made["training"]["seen_questions"] == 8 and len(made["training"]["losses"]) == 2
    rows = {row["method"]: row for row in summarize_task([(made, tmp_path / "soft")])["rows"]}
    assert len(rows) == 6 and all(len(row["verdicts"][0]) == 8 for row in rows.values())
    assert rows[f"{SOFT_WORDS}/generator"]["implicit_tokens"] == 0 < rows[SOFT_WORDS]["implicit_tokens"]
    assert rows[SOFT_WORDS]["p_over_generator"] is not None
    # A pair that is left as it is has nothing to search a learning rate for.
    untrained = settings(method=UNTRAINED, learning_rates=(1e-3, 2e-3), **small)
    left = run_method(untrained, questions(town_rows(2, 5)), tmp_path / "untrained/seed0")
    assert left["training"]["seen_questions"] == left["training"]["trainable_parameters"] == 0
    assert left["training"]["search"] is None and not (tmp_path / "untrained/search.json").exists()
    # The demo's generator can name the town where the letter ends, as it was taught.
    assert next(row for row in left["report"]["rows"] if row["method"] == "generator")["accuracy"] >= 0.75


def test_a_compiled_forward_lasts_for_its_own_calls(tiny_lm, captured):
    host = tiny_lm()
    asked = []
    timed = runs._with_compiled_forward(host, lambda batch: asked.append((batch, "forward" in vars(host))))
    timed(["a"])
    assert asked == [(["a"], True)] and len(captured) == 1 and "forward" not in vars(host)


def test_a_finished_run_is_kept_whatever_is_asked_of_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    made = run_method(settings(), questions(), folder)
    assert made["training"]["seen_questions"] == 8 and made["training"]["trainable_parameters"] > 900_000
    assert made["training"]["operations"] > 2 * 3 * 900_000 * 8
    assert made["report"]["rows"][0]["n"] == 8 and made["latency"]["ratio"] > 0
    assert not (folder / "work").exists()
    trainings = []
    monkeypatch.setattr(runs, "_train", lambda *args: trainings.append(args) or 1 / 0)
    assert run_method(settings(), questions(), folder) == made and not trainings
    with pytest.raises(ValueError, match=r"holds another run \(steps: 2 there, 3 now\)"):
        run_method(settings(steps=3), questions(), folder)
    others = replace(questions(), test=facts.generate(8, seed=2, split="test"))
    with pytest.raises(ValueError, match=r"holds another run \(test: .*'digest'.* there, .* now\)"):
        run_method(settings(), others, folder)
    with pytest.raises(ValueError, match=r"holds another run \(max_new_tokens: 16 there, 256 now\)"):
        run_method(settings(), replace(questions(), max_new_tokens=256), folder)
    with pytest.raises(ValueError, match=r"holds another run \(answer_type: 'sequence' there, 'choice' now\)"):
        run_method(settings(), replace(questions(), answer_type="choice"), folder)
    assert run_method(settings(), questions(), folder) == made
    # As written before runs told how their answers are checked.
    del made["questions"]["max_new_tokens"], made["questions"]["answer_type"]
    (folder / "run.json").write_text(json.dumps(made))
    assert run_method(settings(), questions(), folder) == made
    # As written before runs told their questions.
    del made["questions"]
    (folder / "run.json").write_text(json.dumps(made))
    assert run_method(settings(), others, folder) == made


def test_an_unfinished_run_is_made_anew_beside_what_the_user_keeps_there(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/checkpoint").write_text("cut off")
    (tmp_path / "model.safetensors").write_text("mine")
    monkeypatch.setattr(runs, "_train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_method(settings(), questions(), tmp_path)
    assert not any((tmp_path / "work").iterdir()) and (tmp_path / "model.safetensors").read_text() == "mine"


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
    # Test questions have no part in it.
    others = replace(questions(), test=questions().validation)
    assert runs._search(given, others, tmp_path / "search.json", tmp_path)[0] == best and len(asked) == 3
    stored = json.loads((tmp_path / "search.json").read_text())
    del stored["questions"]["max_new_tokens"], stored["questions"]["answer_type"]
    (tmp_path / "search.json").write_text(json.dumps(stored))
    assert runs._search(given, others, tmp_path / "search.json", tmp_path)[0] == best and len(asked) == 3
    for count, change in enumerate(
        ({"train": questions().validation}, {"max_new_tokens": 256}, {"answer_type": "choice"}), start=2
    ):
        runs._search(given, replace(questions(), **change), tmp_path / "search.json", tmp_path)
        assert len(asked) == 3 * count


def test_budgets_multiply_the_steps_and_share_one_search(tmp_path, monkeypatch):
    trained = []

    def train(settings, questions, rate, steps, work):
        trained.append((settings.budget, rate, steps))
        return None, 1.0

    monkeypatch.setattr(runs, "_train", train)
    monkeypatch.setattr(runs, "_accuracy", lambda *_: len(trained) % 2)
    monkeypatch.setattr(runs, "_evaluate", lambda *_: 1 / 0)
    for budget in (1.0, 4.0):
        asked = settings(steps=10, budget=budget, learning_rates=(3e-4, 1e-3))
        with pytest.raises(ZeroDivisionError):
            run_method(asked, questions(), tmp_path / "pause" / runs.run_name(0, budget))
    # The two rates of the search, then both trainings at the better one.
    assert trained == [(1.0, 3e-4, 5), (1.0, 1e-3, 5), (1.0, 3e-4, 10), (4.0, 3e-4, 40)]
    assert settings(budget=4.0).name == "facts/no_cot/seed0-x4"


def test_a_run_from_before_there_were_budgets_is_one_of_budget_1(tmp_path, monkeypatch):
    folder = tmp_path / "seed0"
    folder.mkdir()
    stored = {"settings": json.loads(json.dumps(vars(settings()))), "questions": questions().identity()}
    del stored["settings"]["budget"]
    (folder / "run.json").write_text(json.dumps(stored))
    assert run_method(settings(), questions(), folder) == stored
    with pytest.raises(ValueError, match=r"holds another run \(budget: 1.0 there, 4.0 now\)"):
        run_method(settings(budget=4.0), questions(), folder)


def test_the_report_has_accuracy_against_seen_questions(tmp_path):
    made = []
    for budget, share in ((1.0, 0.25), (4.0, 0.5), (16.0, 0.75)):
        for method in ("pause", "codi"):
            run, folder = fake_run(tmp_path / f"{method}{budget}", method, share, 2.0)
            run["settings"]["budget"] = budget
            run["training"]["seen_questions"] = int(8 * budget)
            made.append((run, folder))
    (run, folder) = fake_run(tmp_path / "cot", "cot", 1.0, 9.0)
    report = write_report([*made, (run, folder)], tmp_path / "out", command="x")
    assert [(task["task"], task["budget"]["factor"]) for task in report["tasks"]] == [
        ("coin_flip", 1.0),
        ("coin_flip", 4.0),
        ("coin_flip", 16.0),
    ]
    text = (tmp_path / "out/report.md").read_text()
    [row] = [line for line in text.splitlines() if line.startswith("| Pause | 25.0 % [") and "(8)" in line]
    assert "50.0 % [" in row and "(32)" in row and "75.0 % [" in row and row.endswith("(128) |")
    assert re.search(
        r"^\| explicit CoT \(fine-tuned\) \| 100\.0 % \[[\d., ]+\] \(8\) \| – \| – \|$", text, re.MULTILINE
    )
    assert "## coin_flip, budget x 16" in text and "32 steps of 4 of" in text
    assert (tmp_path / "out/pareto-coin_flip-x16.png").is_file() and (tmp_path / "out/pareto-coin_flip.png").is_file()


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


def fake_run(folder, method, accuracy, ratio, seed=0, n=200, generator_share=None, parts=None, **compiled):
    verdicts = [index < accuracy * n for index in range(n)]
    name = {"no_cot": "no_cot", "cot": "cot"}.get(method, "semcot")
    others = ["no_cot", "other_question", "mean", "noise"] if name == "semcot" else []
    (folder / "evaluation").mkdir(parents=True)
    parts = parts or {}
    shares = {name: accuracy, **dict.fromkeys(others, 0.5), **parts}
    for file, share in shares.items():
        lines = [json.dumps({"index": index, "correct": index < share * n}) for index in range(n)]
        (folder / "evaluation" / f"predictions-{file}.jsonl").write_text("\n".join(lines) + "\n")
    row = {"accuracy": sum(verdicts) / n, "n": n, "new_tokens_per_query": 2.0, "implicit_tokens": 4, "by_steps": []}
    row["thoughts_not_ended"] = 7
    made_parts = [{**row, "method": part, "accuracy": share} for part, share in parts.items()]
    run = {
        "settings": {**SMALL, "task": "coin_flip", "method": method, "seed": seed, **BUDGET},
        "training": {
            "seconds": 1.0,
            "trainable_parameters": 5,
            "seen_questions": 8,
            "learning_rate": 1e-3,
            "generator_share": generator_share,
        },
        "latency": {"ratio": ratio, "seconds": 0.1, "parts": dict.fromkeys(parts, 0.5), **compiled},
        "report": {
            "rows": [{"method": name, **row}, *made_parts],
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
    assert cells[2] == "98.0 %" and cells[4:10] == [
        "50.0, 50.0, 50.0, 50.0",
        "1.0000, 1.0000, 1.0000",
        "100.0",
        "1.20",
        "0.13",
        "1.25, 1.35",
    ]
    assert cells[12:14] == ["7 of 200", "0.33"]
    # A control that answers other questions than no tokens do.
    folder, n = tmp_path / "soft" / "evaluation", 200
    lines = [json.dumps({"index": index, "correct": index >= n / 2}) for index in range(n)]
    (folder / "predictions-mean.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    lines = [json.dumps({"index": index, "correct": index < n / 10}) for index in range(n)]
    (folder / "predictions-noise.jsonl").write_text("\n".join(lines) + "\n")
    p_values = summarize_task(made)["rows"][-1]["control_p_values"]
    assert p_values["mean"] > 0.9 and p_values["noise"] < 0.001 and p_values["other_question"] == 1.0


def test_rows_of_the_generator_alone_stand_before_soft_words_and_are_compared_with_it(tmp_path):
    parts = {"no_cot": 0.25, "semcot_hard": 0.98, "words": 0.97, "generator": 0.5, "generator_no_cot": 0.1}
    made = [fake_run(tmp_path / "soft", SOFT_WORDS, 0.98, 1.2, parts=parts)]
    rows = summarize_task(made)["rows"]
    assert [row["method"] for row in rows] == [*(f"{SOFT_WORDS}/{part}" for part in PARTS), SOFT_WORDS]
    by_name = {row["method"].rpartition("/")[2]: row for row in rows}
    assert {name: by_name[name]["accuracy"] for name in parts} == parts
    assert by_name["generator"]["title"] == "generator alone (its words, then its own answer)"
    assert [by_name[name]["latency_ratio"] for name in ("no_cot", "generator", SOFT_WORDS)] == [1.0, 0.5, 1.2]
    # 196 right against 100 and 50, nested in one another: McNemar's test of 96 and 146 against none.
    own = by_name[SOFT_WORDS]
    assert own["p_over_generator"] == pytest.approx(2 * 0.5**96) and own["p_over_no_cot"] == pytest.approx(
        2 * 0.5**146
    )
    assert by_name["generator"]["p_over_generator"] is None and by_name["no_cot"]["p_over_no_cot"] is None
    assert by_name["words"]["p_against_soft_words"] == pytest.approx(2 * 0.5**2)
    assert by_name["no_cot"]["trainable_parameters"] == by_name["no_cot"]["seen_questions"] == 0
    # A host that is tuned to answer at once is the harder baseline, where there is one.
    tuned = fake_run(tmp_path / "no_cot", "no_cot", 0.95, 1.0)
    assert summarize_task([tuned, *made])["rows"][-1]["p_over_no_cot"] == pytest.approx(2 * 0.5**6)
    report = write_report([tuned, *made], tmp_path / "out", command="x")
    written = (tmp_path / "out/report.md").read_text()
    assert (
        "| generator alone (its words, then its own answer) | 50.0 %" in written
        and "| no CoT (untouched host) |" in written
    )
    [line] = overview(report)[2:]
    assert line.endswith("| 50.0 | 1.20 | 50.0 (0.50) | 0.0000 | 0.0312 |")


def test_one_training_of_each_is_compared_by_mcnemars_test():
    a, b = np.zeros((1, 40)), np.zeros((1, 40))
    a[0, :9], b[0, 9:10] = 1, 1
    assert paired_p(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert paired_p(np.repeat(a, 2, axis=0), b) == paired_p_value(np.repeat(a, 2, axis=0), b)


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
        {
            "tasks": [
                {"task": "one", "budget": {}, "rows": rows},
                {"task": "two", "budget": {}, "rows": [*rows, peer, best]},
            ]
        }
    )
    assert first == "| one | 50.0 | – | Pause 50.0 (1.25) | – | – | – | – | – | – | – |"
    assert second == "| two | 50.0 | – | CODI 75.0 | – | 50.0 | 12.5 | 1.25 (1.12) | – | – | – |"


def test_runs_that_cannot_be_compared_are_not_reported_together(tmp_path):
    one, other = fake_run(tmp_path / "a", "no_cot", 0.5, 1.0), fake_run(tmp_path / "b", "pause", 0.6, 2.0)
    # Runs of earlier versions do not tell their questions.
    told = {split: {"rows": 7, "digest": split} for split in ("train", "validation", "test")}
    other[0]["questions"] = told
    # Nor do all that do how they are checked.
    one[0]["questions"] = {**told, "answer_type": "sequence", "max_new_tokens": 16}
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
    one[0]["questions"], other[0]["questions"] = ({**told, "max_new_tokens": limit} for limit in (16, 256))
    with pytest.raises(ValueError, match=r"differ in max_new_tokens \(16: no_cot/seed0; 256: pause/seed0\)"):
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


# The other hosts have learned the words of SemCoT (soft words) as their own reasoning.
SHORTER_WORDS = {"graph", "countdown"}


@pytest.mark.parametrize("task", BENCH_TASKS)
def test_hosts_learn_whole_reasoning_which_in_most_tasks_is_the_words(task):
    own = BENCH_TASKS[task]
    lessons = [(rows_of, 1) for rows_of, _ in own.lessons_of_host()]
    rows = [row for stage, (rows_of, _) in enumerate(lessons) for row in rows_of(64, stage, "train")]
    made = hosts.training_rows(hosts.train_tokenizer(own), lessons, own.direct_share, seed=0)
    tokenizer = hosts.train_tokenizer(own)
    texts = [tokenizer.decode(row["input_ids"]).partition("<|assistant|>")[2] for row in made]
    whole = {f"{row['reasoning']}\nAnswer: {row['answer']}<|end|>" for row in rows}
    whole |= {f"\nAnswer: {row['answer']}<|end|>" for row in rows}
    assert texts and set(texts) <= whole
    # All of a completion is learned, and nothing before it.
    for row, text in zip(made, texts, strict=True):
        assert tokenizer.decode([label for label in row["labels"] if label != -100]) == text
    learned = {text.partition(ANSWER_PROMPT)[0] for text in texts} - {""}
    words = {words_of(row, row, own.words_column) for row in rows}
    assert learned and (not learned & words if task in SHORTER_WORDS else learned <= words)


def test_the_generator_of_facts_meets_none_and_its_host_all():
    own = BENCH_TASKS["facts"]
    values = {value for known in facts.FACTS.values() for value in known.values()}
    for lesson, _ in own.lessons:
        for row in lesson(100, 0, "train"):
            assert row["answer"] in facts.TOWNS and not values & set(f"{row['query']} {row['reasoning']}".split())
    for lesson, _ in own.lessons_of_host():
        told = [row for row in lesson(900, 0, "train") if not row["steps"]]
        assert len(told) == 300 and len({row["query"] for row in told}) == 48
    tokenizer = hosts.train_tokenizer(own)
    vocabulary = tokenizer.get_vocab()
    assert {f"Ġ{word}" for word in [*values, *facts.NAMES, *facts.TOWNS]} <= vocabulary.keys()


def test_a_task_whose_generator_needs_an_aid_names_the_script(tmp_path):
    with pytest.raises(ValueError, match="task='graph'.*pretrain_task_models.py --task graph --output_dir"):
        run_bench(BenchSettings(str(tmp_path), task=["graph"]))


@pytest.mark.slow
def test_models_of_a_task_are_made_once_and_the_host_starts_as_its_generator(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback

    by_length, rows, steps = [], hosts.training_rows, []

    def noted(*args):
        by_length.append(args[-1])
        return rows(*args)

    class Aid(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    monkeypatch.setattr(hosts, "training_rows", noted)
    own = replace(BENCH_TASKS["graph"], by_length=True)
    host, generator = hosts.make_models(own, tmp_path, steps_factor=0.001, eval_samples=2, aids=[Aid()])
    made = os.stat(host / "figures.json").st_mtime_ns
    assert json.loads((host / "figures.json").read_text())["cot"]["n"] == 2
    assert hosts.make_models(BENCH_TASKS["graph"], tmp_path)[0] == host
    assert os.stat(host / "figures.json").st_mtime_ns == made
    # The generator's batches where its task asks for it, and never the host's, whose kinds of rows share each batch.
    assert by_length == [True, False] and not BENCH_TASKS["graph"].by_length
    # Aids are for the generator alone, which takes a step of each lesson.
    assert steps == [1, 2]
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
    command += [
        "--task",
        "facts",
        "--seeds",
        "0",
        "--learning_rates",
        "1e-3",
        "--output_dir",
        str(tmp_path / "out"),
        *flags,
    ]
    first = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert first.returncode == 0, first.stderr[-2000:]
    assert "[2/2] facts/pause/seed0" in first.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["command"].startswith("semcot bench methods --methods pause no_cot")
    assert [row["method"] for row in report["tasks"][0]["rows"]] == ["no_cot", "pause"]
    assert (tmp_path / "out" / "pareto-facts.png").stat().st_size > 10_000
    told = (tmp_path / "out" / "report.md").read_text()
    assert "| Pause |" in told and "Accuracy in % by number of reasoning steps" in told
    assert f"{SMALL['steps']} steps of {SMALL['batch_size']} of" in told and "0.001 (not searched)" in told
    kept = os.stat(tmp_path / "out/facts/pause/seed0/run.json").st_mtime_ns
    again = run_bench(
        BenchSettings(
            str(tmp_path / "out"),
            task=["facts"],
            methods=["pause", "no_cot"],
            seeds=[0],
            learning_rates=[1e-3],
            **SMALL,
        )
    )
    assert os.stat(tmp_path / "out/facts/pause/seed0/run.json").st_mtime_ns == kept
    assert again["tasks"] == report["tasks"]


@pytest.mark.slow
def test_a_task_with_many_right_answers_is_benched_with_several_budgets(tmp_path):
    options = dict(task=["countdown"], methods=["no_cot", "lrt"], seeds=[0], learning_rates=[1e-3], budgets=[1, 2])
    given = BenchSettings(str(tmp_path), models_steps_factor=0.002, **options, **{**SMALL, "latency_samples": 0})
    report = run_bench(given)
    assert [(task["budget"]["factor"], len(task["rows"])) for task in report["tasks"]] == [(1, 2), (2, 2)]
    seen = [{row["method"]: row["seen_questions"] for row in task["rows"]} for task in report["tasks"]]
    assert seen == [{"no_cot": 8, "lrt": 8}, {"no_cot": 16, "lrt": 16}]
    assert "## countdown: accuracy against seen questions" in (tmp_path / "report.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("countdown/*/*/run.json")}
    assert len(kept) == 4 and run_bench(given)["tasks"] == report["tasks"]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_any_host_and_dataset_can_be_benched(tmp_path):
    rows = facts.generate(60, seed=2)
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


def test_a_dataset_that_cannot_be_benched_is_told_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr("semcot_hf.bench.run.run_method", lambda *_: pytest.fail("a run is made"))

    def bench(folder, **changes):
        # The first task's runs come before those of the dataset.
        tasks, own = ["facts", str(tmp_path / folder)], {"host": str(HOST_PATH), "generator": str(GENERATOR_PATH)}
        run_bench(BenchSettings(str(tmp_path / "out"), task=tasks, methods=["no_cot"], **own, **{**SMALL, **changes}))

    def write(folder, **answers):
        (tmp_path / folder).mkdir()
        for split, golds in answers.items():
            rows = [{"query": f"{split} {i}?", "reasoning": "1", "answer": gold} for i, gold in enumerate(golds)]
            (tmp_path / folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("tests", test=["1", "2"])
    with pytest.raises(ValueError, match=r"split='train': '.*tests' has only test\. Pass a source with train rows"):
        bench("tests")
    write("odd", train=["1", "2"], validation=["3", "four", "5"], test=["6", "7"])
    told = r"task='.*odd': row 1 of validation has the answer 'four', which is not numeric as those of test are"
    with pytest.raises(ValueError, match=told):
        bench("odd")
    # Without a search nobody checks answers of validation questions.
    with pytest.raises(pytest.fail.Exception, match="a run is made"):
        bench("odd", learning_rates=[1e-3])


def test_settings_of_a_run_are_the_tasks_own_unless_flags_say_otherwise():
    def made(task, **given):
        run = _run_settings(BenchSettings("x", **given), task, SOFT_WORDS, 0, 1.0, "host", "generator")
        return run.num_implicit_tokens, run.steps_per_token, run.words_column, run.coconut, run.joint_share

    assert made("graph") == (7, 1, "condensed_reasoning", (1, 6), 0.0)
    assert made("coin_flip") == (4, 3, "reasoning", (2, 3), 0.0)
    assert made("org/data") == (5, 1, None, (2, 3), 0.0)
    given = {"num_implicit_tokens": 3, "steps_per_token": 2, "words_column": "plan", "joint_share": 0.2}
    assert made("graph", **given) == (3, 2, "plan", (1, 6), 0.2)


def test_what_cannot_be_benched_is_refused(tmp_path):
    with pytest.raises(ValueError, match="task=\\['gsm8k'\\]: choose among facts"):
        run_bench(BenchSettings(str(tmp_path), task=["gsm8k"]))
    with pytest.raises(ValueError, match=r"budgets=\[1.0, 0\]: give one number or more, each above 0"):
        run_bench(BenchSettings(str(tmp_path), budgets=[1.0, 0]))
    with pytest.raises(ValueError, match="host and generator go together"):
        run_bench(BenchSettings(str(tmp_path), host="somewhere"))
    other = tmp_path / "other"
    hosts.train_tokenizer(BENCH_TASKS["multiplication"]).save_pretrained(other)
    with pytest.raises(ValueError, match="has other tokens than host="):
        run_bench(BenchSettings(str(tmp_path), host=str(HOST_PATH), generator=str(other)))
    with pytest.raises(ValueError, match="holds no finished run"):
        run_bench(BenchSettings(str(tmp_path), report_only=True))
