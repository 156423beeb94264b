"""Stage 2's curriculum over steps, held against the host run by hand on one row at a time."""

import math

import pytest
import torch
from datasets import Dataset
from distillation_models import config
from torch.nn import functional as F

from semcot_hf import SemCoTDistillationTrainer
from semcot_hf.distillation.data import group_steps
from semcot_hf.inference.prompting import ANSWER_PROMPT, encode_prompt, prompt_text

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

ROWS = [
    {"query": "What is 1 + 2 + 3?", "steps": ["1 + 2 = 3.", "3 + 3 = 6.", "So 6."], "answer": "6"},
    {"query": "And twice 4?", "steps": ["4 + 4 = 8."], "answer": "8"},
    {"query": "Two and two?", "steps": ["2 + 2 = 4.", "That is 4."], "answer": "four"},
]
ROWS = [{**row, "reasoning": " ".join(row["steps"])} for row in ROWS]


def make_trainer(parts, tokenizer, folder, rows=ROWS, count=3, **options):
    return SemCoTDistillationTrainer(
        model=parts(num_implicit_tokens=count),
        args=config(folder, curriculum=0.5, per_device_train_batch_size=len(rows), **options),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list([{**row, "query": row["query"] + " Now."} for row in rows]),
        processing_class=tokenizer,
    )


def by_hand(trainer, tokenizer, row, stage):
    """Cross-entropies of the words that are left and of the answer, behind the row's implicit tokens."""
    model = trainer.model
    question = encode_prompt(tokenizer, prompt_text(tokenizer, row["query"]))
    words = " ".join(filter(None, group_steps(row["steps"], 3)[stage:]))
    parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (words, ANSWER_PROMPT)]
    answer = tokenizer(" " + row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    table = model.host.get_input_embeddings()
    tokens = model.implicit_embeddings(torch.tensor([question]))
    text = table(torch.tensor([[*parts[0], *parts[1], *answer]]))
    embeds = torch.cat([table(torch.tensor([question])), tokens, text], dim=1)
    labels = torch.tensor([*parts[0], *[-100] * len(parts[1]), *answer])
    logits = model.host(inputs_embeds=embeds, use_cache=False).logits[0, -len(labels) - 1 : -1]
    return F.cross_entropy(logits, labels, reduction="none")[labels != -100]


@pytest.mark.parametrize(("step", "stage"), [(0, 1), (2, 2), (4, 3), (7, 3)])
def test_loss_is_that_of_the_words_left_and_the_answer(parts, tiny_tokenizer, tmp_path, step, stage):
    trainer = make_trainer(parts, tiny_tokenizer, tmp_path / "run", max_steps=8)
    trainer.state.max_steps, trainer.state.global_step = 8, step
    trainer.model.train()
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    losses = [by_hand(trainer, tiny_tokenizer, row, stage) for row in ROWS]
    torch.testing.assert_close(loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-6)
    loss.backward()
    gradient = trainer.model.projection.weight.grad.clone()
    trainer.model.zero_grad()
    torch.cat([by_hand(trainer, tiny_tokenizer, row, stage) for row in ROWS]).mean().backward()
    torch.testing.assert_close(gradient, trainer.model.projection.weight.grad, rtol=1e-3, atol=1e-6)


def test_every_objective_goes_through_all_stages(parts, tiny_tokenizer, tmp_path):
    options = {"step_weight": 1.0, "kl_weight": 0.5, "hidden_weight": 0.5, "alpha": 0.2}
    trainer = make_trainer(
        parts, tiny_tokenizer, tmp_path / "run", max_steps=6, alignment_view="mean_pooled", **options
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "kl_loss" in entry]
    assert len(logged) == 6
    for entry in logged:
        assert all(math.isfinite(value) for name, value in entry.items() if name.endswith("loss"))


def test_evaluation_has_no_words(parts, tiny_tokenizer, tmp_path):
    trainer = make_trainer(parts, tiny_tokenizer, tmp_path / "run", per_device_eval_batch_size=3)
    expected = []
    for row in ROWS:
        losses = by_hand(trainer, tiny_tokenizer, {**row, "query": row["query"] + " Now."}, 3)
        expected.append(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.cat(expected).mean().item(), rel=1e-4)


def test_words_beyond_the_context_are_an_error(parts, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="words of the curriculum and answer"):
        make_trainer(parts, tiny_tokenizer, tmp_path / "run", max_length=40)


def test_one_token_or_no_reasoning_is_an_error(parts, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="needs 2 implicit tokens or more"):
        make_trainer(parts, tiny_tokenizer, tmp_path / "run", count=1)
    with pytest.raises(ValueError, match="curriculum > 0 need"):
        rows = [{"query": "a", "reasoning": "", "answer": "b", "steps": []}]
        make_trainer(parts, tiny_tokenizer, tmp_path / "run", rows=rows)
