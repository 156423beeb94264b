"""lm-evaluation-harness gives the answers and verdicts of `evaluate`, question by question."""

import json
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.data import load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.data.schema import FEATURES
from semcot_hf.data.tasks import coin_flip
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH
from semcot_hf.evaluation import evaluate
from semcot_hf.evaluation.predictions import read_predictions
from semcot_hf.inference.prompting import answer_prompt_ids, prompt_text, with_answer_prompt
from semcot_hf.inference.templates import change_few_shot
from semcot_hf.lm_eval_tasks import INCLUDE_PATH

QUESTIONS = 12
NEW_TOKENS = 24


@pytest.fixture
def harness(monkeypatch, tmp_path):
    """Function (model, task, *flags) -> what the command lm_eval logs of each question, in their order."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install semcot-hf[lm-eval]")
    from lm_eval.__main__ import cli_evaluate

    def run(model, task, *flags):
        command = ["lm_eval", "--model", "hf", "--tasks", task, "--include_path", str(INCLUDE_PATH), "--device", "cpu"]
        command += ["--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32", "--batch_size", "5"]
        command += ["--gen_kwargs", f"max_gen_toks={NEW_TOKENS}", "--limit", str(QUESTIONS), "--log_samples"]
        monkeypatch.setattr(sys, "argv", [*command, "--output_path", str(tmp_path / "harness"), *flags])
        cli_evaluate()
        (samples,) = (tmp_path / "harness").glob(f"**/samples_{task}_*.jsonl")
        records = [json.loads(line) for line in samples.read_text().splitlines()]
        return sorted(records, key=lambda record: record["doc_id"])

    return run


def evaluated(model, rows, method, folder):
    evaluate(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        rows.select(range(QUESTIONS)),
        methods=[method],
        controls=False,
        output_dir=folder,
        max_new_tokens=NEW_TOKENS,
        latency_samples=0,
        progress=False,
    )
    return read_predictions(folder / f"predictions-{method}.jsonl")


def assert_same(samples, predictions):
    assert len(samples) == len(predictions) == QUESTIONS
    for sample, prediction in zip(samples, predictions, strict=True):
        assert sample["doc"]["query"] == prediction["question"]
        assert sample["resps"] == [[prediction["output"]]]
        assert bool(sample["accuracy"]) is prediction["correct"]
    assert len({prediction["correct"] for prediction in predictions}) == 2, "both verdicts must occur"


def test_a_semcot_checkpoint_is_judged_with_its_implicit_tokens(harness, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(HOST_PATH)
    torch.manual_seed(0)
    model = SemCoTForCausalLM.from_host_generator_pretrained(HOST_PATH, GENERATOR_PATH, num_implicit_tokens=2)
    model.config.answer_prompt_ids = answer_prompt_ids(tokenizer)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    with_answer_prompt(tokenizer).save_pretrained(folder)

    predictions = evaluated(folder, load_reasoning_dataset("coin_flip")["test"], "semcot", tmp_path / "evaluate")
    assert_same(harness(folder, "semcot_coin_flip"), predictions)


def test_any_dataset_and_causal_lm_are_judged_without_chain_of_thought(harness, tmp_path):
    rows = coin_flip.generate(QUESTIONS + 3, seed=5, split="test")
    write_splits({"test": Dataset.from_list(rows, features=FEATURES)}, tmp_path / "data")
    metadata = json.dumps({"dataset": str(tmp_path / "data")})
    predictions = evaluated(
        HOST_PATH, load_reasoning_dataset(tmp_path / "data", "test"), "no_cot", tmp_path / "evaluate"
    )
    assert_same(harness(HOST_PATH, "semcot_dataset", "--metadata", metadata), predictions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pretrained="m"), "this task has no dataset of its own: add --metadata"),
        (dict(dataset="coin_flip"), "the prompts need the model's tokenizer"),
    ],
)
def test_what_is_missing_is_told(options, message):
    from semcot_hf.lm_eval_tasks.utils import load_questions

    with pytest.raises(ValueError, match=message):
        load_questions(**options)


def test_a_tokenizer_that_would_double_special_tokens_is_refused(tiny_lm, tiny_tokenizer, tmp_path):
    from tokenizers.processors import TemplateProcessing

    from semcot_hf.lm_eval_tasks.utils import load_questions

    tiny_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.save_pretrained(tmp_path / "model")
    rows = coin_flip.generate(2, split="test")
    write_splits({"test": Dataset.from_list(rows, features=FEATURES)}, tmp_path / "data")
    options = dict(dataset=str(tmp_path / "data"), pretrained=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="add add_bos_token=False to --model_args"):
        load_questions(**options)
    questions = load_questions(**options, add_bos_token=False)["test"]
    assert questions["prompt"][0] == f"<user>{rows[0]['query']}\n<assistant>\nAnswer:"
    assert questions[0]["answer_type"] == "yes_no" and questions[0]["stop"] == ""


def test_prompts_have_the_worked_examples_of_a_checkpoint(tiny_semcot, tiny_tokenizer, tmp_path):
    from semcot_hf.lm_eval_tasks.utils import load_questions

    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    shown = change_few_shot(
        model, with_answer_prompt(tiny_tokenizer), [{"query": "Up?", "words": "tails, heads", "answer": "yes"}]
    )
    model.save_pretrained(tmp_path / "model")
    shown.save_pretrained(tmp_path / "model")
    rows = coin_flip.generate(1, split="test")
    write_splits({"test": Dataset.from_list(rows, features=FEATURES)}, tmp_path / "data")
    questions = load_questions(dataset=str(tmp_path / "data"), pretrained=str(tmp_path / "model"))["test"]
    assert (
        questions["prompt"] == [prompt_text(shown, rows[0]["query"])]
        and "heads\nAnswer: yes" in questions["prompt"][0]
    )
