"""Tests of `compare_answer_prompts` and `semcot answer-prompt`: counts, what is written, what stays, bad input."""

import json
import subprocess
import sys

import pytest
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_semcot_over
from safetensors.torch import load_file
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.calibration import variants
from semcot_hf.calibration.answer_prompts import AnswerPromptConfig, compare_answer_prompts, write_answer_prompt
from semcot_hf.cli.main import main
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.evaluation import evaluate
from semcot_hf.inference.prompting import prompt_text
from semcot_hf.inference.templates import change_answer_prompt
from semcot_hf.modeling.checksums_semcot import tokenizer_checksum
from semcot_hf.modeling.configuration_semcot import file_checksum
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.training.checkpoints import write_checksums

N = 24
# What the host was taught to answer behind, and where it says nothing: the model's own answer prompt, and another.
TAUGHT, OWN, POOR = "\nAnswer:", "\nSo it is:", "\nHm:"
OPTIONS = dict(batch_size=12, max_new_tokens=3, progress=False)


@pytest.fixture
def saved(tmp_path):
    tokenizer = coin_flip_tokenizer()
    model = tiny_semcot_over(answering_host(tokenizer, silent_behind=(OWN, POOR)), tokenizer)
    model.config.tokenizer_checksum = tokenizer_checksum(tokenizer)
    change_answer_prompt(model, tokenizer, OWN).save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def rows():
    return list(load_reasoning_dataset("coin_flip", split="validation", num_samples=N, seed=5))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_each_prompt_is_evaluated_and_the_model_stays(saved, rows, tmp_path, monkeypatch):
    model, tokenizer = SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    before = model.config.to_dict()
    options = {**OPTIONS, "answer_prompts": [TAUGHT, OWN, POOR], "output_dir": str(tmp_path / "run")}
    results = compare_answer_prompts(model, tokenizer, rows, **options)
    assert model.config.to_dict() == before
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(saved).chat_template
    shares = [result.semcot["accuracy"] for result in results]
    # Among equals the model's own comes first.
    assert [result.answer_prompt for result in results] == [TAUGHT, OWN, POOR]
    assert shares[0] > shares[1] == shares[2] == 0
    by_prompt = {result.answer_prompt: result for result in results}
    assert [result.own for result in results].count(True) == 1 and by_prompt[OWN].own
    assert by_prompt[OWN].difference is None
    difference = by_prompt[TAUGHT].difference
    assert difference["difference"] == pytest.approx(shares[0] - by_prompt[OWN].semcot["accuracy"])
    # The same model, saved behind this prompt from the start.
    changed = change_answer_prompt(model, tokenizer, TAUGHT)
    report = evaluate(model, changed, rows, methods=["no_cot", "semcot"], controls=False, latency_samples=0, **OPTIONS)
    assert [row["accuracy"] for row in report["rows"]] == [
        by_prompt[TAUGHT].no_cot["accuracy"],
        by_prompt[TAUGHT].semcot["accuracy"],
    ]
    # What is there already is not answered again.
    change_answer_prompt(model, tokenizer, OWN)
    monkeypatch.setattr(model, "generate", lambda *_, **__: pytest.fail("generate was called"))
    assert compare_answer_prompts(model, tokenizer, rows, **options) == results


def test_every_prompt_stands_alone(saved, rows, monkeypatch):
    """Whatever is tried before it, a prompt follows the question and nothing else."""
    model, tokenizer = SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    model.config.escalation = {"threshold": 0.5}
    seen = []

    def answered(model, tokenizer, rows, *, output_dir, **options):
        seen.append((prompt_text(tokenizer, "Is it?"), tokenizer.decode(model.config.answer_prompt_ids)))
        assert model.config.tokenizer_checksum == tokenizer_checksum(tokenizer) and model.config.escalation is None
        return {"rows": [{"method": name, "accuracy": 0.0} for name in ("no_cot", "semcot")]}

    compared = [{"method": "semcot", "difference": 0.0, "p": 1.0}]
    monkeypatch.setattr(variants, "evaluate", answered)
    monkeypatch.setattr(variants, "compare_runs", lambda *_, **__: compared)
    monkeypatch.setattr(variants, "read_predictions", lambda path: [{"seconds": 1.0}])
    prompts = [TAUGHT, POOR, "\nSo:", "\nIt is:"]
    compare_answer_prompts(model, tokenizer, rows, answer_prompts=prompts, **OPTIONS)
    bare = prompt_text(tokenizer, "Is it?").removesuffix(OWN)
    assert seen == [(bare + prompt, prompt) for prompt in [OWN, *prompts]]
    assert model.config.escalation == {"threshold": 0.5}


