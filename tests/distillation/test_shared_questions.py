"""`use_question_cache` against the plain forward pass: the same loss and gradients."""

import pytest
import torch
from distillation_models import ANSWER_PROMPT, batch, config, loss_and_gradients

from semcot_hf import SemCoTDistillationTrainer, build_alignment_encoder

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize(
    ("family", "found"), [("llama", True), ("llama", False), ("gpt2", True), ("gemma3_text", True), ("qwen3", True)]
)
def test_a_question_cache_gives_the_same_loss_and_gradients(tiny_lm, tiny_semcot, family, mode, found):
    sliding = {"sliding_window": 4} if family == "gemma3_text" else {}
    model = tiny_semcot(tiny_lm(family, **sliding), generator_mode=mode, answer_prompt_ids=ANSWER_PROMPT).train()
    inputs, width = batch(found=found)
    plain, plain_logits, expected = loss_and_gradients(model, inputs)
    fast, logits, gradients = loss_and_gradients(model, inputs, logits_to_keep=width + 1, use_question_cache=True)
    torch.testing.assert_close(fast, plain, rtol=1e-11, atol=0)
    torch.testing.assert_close(logits, plain_logits[:, -width - 1 :], rtol=1e-9, atol=1e-11)
    assert gradients.keys() == expected.keys() and len(gradients) > 5
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-12)


def test_without_an_answer_prompt_too(tiny_semcot):
    model = tiny_semcot()
    inputs, width = batch()
    plain, _, expected = loss_and_gradients(model, inputs)
    fast, _, gradients = loss_and_gradients(model, inputs, logits_to_keep=width + 1, use_question_cache=True)
    torch.testing.assert_close(fast, plain, rtol=1e-11, atol=0)
    torch.testing.assert_close(gradients["projection.weight"], expected["projection.weight"], rtol=1e-8, atol=1e-12)


def test_nothing_of_the_question_is_kept_for_the_backward_pass(tiny_semcot):
    """The tensors that autograd saves have the columns behind the question only, but for keys and values."""
    model = tiny_semcot(generator_mode="parallel", answer_prompt_ids=ANSWER_PROMPT).train()
    inputs, width = batch(lengths=(40, 40), answers=(3, 3))
    tokens = model.implicit_embeddings(inputs["input_ids"], completion_mask=inputs["completion_mask"]).detach()
    saved = {}
    for cached in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            model(
                **inputs,
                implicit_embeddings=tokens.requires_grad_(),
                logits_to_keep=width + 1,
                use_question_cache=cached,
            )
        saved[cached] = sum(sizes)
    assert saved[True] < 0.6 * saved[False]


def test_a_split_needs_a_number_of_logits(tiny_semcot):
    inputs, _ = batch()
    model = tiny_semcot()
    assert torch.equal(model(**inputs, use_question_cache=True).logits, model(**inputs).logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_objectives_take_the_same_steps(parts, tiny_tokenizer, rows, tmp_path, checkpointing):
    """Hidden states, too, are those of the plain path; checkpointed activations change nothing."""
    logs, weights = [], []
    for cached in (False, True):
        model = parts(generator_mode="parallel")
        trainer = SemCoTDistillationTrainer(
            model=model,
            args=config(
                tmp_path / "run",
                max_steps=2,
                learning_rate=1e-3,
                alpha=0.5,
                alignment_view="hidden_state",
                step_weight=0.5,
                kl_weight=0.5,
                hidden_weight=0.5,
                use_question_cache=cached,
                activation_checkpointing=checkpointing and cached,
            ),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            alignment_encoder=build_alignment_encoder(model.host, tiny_tokenizer, embedding_dim=8),
        )
        trainer.train()
        logs.append(trainer.state.log_history[:2])
        weights.append(model.state_dict())
    for plain, fast in zip(*logs, strict=True):
        for name in ("answer_loss", "alignment_loss", "step_loss", "kl_loss", "hidden_loss", "grad_norm"):
            assert fast[name] == pytest.approx(plain[name], rel=1e-4, abs=2e-6)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
