"""The question cache of stage 2 against the plain forward pass: the same loss, gradients and weights."""

import pytest
import torch
from distillation_models import ANSWER_PROMPT, batch, config, loss_and_gradients

from semcot_hf import SemCoTDistillationTrainer
from semcot_hf.distillation.question_cache import QuestionCache, question_ids

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

GIB = 2**30


def prompts_of(inputs):
    return question_ids(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize(
    ("family", "found"), [("llama", True), ("llama", False), ("gemma3_text", True), ("qwen3", True), ("mistral", True)]
)
def test_the_question_cache_gives_the_same_loss_and_gradients(tiny_lm, tiny_semcot, family, mode, found):
    """The cache was filled in another order, so padding differs."""
    sliding = {"sliding_window": 4} if family in ("gemma3_text", "mistral") else {}
    model = tiny_semcot(tiny_lm(family, **sliding), generator_mode=mode, answer_prompt_ids=ANSWER_PROMPT).train()
    inputs, width = batch(found=found)
    cached = QuestionCache(model, prompts_of(inputs)[::-1], 2, GIB, with_generator=True)
    prompts = prompts_of(inputs)
    _, plain_logits, expected = loss_and_gradients(model, inputs)
    tokens, cache = cached.implicit_embeddings(prompts), cached.host_cache(prompts)
    torch.testing.assert_close(
        tokens,
        model.implicit_embeddings(inputs["input_ids"], inputs["attention_mask"], None, inputs["completion_mask"]),
    )
    _, logits, gradients = loss_and_gradients(
        model,
        inputs,
        logits_to_keep=width + 1,
        use_question_cache=True,
        question_cache=cache,
        implicit_embeddings=tokens,
    )
    torch.testing.assert_close(logits, plain_logits[:, -width - 1 :], rtol=1e-9, atol=1e-11)
    for name in ("thought_embedding", "projection.weight", "projection.bias"):
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-8, atol=1e-12)
    # The cache was used: the host has appended the columns after the questions.
    assert cache.get_seq_length() > prompts_length(prompts)


def test_a_question_cache_of_another_batch_is_computed_anew(tiny_semcot):
    """As under DataParallel, which gives every replica the cache of the whole batch."""
    model = tiny_semcot(answer_prompt_ids=ANSWER_PROMPT)
    inputs, width = batch(lengths=(6, 6, 6))
    cached = QuestionCache(model, prompts_of(inputs), 2, GIB, with_generator=False)
    part = {name: value[1:] for name, value in inputs.items()}
    expected = model(**part, logits_to_keep=width + 1).logits
    cache = cached.host_cache(prompts_of(inputs))
    logits = model(**part, logits_to_keep=width + 1, use_question_cache=True, question_cache=cache).logits
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)


def prompts_length(prompts):
    return max(map(len, prompts)) - len(ANSWER_PROMPT)


def test_the_generators_gradients_are_those_of_its_whole_pass_with_a_cached_host(tiny_semcot):
    model = tiny_semcot(generator_mode="parallel", answer_prompt_ids=ANSWER_PROMPT).train()
    inputs, width = batch()
    _, _, expected = loss_and_gradients(model, inputs)
    cached = QuestionCache(model, prompts_of(inputs), 2, GIB, with_generator=False)
    assert cached.implicit_embeddings(prompts_of(inputs)) is None
    options = {"use_question_cache": True, "question_cache": cached.host_cache(prompts_of(inputs))}
    _, _, gradients = loss_and_gradients(model, inputs, logits_to_keep=width + 1, **options)
    assert gradients.keys() == expected.keys() and len(gradients) > 5
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-12)


def test_what_does_not_fit_or_is_unknown_is_not_cached(tiny_semcot, tiny_lm):
    model = tiny_semcot(answer_prompt_ids=ANSWER_PROMPT)
    prompts = [[5, 6, 7, 8], [9, 5, 6, 7, 8], [4, 3, 2, 7, 8]]
    whole = QuestionCache(model, prompts, 2, GIB, with_generator=True)
    layers, heads = model.config.host_config.num_hidden_layers, model.config.host_config.num_key_value_heads
    size = model.config.host_config.hidden_size // model.config.host_config.num_attention_heads
    assert whole.host.nbytes == (2 + 3 + 3) * layers * 2 * heads * size * 8
    assert whole.host_cache([[1, 1, 7, 8]]) is None
    host_alone = QuestionCache(model, prompts, 2, whole.host.nbytes, with_generator=True)
    assert host_alone.host.fits and not host_alone.generator.fits
    assert host_alone.implicit_embeddings(prompts) is None
    nothing = QuestionCache(model, prompts, 2, whole.host.nbytes - 1, with_generator=False)
    assert not nothing.host.fits and nothing.host_cache(prompts) is None and not nothing.host.states


def test_a_generator_with_dropout_is_never_cached(tiny_semcot, tiny_lm):
    model = tiny_semcot(generator=tiny_lm("gpt2").base_model, answer_prompt_ids=ANSWER_PROMPT)
    assert QuestionCache(model, [[5, 6, 7, 8]], 2, GIB, with_generator=True).generator is None


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_a_run_with_the_question_cache_takes_the_same_steps(parts, tiny_tokenizer, rows, tmp_path, mode):
    logs, weights = [], []
    for gigabytes in (0.0, 1e-6, 1.0):
        model = parts(generator_mode=mode)
        trainer = SemCoTDistillationTrainer(
            model=model,
            args=config(
                tmp_path / "run",
                num_train_epochs=3,
                max_steps=-1,
                learning_rate=1e-3,
                projection_warmup=0.5,
                step_weight=0.5,
                kl_weight=0.5,
                question_cache_gb=gigabytes,
            ),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tiny_tokenizer,
        )
        trainer.train()
        logs.append([*trainer.state.log_history[:18], trainer.evaluate()])
        weights.append(model.state_dict())
        assert (trainer._question_cache is not None) == (gigabytes > 0)
        assert gigabytes == 0 or trainer._question_cache.host.fits == (gigabytes == 1)
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value)
        torch.testing.assert_close(weights[2][name], value, rtol=1e-3, atol=1e-4)
    for plain, fast in zip(logs[0], logs[2], strict=True):
        for name in ("loss", "answer_loss", "step_loss", "kl_loss", "grad_norm", "eval_loss"):
            assert name not in plain or fast[name] == pytest.approx(plain[name], rel=1e-3)


def test_one_epoch_caches_nothing(parts, tiny_tokenizer, rows, tmp_path):
    args = config(tmp_path / "run", num_train_epochs=1, max_steps=-1)
    trainer = SemCoTDistillationTrainer(model=parts(), args=args, train_dataset=rows, processing_class=tiny_tokenizer)
    trainer.train()
    assert trainer._question_cache is None


def test_a_negative_budget_is_refused(tmp_path):
    with pytest.raises(ValueError, match="question_cache_gb=-1 must lie in \\[0, inf\\)"):
        config(tmp_path, question_cache_gb=-1)
