"""Teaching words: the loss of a batch against one question at a time, by hand; and the input of LM heads."""

import pytest
import torch
from slow_path import ANSWER, GENERATORS, example_prompts, padded

from semcot_hf import SemCoTForCausalLM

WORDS = dict(generator_mode="sequential", projection="vocabulary", answer_prompt_ids=ANSWER)
THOUGHTS = [[40, 41, 42, 2], [50, 2], [60, 61, 62, 63, 64, 2], [2]]
# The first word of the first thought, and two in the middle of the third, are read but not learned.
UNLABELLED = {0: [0], 2: [2, 3]}


def taught(thoughts=THOUGHTS):
    width = max(map(len, thoughts))
    words = torch.tensor([row + [0] * (width - len(row)) for row in thoughts])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in thoughts])
    for row, places in UNLABELLED.items():
        labels[row, places] = -100
    return {"thought_input_ids": words, "thought_targets": labels}


def loss_by_hand(model, prompts, before=(), after=()):
    """Mean over labelled words of all rows: each read alone, without mask and cache."""
    losses = []
    for row, (prompt, words) in enumerate(zip(prompts, THOUGHTS, strict=True)):
        question = prompt[: -len(ANSWER)] if prompt[-len(ANSWER) :] == ANSWER else prompt
        table = model.generator.get_input_embeddings()
        parts = [table(torch.tensor([[*before, *question, *after]]))]
        if model.config.starts_with_thought_token:
            parts.append(model.thought_embedding.expand(1, 1, -1).to(parts[0].dtype))
        start = sum(part.shape[1] for part in parts)
        embeds = torch.cat([*parts, table(torch.tensor([words]))], dim=1)
        states = model.generator(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
        scores = (states @ model.projection.weight.T.to(states.dtype)).log_softmax(dim=-1)
        for place, word in enumerate(words):
            if place not in UNLABELLED.get(row, []):
                losses.append(-scores[start + place - 1, word])
    return torch.stack(losses).mean().float()


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("start", [True, False])
def test_loss_and_gradients_equal_one_row_at_a_time(tiny_lm, tiny_semcot, family, start):
    model = tiny_semcot(generator=tiny_lm(family, seed=1), starts_with_thought_token=start, **WORDS).train(False)
    model.generator.requires_grad_(True)
    prompts = example_prompts()
    expected = loss_by_hand(model, prompts)
    wanted = torch.autograd.grad(expected, list(model.generator.parameters()), allow_unused=True)
    out = model(**padded(prompts), **taught())
    assert out.loss is out.thought_loss and out.logits is None
    torch.testing.assert_close(out.loss, expected)
    got = torch.autograd.grad(out.loss, list(model.generator.parameters()), allow_unused=True)
    for mine, slow in zip(got, wanted, strict=True):
        assert (mine is None) == (slow is None)
        if mine is not None:
            torch.testing.assert_close(mine, slow, atol=1e-5, rtol=1e-3)


def test_padding_on_the_right_and_completions_change_nothing(tiny_semcot):
    model, prompts = tiny_semcot(**WORDS), example_prompts()
    expected = model(**padded(prompts), **taught()).loss
    width = max(map(len, prompts)) + 3
    ids = torch.tensor([prompt + [9] * 3 + [0] * (width - len(prompt) - 3) for prompt in prompts])
    mask = torch.tensor([[1] * (len(prompt) + 3) + [0] * (width - len(prompt) - 3) for prompt in prompts])
    done = torch.tensor([[0] * len(prompt) + [1] * 3 + [0] * (width - len(prompt) - 3) for prompt in prompts])
    out = model(input_ids=ids, attention_mask=mask, completion_mask=done, **taught())
    torch.testing.assert_close(out.loss, expected)
    # With labels for the host, both losses.
    labels = ids.masked_fill(done == 0, -100)
    both = model(input_ids=ids, attention_mask=mask, completion_mask=done, labels=labels, **taught())
    torch.testing.assert_close(both.thought_loss, expected)
    alone = model(input_ids=ids, attention_mask=mask, completion_mask=done, labels=labels)
    assert alone.thought_loss is None
    torch.testing.assert_close(both.loss, alone.loss)


def test_the_host_does_not_run(tiny_semcot):
    model = tiny_semcot(**WORDS)
    model.host.register_forward_pre_hook(lambda *_: pytest.fail("the host has run"))
    model(**padded(example_prompts()), **taught())


def test_thought_prompts_stand_around_the_questions(tiny_semcot):
    fields = {"thought_prompt_ids": [[90, 91, 92], [93]], "question_marker_ids": [[], []]}
    model, prompts = tiny_semcot(starts_with_thought_token=False, **WORDS, **fields), example_prompts()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            loss = model(**padded(prompts), **taught()).loss
        torch.testing.assert_close(loss, loss_by_hand(model, prompts, [90, 91, 92], [93]))


def test_no_labels_is_no_loss(tiny_semcot):
    model, inputs = tiny_semcot(**WORDS), taught()
    model.generator.requires_grad_(True)
    inputs["thought_targets"][:] = -100
    loss = model(**padded(example_prompts()), **inputs).loss
    loss.backward()
    assert loss == 0 and all(not p.grad.any() for p in model.generator.parameters() if p.grad is not None)


def test_bad_input(tiny_semcot):
    model, prompts = tiny_semcot(**WORDS), padded(example_prompts())
    words = taught()
    with pytest.raises(ValueError, match="thought_targets have the shapes"):
        model(**prompts, thought_input_ids=words["thought_input_ids"])
    with pytest.raises(ValueError, match="same number of rows"):
        model(**prompts, **{name: value[:2] for name, value in words.items()})
    with pytest.raises(ValueError, match="projection='linear'.*generator_mode='sequential'"):
        tiny_semcot()(**prompts, **words)


def is_matrix(states):
    """Whether torch.matmul takes states as one matrix (`should_fold` in ATen's LinearAlgebra.cpp)."""
    return all(states.stride(d) == states.stride(d + 1) * states.size(d + 1) for d in range(states.dim() - 2))


@pytest.mark.parametrize("rows", [1, 4])
def test_heads_read_states_that_torch_takes_as_one_matrix(rows, tiny_lm, tiny_semcot, tmp_path):
    """Otherwise torch copies the head's whole weight once for each row of a batch."""
    model, seen = tiny_semcot(**WORDS), []
    model.save_pretrained(tmp_path, include_host=True)
    for made in (model, SemCoTForCausalLM.from_pretrained(tmp_path)):
        for head in (made.host.get_output_embeddings(), made.projection):
            head.register_forward_pre_hook(lambda _, args: seen.append(is_matrix(args[0])))
        inputs = padded(example_prompts()[:rows])
        made(**inputs, num_implicit_tokens=3, logits_to_keep=2)
        made.generate(**inputs, max_new_tokens=2)
        made.generate(**inputs, max_new_tokens=2, num_implicit_tokens=0)
        assert len(seen) >= 8 and all(seen)
        seen.clear()
