"""Rows of a report that thoughts in words need: who reads them, who answers alone, and whether they end right."""

import json
import sys

import pytest
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_llama
from rich.console import Console

from semcot_hf import SemCoTForCausalLM
from semcot_hf.data.rationale import rationale_agrees
from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation import compare_runs, evaluate, mcnemar, print_report
from semcot_hf.evaluation.report import duration, report_tables
from semcot_hf.inference.answering import answer_questions
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.templates import change_few_shot

ROWS = coin_flip.generate(10, seed=4, split="test")
METHODS = ["no_cot", "cot", "condensed", "semcot", "semcot_hard", "words", "generator", "generator_no_cot"]
THOUGHTS = ["condensed", "semcot", "semcot_hard", "words", "generator"]
OPTIONS = dict(batch_size=4, max_new_tokens=6, progress=False, command="test")


@pytest.fixture(scope="module")
def tokenizer():
    return coin_flip_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    generator = tiny_llama(tokenizer, 16, seed=5).double()
    for weight in generator.parameters():
        weight.data *= 4
    return SemCoTForCausalLM.from_host_generator_pretrained(
        # The worked examples of "condensed" have 530 tokens.
        answering_host(tokenizer, positions=1024),
        generator,
        num_implicit_tokens=5,
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        mixture_top_k=2,
        end_of_thought_token_ids=[tokenizer.eos_token_id],
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    )