def test_the_best_prompt_is_written_without_the_weights(saved, rows, tmp_path, capsys, warnings_of):
    write_splits({"validation": rows}, tmp_path / "data")
    calibrated = json.loads((saved / "config.json").read_text())
    calibrated["escalation"] = Escalation(threshold=0.5).to_dict()
    calibrated["config_checksum"] = file_checksum(calibrated)
    (saved / "config.json").write_text(json.dumps(calibrated))
    before, command = files(saved), ["answer-prompt", "--model", str(saved), "--dataset", str(tmp_path / "data")]
    command += ["--max_new_tokens", "3", "--dtype", "float64", "--answer_prompts", POOR, TAUGHT]
    assert main([*command, "--dry_run"]) == 0 and files(saved) == before
    assert "Nothing was written" in capsys.readouterr().out
    weights = {name: (saved / name).stat().st_mtime_ns for name in before if name.endswith(".safetensors")}
    assert main(command) == 0
    printed, after = capsys.readouterr().out, files(saved)
    assert "The rule of escalation was removed" in printed
    assert f"{N} questions of" in printed and f"{TAUGHT!r} is written into {saved}" in printed
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"config.json"} < changed <= {"config.json", "chat_template.jinja", "tokenizer_config.json"}
    assert weights == {name: (saved / name).stat().st_mtime_ns for name in weights}
    model, tokenizer = SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    assert tokenizer.decode(model.config.answer_prompt_ids) == TAUGHT and model.config.escalation is None
    assert prompt_text(tokenizer, "Is it?").endswith(TAUGHT) and OWN not in prompt_text(tokenizer, "Is it?")
    # Written is written: now it is the checkpoint's own, and nothing has changed about it by loading.
    assert main(command) == 0
    assert "own answer prompt is the best" in capsys.readouterr().out and files(saved) == after
    assert not [warning for warning in warnings_of() if "tokenizer" in warning]


def test_a_fresh_process_without_the_package_uses_it(saved):
    write_answer_prompt(saved, TAUGHT)
    code = (
        "import sys; sys.modules['semcot_hf'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer.apply_chat_template([{'role': 'user', 'content': 'Is it?'}], add_generation_prompt=True,\n"
        "    return_tensors='pt')['input_ids']\n"
        "ends = model.config.answer_prompt_ids\n"
        "assert ids[0].tolist()[-len(ends):] == ends, (ids, ends)\n"
        "print(repr(tokenizer.decode(ends)), model.generate(ids, max_new_tokens=2).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert repr(TAUGHT) in done.stdout


def test_other_models_and_damaged_ones_are_refused(saved, rows, tmp_path, capsys):
    model, tokenizer = SemCoTForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    with pytest.raises(ValueError, match="has no implicit tokens, after which the answer prompt stands"):
        compare_answer_prompts(model.host, tokenizer, rows, answer_prompts=[TAUGHT], **OPTIONS)
    before = model.config.to_dict()
    tokenizer.chat_template = "{{ messages[0].content }}A"
    with pytest.raises(ValueError, match="answer_prompt='nn'"):
        compare_answer_prompts(model, tokenizer, rows, answer_prompts=["nn"], **OPTIONS)
    assert model.config.to_dict() == before
    for prompts in ([], "So:", ["So:", ""]):
        with pytest.raises(ValueError, match="answer_prompts=.*: give a list of one or more texts"):
            AnswerPromptConfig(prompts)
    assert main(["answer-prompt", "--model", str(tmp_path), "--dataset", "coin_flip", "--answer_prompts", "x"]) == 1
    assert "is not a folder of a checkpoint" in capsys.readouterr().err
    template = (saved / "chat_template.jinja").read_text()
    (saved / "chat_template.jinja").write_text(template + " ")
    changed = files(saved)
    with pytest.raises(ValueError, match="The tokenizer of .* is not the one that the model was trained with"):
        write_answer_prompt(saved, TAUGHT)
    assert files(saved) == changed
    (saved / "chat_template.jinja").write_text(template)
    # A checkpoint within a training.
    write_checksums(saved)
    with pytest.raises(ValueError, match="is a checkpoint that a training resumes from"):
        write_answer_prompt(saved, TAUGHT)
    (saved / "checksums.json").unlink()
    content = (saved / "config.json").read_text()
    (saved / "config.json").write_text(content.replace('"num_implicit_tokens": 4', '"num_implicit_tokens": 5'))
    damaged = files(saved)
    with pytest.raises(ValueError, match="is not as it was saved"):
        write_answer_prompt(saved, TAUGHT)
    assert files(saved) == damaged


def test_what_fails_while_writing_leaves_the_checkpoint_whole(saved, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(variants, "write_atomically", full)
    before = files(saved)
    with pytest.raises(OSError, match="No space left"):
        write_answer_prompt(saved, TAUGHT)
    assert files(saved) == before and not [path for path in saved.iterdir() if path.is_dir()]
    assert load_file(saved / "model.safetensors")
