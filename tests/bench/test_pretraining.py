"""The bench's committed models: frozen hosts that read their generators' words without any distillation."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.answers import check_answer
from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.evaluation import answer_questions
from semcot_hf.inference.prompting import answer_prompt_ids

MODELS = Path(__file__).parents[2] / "examples" / "bench" / "models"


@pytest.mark.parametrize("name", sorted(folder.name for folder in MODELS.iterdir()))
def test_models_fit_their_task(name):
    own = BENCH_TASKS[name]
    host, generator = (AutoModelForCausalLM.from_pretrained(MODELS / name / part) for part in ("host", "generator"))
    assert host.dtype == generator.dtype == torch.float32
    assert host.config.num_hidden_layers == own.host_layers
    assert (generator.config.num_hidden_layers, generator.config.hidden_size) == own.generator_shape
    assert generator.num_parameters() <= host.num_parameters() / 3
    texts = [row["query"] + row["words"] for row in own.generate(20, 0, "validation")]
    tokenizers = [AutoTokenizer.from_pretrained(MODELS / name / part) for part in ("host", "generator")]
    assert tokenizers[0](texts)["input_ids"] == tokenizers[1](texts)["input_ids"]


@pytest.mark.parametrize("name", ["arithmetic", "multiplication"])
def test_the_host_reads_the_words_of_the_generator(name):
    own, count = BENCH_TASKS[name], 40
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name / "host")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        MODELS / name / "host",
        MODELS / name / "generator",
        num_implicit_tokens=own.soft_words.tokens or own.num_implicit_tokens,
        generator_mode="sequential",
        projection=own.soft_words.projection,
        thought_token_id=tokenizer(own.soft_words.thought, add_special_tokens=False)["input_ids"][-1],
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    ).eval()
    rows = own.generate(count, 0, "validation")
    right = {}
    for method in ("no_cot", "semcot"):
        answers = answer_questions(model, tokenizer, [row["query"] for row in rows], method=method, max_new_tokens=12)
        checked = zip(answers, rows, strict=True)
        right[method] = sum(check_answer(answer.output, row["answer"], own.answer_type) for answer, row in checked)
    assert right["semcot"] >= 0.85 * count and right["no_cot"] <= 0.5 * count, right
