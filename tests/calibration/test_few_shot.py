"""Tests of `compare_few_shot` and `semcot few-shot`: counts, what is written, what stays, bad input."""

import pytest
from evaluation_models import coin_flip_tokenizer, tiny_words_semcot
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.calibration.few_shot import FewShotConfig, compare_few_shot
from semcot_hf.cli.main import main
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.data.tasks import coin_flip
from semcot_hf.distillation.words import fits_thought, worked_examples
from semcot_hf.evaluation import answer_questions, evaluate
from semcot_hf.inference.prompting import with_answer_prompt
from semcot_hf.inference.templates import change_few_shot, few_shot_messages
from semcot_hf.modeling.checksums_semcot import tokenizer_checksum

OPTIONS = dict(batch_size=12, max_new_tokens=3, progress=False)


@pytest.fixture(scope="module")
def train():
    return list(load_reasoning_dataset("coin_flip", split="train", num_samples=40, seed=6))


@pytest.fixture
def saved(tmp_path):
    tokenizer = coin_flip_tokenizer()
    model = tiny_words_semcot(tokenizer, 60)
    tokenizer = with_answer_prompt(tokenizer)
    model.config.tokenizer_checksum = tokenizer_checksum(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def loaded(saved):
    return SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)


@pytest.fixture
def examples(loaded, train):
    return worked_examples(((row, row) for row in train), "condensed_reasoning", 3, fits_thought(*loaded))


def rows_that_suit(model, tokenizer, examples):
    """Return questions with the answers that the model gives after these examples."""
    config = type(model.config).from_dict(model.config.to_dict())
    own, model.config = model.config, config
    shown = change_few_shot(model, tokenizer, examples)
    rows = coin_flip.generate(30, seed=9, split="validation")
    answers = answer_questions(model, shown, [row["query"] for row in rows], max_new_tokens=3)
    model.config = own
    outputs = [answer.output.strip() for answer in answers]
    return [row | {"answer": said} for row, said in zip(rows, outputs, strict=True) if said in ("yes", "no")]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_each_number_is_evaluated_and_the_model_stays(loaded, examples, tmp_path, monkeypatch):
    model, tokenizer = loaded
    rows, before = rows_that_suit(model, tokenizer, examples[:1]), model.config.to_dict()
    assert len(rows) > 10 and len(examples) == 3
    options = {**OPTIONS, "few_shot_examples": [1, 3, 0], "output_dir": str(tmp_path / "run")}
    compared = compare_few_shot(model, tokenizer, rows, examples, **options)
    assert model.config.to_dict() == before and not few_shot_messages(tokenizer)
    shares = {len(result.examples): result.semcot["accuracy"] for result in compared.results}
    assert shares[1] == 1 > shares[0]
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    own = next(result for result in compared.results if result.own)
    assert own.examples == [] and own.difference is None
    assert compared.results[0].difference["difference"] == pytest.approx(1 - shares[0])
    assert compared.results[0].examples == examples[:1]
    for number, share in shares.items():
        model, tokenizer = SemCoTForCausalLM.from_pretrained(tmp_path / "model"), loaded[1]
        shown = change_few_shot(model, tokenizer, examples[:number])
        report = evaluate(
            model, shown, rows, methods=["semcot", "generator"], controls=False, latency_samples=0, **OPTIONS
        )
        assert [row["accuracy"] for row in report["rows"]] == [share, compared.generator["accuracy"]]
    # What is there already is not answered again.
    monkeypatch.setattr(loaded[0], "generate", lambda *_, **__: pytest.fail("generate was called"))
    assert compare_few_shot(*loaded, rows, examples, **options) == compared


def test_the_best_examples_are_written_without_the_weights(saved, loaded, examples, train, tmp_path, capsys):
    rows = rows_that_suit(*loaded, examples[:2])
    write_splits({"train": train, "validation": rows, "test": rows[:1]}, tmp_path / "data")
    before, command = files(saved), ["few-shot", "--model", str(saved), "--dataset", str(tmp_path / "data")]
    command += ["--max_new_tokens", "3", "--dtype", "float64", "--few_shot_examples", "2", "1"]
    command += ["--words_column", "condensed_reasoning"]
    assert main([*command, "--dry_run"]) == 0 and files(saved) == before
    assert "Nothing was written" in capsys.readouterr().out
    weights = {name: (saved / name).stat().st_mtime_ns for name in before if name.endswith(".safetensors")}
    assert main(command) == 0
    printed, after = capsys.readouterr().out, files(saved)
    assert f"SemCoT on {len(rows)} questions of" in printed and "the generator alone" in printed
    assert f"2 worked examples are written into {saved}" in printed and examples[0]["words"] in printed
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"config.json"} < changed <= {"config.json", "chat_template.jinja", "tokenizer_config.json"}
    assert weights == {name: (saved / name).stat().st_mtime_ns for name in weights}
    model, tokenizer = SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    assert [message["content"] for message in few_shot_messages(tokenizer)[::2]] == [r["query"] for r in examples[:2]]
    assert model.config.few_shot_ids and model.config.tokenizer_checksum == tokenizer_checksum(tokenizer)
    assert main([*command, "--split", "train"]) == 1
    assert "worked examples show 2 of the questions to be answered" in capsys.readouterr().err
    assert main([*command, "--words_column", "none"]) == 1
    assert "words_column='none': only 0 of the first thousand training rows" in capsys.readouterr().err
    # Written is written: now they are the checkpoint's own.
    assert main(command) == 0
    assert "own examples are the best" in capsys.readouterr().out and files(saved) == after
    rows = rows_that_suit(*loaded, [])
    write_splits({"train": train, "validation": rows, "test": rows[:1]}, tmp_path / "other")
    command[command.index("--dataset") + 1] = str(tmp_path / "other")
    assert main([*command, "--few_shot_examples", "0"]) == 0
    assert "The host is best without examples, and they were removed from" in capsys.readouterr().out
    taken = files(saved)
    assert all(taken[name] == before[name] for name in before if name != "tokenizer_config.json")


def test_models_without_words_and_bad_numbers_are_refused(loaded, examples, saved, tmp_path, capsys):
    model, tokenizer = loaded
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="without words has no thoughts that examples could show"):
        compare_few_shot(model.host, tokenizer, [], examples, **OPTIONS)
    with pytest.raises(ValueError, match=r"few_shot_examples=\[4\]: there are only 3 examples"):
        compare_few_shot(model, tokenizer, [], examples, few_shot_examples=[4], **OPTIONS)
    for words in ({"words": None}, {}):
        with pytest.raises(ValueError, match="examples has a row without words: .*Complete it"):
            row = {"query": "?", "answer": "yes", **words}
            compare_few_shot(model, tokenizer, [], [row], few_shot_examples=[1], **OPTIONS)
    long = [{"query": "Is it? " * 500, "words": "heads", "answer": "yes"}]
    model.generate = lambda *_, **__: pytest.fail("generate was called")
    with pytest.raises(
        ValueError, match="1 worked examples .*a prompt of .* tokens .*Leave this out, or choose shorter"
    ):
        compare_few_shot(model, tokenizer, coin_flip.generate(2, seed=1), long, few_shot_examples=[0, 1], **OPTIONS)
    del model.generate
    assert model.config.to_dict() == before
    for numbers in ([], 4, [0, -1]):
        with pytest.raises(ValueError, match="few_shot_examples=.*: give a list of one or more numbers"):
            FewShotConfig(numbers)
    assert main(["few-shot", "--model", str(tmp_path), "--dataset", "coin_flip"]) == 1
    assert "is not a folder of a checkpoint" in capsys.readouterr().err
