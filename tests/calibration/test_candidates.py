"""Tests of `compare_candidates` and `semcot candidates`: counts, what is written, what stays, bad input."""

import json

import pytest
from evaluation_models import coin_flip_tokenizer, tiny_words_semcot
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.calibration.candidates import Candidates, CandidatesConfig, compare_candidates, write_candidates
from semcot_hf.cli.main import main
from semcot_hf.data.loading import write_splits
from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation import answer_questions, evaluate
from semcot_hf.inference.prompting import with_answer_prompt
from semcot_hf.modeling.candidates_semcot import candidates
from semcot_hf.modeling.configuration_semcot import file_checksum
from semcot_hf.modeling.escalation_semcot import Escalation

OPTIONS = dict(batch_size=12, max_new_tokens=3, progress=False)
BEST = Candidates(4, 1.0)


@pytest.fixture
def saved(tmp_path):
    tokenizer = coin_flip_tokenizer()
    tiny_words_semcot(tokenizer, 8).save_pretrained(tmp_path / "model")
    with_answer_prompt(tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def loaded(saved):
    return SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)


@pytest.fixture
def rows(loaded):
    """Questions with the answers that the model gives after the best of four candidates."""
    made = coin_flip.generate(40, seed=9, split="validation")
    with candidates(loaded[0], *BEST):
        answers = answer_questions(*loaded, [row["query"] for row in made], max_new_tokens=3)
    outputs = [answer.output.strip() for answer in answers]
    return [row | {"answer": said} for row, said in zip(made, outputs, strict=True) if said in ("yes", "no")]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_each_number_and_weight_is_evaluated_and_the_model_stays(loaded, rows, tmp_path, monkeypatch):
    model, tokenizer = loaded
    before = model.config.to_dict()
    assert len(rows) > 15
    options = {**OPTIONS, "num_candidates": [4, 1], "host_weights": [0, 1], "output_dir": str(tmp_path / "run")}
    results = compare_candidates(model, tokenizer, rows, **options)
    assert model.config.to_dict() == before
    shares = {result.candidates: result.semcot["accuracy"] for result in results}
    own = Candidates(1, model.config.candidate_host_weight)
    # With one thought there is nothing to weigh.
    assert shares.keys() == {own, Candidates(4, 0.0), BEST} and shares[BEST] == 1 > shares[own]
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    assert [result.candidates for result in results if result.own] == [own]
    alone = {}
    for result in results:
        assert result.seconds > 0
        with candidates(model, *result.candidates):
            report = evaluate(
                model, tokenizer, rows, methods=["semcot", "generator"], controls=False, latency_samples=0, **OPTIONS
            )
        found = [row["accuracy"] for row in report["rows"]]
        assert found[0] == result.semcot["accuracy"]
        # The generator is never right here, but its answers have different lengths.
        same = [name for name, value in report["rows"][1].items() if "_vs_" not in name and isinstance(value, float)]
        alone[result.candidates.number] = [report["rows"][1][name] for name in same]
        assert alone[result.candidates.number] == [result.generator[name] for name in same]
        expected = None if result.own else pytest.approx(found[0] - shares[own])
        assert (result.difference and result.difference["difference"]) == expected
    assert alone[1] != alone[4]
    # What is there already is not answered again.
    monkeypatch.setattr(model, "generate", lambda *_, **__: pytest.fail("generate was called"))
    assert compare_candidates(model, tokenizer, rows, **options) == results


def test_the_best_is_written_without_the_weights(saved, rows, tmp_path, capsys):
    write_splits({"train": rows[:1], "validation": rows, "test": rows[:1]}, tmp_path / "data")
    content = json.loads((saved / "config.json").read_text())
    content["escalation"] = Escalation(threshold=0.5).to_dict()
    content["config_checksum"] = file_checksum(content)
    (saved / "config.json").write_text(json.dumps(content))
    before, command = files(saved), ["candidates", "--model", str(saved), "--dataset", str(tmp_path / "data")]
    command += ["--max_new_tokens", "3", "--dtype", "float64", "--num_candidates", "4", "--host_weights", "1"]
    assert main([*command, "--dry_run"]) == 0 and files(saved) == before
    assert "Nothing was written" in capsys.readouterr().out
    assert main(command) == 0
    printed, after = capsys.readouterr().out, files(saved)
    assert f"{len(rows)} questions of" in printed and "alone: the generator" in printed
    assert f"4 candidates and a weight of 1 are written into {saved}" in printed
    assert "The rule of escalation was removed" in printed
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"config.json"} <= changed <= {"config.json", "tokenizer_config.json"}
    config = SemCoTForCausalLM.from_pretrained(saved).config
    assert (config.num_candidates, config.candidate_host_weight) == BEST and config.escalation is None
    # Written is written: now it is the checkpoint's own.
    assert main(command) == 0
    assert "own number and weight are the best" in capsys.readouterr().out and files(saved) == after
    write_candidates(saved, Candidates(1, 0.5))
    assert SemCoTForCausalLM.from_pretrained(saved).config.num_candidates == 1


def test_models_without_words_and_bad_numbers_are_refused(loaded, saved, tmp_path, capsys):
    model, tokenizer = loaded
    with pytest.raises(ValueError, match="without words has no thoughts that could be candidates"):
        compare_candidates(model.host, tokenizer, [], **OPTIONS)
    for name, values, least in (("num_candidates", [1, 0], 1), ("num_candidates", [], 1), ("host_weights", [-1.0], 0)):
        with pytest.raises(ValueError, match=f"{name}=.*: give a list of one or more numbers from {least} on"):
            CandidatesConfig(**{name: values})
    before = files(saved)
    with pytest.raises(ValueError, match="num_candidates=0: must be"):
        write_candidates(saved, Candidates(0, 0.5))
    assert files(saved) == before
    assert main(["candidates", "--model", str(tmp_path), "--dataset", "coin_flip"]) == 1
    assert "is not a folder of a checkpoint" in capsys.readouterr().err