@pytest.fixture(scope="module")
def finished(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, evaluate(
        model, tokenizer, ROWS, output_dir=folder, latency_samples=2, latency_batch_sizes=[1, 2], **OPTIONS
    )


def test_worked_examples_stand_before_the_rows_with_thoughts_alone(model, tokenizer, finished, tmp_path, monkeypatch):
    """Each row's answers are those of its method; the host reads the examples where it reads a thought."""
    own, queries = model.config, [row["query"] for row in ROWS]
    monkeypatch.setattr(model, "config", type(own).from_dict(own.to_dict()))
    asked = {"query": ROWS[0]["query"].upper(), "words": "heads, tails", "answer": "no"}
    shown = change_few_shot(model, with_answer_prompt(tokenizer), [asked])
    with pytest.raises(ValueError, match="worked examples show 1 of the questions to be answered"):
        evaluate(model, shown, ROWS, output_dir=tmp_path, latency_samples=0, **OPTIONS)
    # Plain prompts do not show them.
    plain = dict(OPTIONS, chat=False, methods=["semcot"], controls=False, latency_samples=0)
    assert evaluate(model, shown, ROWS, **plain)["rows"][0]["n"] == 10
    example = {**asked, "query": coin_flip.generate(1, seed=77, split="train")[0]["query"]}
    shown = change_few_shot(model, with_answer_prompt(tokenizer), [example])
    report = evaluate(model, shown, ROWS, output_dir=tmp_path, latency_samples=0, token_counts=[3], **OPTIONS)
    outputs = {
        name: [record["output"] for record in records_of(tmp_path, name)]
        for name in [*METHODS, "semcot-k3", *(control["control"] for control in report["controls"][1:])]
    }
    for name in METHODS:
        answers = answer_questions(model, shown, queries, method=name, max_new_tokens=6, batch_size=4)
        assert outputs[name] == [answer.output for answer in answers]
    before = {
        name: [record["output"] for record in records_of(finished[0], name)] for name in outputs if name != "semcot-k3"
    }
    changed = {name for name, own in before.items() if own != outputs[name]}
    assert changed == {"semcot", "semcot_hard", "words", "other_question", "mean", "noise"}
    three = answer_questions(model, shown, queries, num_implicit_tokens=3, max_new_tokens=6, batch_size=4)
    assert outputs["semcot-k3"] == [answer.output for answer in three]


def test_controls_are_of_as_many_candidates_as_the_answers(model, tokenizer, tmp_path, monkeypatch):
    own = model.config
    made = {}
    fields = own.to_dict() | {"candidate_temperature": 4.0, "candidate_host_weight": 100.0}
    for name, number, asked in (("one", 1, None), ("asked", 1, 16), ("own", 16, None)):
        monkeypatch.setattr(model, "config", type(own).from_dict(fields | {"num_candidates": number}))
        options = {**OPTIONS, "output_dir": tmp_path / name, "latency_samples": 0, "methods": ["no_cot", "semcot"]}
        evaluate(model, tokenizer, ROWS, num_candidates=asked, **options)
        made[name] = {
            run: [record["output"] for record in records_of(tmp_path / name, run)]
            for run in ("semcot", "other_question", "mean", "noise")
        }
    assert made["asked"] == made["own"]
    assert all(made["asked"][run] != made["one"][run] for run in ("semcot", "other_question"))


def records_of(folder, name):
    lines = (folder / f"predictions-{name}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["index"])


def test_all_rows_are_there_by_default(finished):
    folder, report = finished
    assert [row["method"] for row in report["rows"]] == METHODS
    assert [control["control"] for control in report["controls"]] == ["none", "other_question", "mean", "noise"]
    explicit = report["rows"][1]["seconds_per_query"]
    right = {name: [record["correct"] for record in records_of(folder, name)] for name in METHODS}
    for row in report["rows"]:
        method = row["method"]
        assert row["accuracy"] == sum(right[method]) / 10
        assert row["share_of_cot_time"] == row["seconds_per_query"] / explicit > 0
        for other in ("no_cot", "generator"):
            wanted = mcnemar(right[method], right[other])
            assert row.get(f"p_vs_{other}") == (None if other == method else wanted)
    assert {(row["a"], row["b"]) for row in report["comparisons"] if "semcot" not in (row["a"], row["b"])} == {
        ("cot", "no_cot")
    }
    assert sum("semcot" in (row["a"], row["b"]) for row in report["comparisons"]) == 7


def test_thoughts_are_on_disk_and_judged(finished):
    folder, report = finished
    made = {name: records_of(folder, name) for name in METHODS}
    for row in report["rows"]:
        records = made[row["method"]]
        if row["method"] not in THOUGHTS:
            assert not any("thought" in record for record in records) and "thoughts_right" not in row
            continue
        judged = [rationale_agrees(record["thought"], record["answer"], "yes_no") for record in records]
        assert [record["thought_right"] for record in records] == judged
        assert row["thoughts_right"] == judged.count(True)
        assert row["thoughts_judged"] == 10 - judged.count(None)
        assert row["thoughts_not_ended"] == sum(not record["thought_ended"] for record in records)
        assert row["thought_tokens_per_query"] == sum(record["thought_tokens"] for record in records) / 10
    # The host reads as text what the implicit tokens say; controls have no thought of their own.
    assert [r["thought"] for r in made["words"]] == [r["thought"] for r in made["semcot"]]
    assert [r["thought_tokens"] for r in made["semcot"]] == [r["implicit_tokens"] for r in made["semcot"]]
    assert not any("thought" in record for record in records_of(folder, "mean"))
    # What a method itself has written counts among its new tokens.
    for record in made["generator"]:
        assert record["new_tokens"] > record["thought_tokens"]


def test_tables(finished, capsys):
    folder, report = finished
    tables = {title: (header, rows) for title, header, rows in report_tables(report)}
    header, rows = tables["Methods"]
    assert header[3:5] == ["over no CoT", "over the generator alone"] and "of explicit CoT's time" in header
    assert [row[header.index("of explicit CoT's time")] for row in rows][1] == "1.00"
    assert rows[0][3] == rows[6][4] == "-" and ", p " in rows[3][3]
    assert [row[-1] for row in rows if row[0] == "generator alone"] == ["0"]
    timed = {name: sizes[1]["median"] for name, sizes in report["latency"]["methods"].items()}
    assert [row[header.index("median at batch 2")] for row in rows] == [duration(timed[name]) for name in METHODS]
    assert {len(row) for row in rows} == {len(header)}
    header, rows = tables["Thoughts in words"]
    assert [row[0] for row in rows] == [
        "condensed CoT of the host", "SemCoT", "SemCoT, single words", "host reads the words", "generator alone"
    ]  # fmt: skip
    assert all(row[3].endswith(" of 10") for row in rows)
    assert "Thoughts in words" in (folder / "report.md").read_text()
    print_report(report)
    assert "generator alone" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_printed_tables_are_whole_at_the_width_of_the_terminal(width, finished, capsys):
    report = finished[1]
    print_report(report, Console(width=width))
    lines = [line.rstrip() for line in capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ").splitlines()]
    assert max(map(len, lines)) <= width
    for _, _, rows in report_tables(report):
        for row in rows:
            # Each part of the table begins with the row's name.
            own = " ".join(line.removeprefix(f"  {row[0]}") for line in lines if line.startswith(f"  {row[0]} "))
            assert all(cell in own for cell in row[1:]), (row, own)


def test_a_second_run_makes_nothing_again(finished, model, tokenizer, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("generate was called")

    monkeypatch.setattr(type(model), "generate", fail)
    monkeypatch.setattr(type(model.host), "generate", fail)
    again = evaluate(model, tokenizer, ROWS, output_dir=finished[0], latency_samples=0, **OPTIONS)
    kept = [(row["accuracy"], row.get("thoughts_right")) for row in finished[1]["rows"]]
    assert [(row["accuracy"], row.get("thoughts_right")) for row in again["rows"]] == kept
    assert {row["share_of_cot_time"] for row in again["rows"]} == {None}
    assert [row["method"] for row in compare_runs(finished[0], finished[0])] == METHODS


def test_condensed_thoughts_may_be_longer_than_the_default(model, tokenizer, tmp_path):
    """A rival that is cut off is no rival."""
    options = dict(OPTIONS, methods=["condensed"], controls=False, latency_samples=0)
    sizes = {}
    for limit in (None, 3, 60):
        folder = tmp_path / str(limit)
        evaluate(model.host, tokenizer, ROWS, max_thought_tokens=limit, output_dir=folder, **options)
        sizes[limit] = [record["thought_tokens"] for record in records_of(folder, "condensed")]
    # This host goes on to any limit.
    assert {*sizes[3]} == {3} and {*sizes[None]} == {48} and {*sizes[60]} == {60}
    with pytest.raises(ValueError, match="another run .max_thought_tokens: 60 there"):
        evaluate(model.host, tokenizer, ROWS, output_dir=tmp_path / "60", **options)
    with pytest.raises(ValueError, match="max_thought_tokens=3 is of the method 'condensed'"):
        evaluate(model.host, tokenizer, ROWS, max_thought_tokens=3, **dict(options, methods=["no_cot"]))
    with pytest.raises(ValueError, match="max_thought_tokens=0"):
        evaluate(model.host, tokenizer, ROWS, max_thought_tokens=0, **options)


def test_a_thought_prompt_from_a_file(model, tokenizer, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        sys.modules["semcot_hf.evaluation.evaluate"].logger,
        "warning",
        lambda text, *values: told.append(text % values),
    )
    path = tmp_path / "prompt.json"
    options = dict(OPTIONS, methods=["condensed"], controls=False, latency_samples=0)
    shown = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it heads?"},
        {"role": "assistant", "content": "no"},
    ]
    path.write_text(json.dumps(shown))
    folder = tmp_path / "run"
    own = evaluate(model.host, tokenizer, ROWS, thought_prompt=str(path), output_dir=folder, **options)
    assert [row["method"] for row in own["rows"]] == ["condensed"] and not told
    with pytest.raises(ValueError, match="another run .thought_prompt: "):
        evaluate(model.host, tokenizer, ROWS, output_dir=folder, **options)
    default = evaluate(model.host, tokenizer, ROWS, output_dir=tmp_path / "default", **options)
    thoughts = [record["thought"] for record in records_of(folder, "condensed")]
    assert thoughts != [record["thought"] for record in records_of(tmp_path / "default", "condensed")]
    (warning,) = {*told}
    assert "'condensed', whose worked examples are equations" in warning and "'yes_no'" in warning
    assert default["rows"][0]["n"] == 10
    for text, problem in [
        ("[", "is not JSON"),
        ("[]", "has messages of the roles"),
        (json.dumps(shown[:2]), "has messages of the roles .'system', 'user'."),
        (json.dumps([*shown[:2], {"role": "assistant", "content": 3}]), "its content must be text"),
        (json.dumps([{"role": "user"}]), "needs the keys 'role' and 'content'"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            evaluate(model.host, tokenizer, ROWS, thought_prompt=str(path), **options)
    with pytest.raises(ValueError, match="thought_prompt='equations' is of the method 'condensed', got methods="):
        evaluate(model.host, tokenizer, ROWS, thought_prompt="equations", **{**options, "methods": ["cot"]})
    with pytest.raises(FileNotFoundError, match="thought_prompt=.* is not a file"):
        evaluate(model.host, tokenizer, ROWS, thought_prompt=str(tmp_path / "none.json"), **options)
