"""The step decoder: `implicit_steps`, which reads implicit tokens as reasoning steps, and the loss it learns by."""

import pytest
import torch
from slow_path import example_prompts, padded

from semcot_hf import SemCoTForCausalLM
from semcot_hf.modeling import modeling_semcot
from semcot_hf.modeling.modeling_semcot import step_decoding_loss

LIMIT = 12


@pytest.fixture
def model(tiny_lm, tiny_semcot, tiny_tokenizer):
    """A model whose step decoder is narrower than its host, and ends some of its steps."""
    made = tiny_semcot(generator_mode="sequential")
    decoder = tiny_lm("qwen2", hidden_size=16, seed=7)
    # Such settings come with instruct models.
    decoder.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, min_new_tokens=LIMIT)
    made.add_step_decoder(decoder)
    made.generator_tokenizer = tiny_tokenizer
    return made


@pytest.fixture
def prompts():
    return example_prompts()


def read_by_hand(model, tokenizer, token, limit=LIMIT):
    """The words that the decoder adds greedily to one token, computed anew for each."""
    decoder, ids = model.step_decoder, []
    embeds = model.step_projection(token)[None, None]
    while len(ids) < limit:
        ids.append(int(decoder(inputs_embeds=embeds).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
        embeds = torch.cat([embeds, decoder.get_input_embeddings()(torch.tensor([ids[-1:]]))], dim=1)
    return tokenizer.decode(ids, skip_special_tokens=True)


@torch.no_grad()
def test_each_token_is_read_greedily(model, prompts, tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    # Some steps end before the limit.
    model.step_decoder.lm_head.weight[end] *= 1.5
    found = model.implicit_steps(**padded(prompts), max_new_tokens=LIMIT)
    tokens = [model.implicit_embeddings(torch.tensor([prompt]))[0] for prompt in prompts]
    expected = [[read_by_hand(model, tiny_tokenizer, token) for token in row] for row in tokens]
    assert found == expected
    sizes = {len(tiny_tokenizer(step)["input_ids"]) for row in found for step in row}
    assert len(sizes) > 1 and len({step for row in found for step in row}) > 3
    assert model.implicit_text(**padded(prompts)) == [
        "\n".join(row) for row in model.implicit_steps(**padded(prompts), max_new_tokens=64)
    ]


def test_their_number_can_be_chosen(model, prompts):
    few = model.implicit_steps(**padded(prompts), num_implicit_tokens=2)
    assert [row[:2] for row in model.implicit_steps(**padded(prompts), num_implicit_tokens=4)] == few
    assert model.implicit_steps(**padded(prompts), num_implicit_tokens=0) == [[] for _ in prompts]


def test_the_decoder_is_left_as_it_was(model, prompts):
    before = model.step_decoder.generation_config.to_dict()
    with pytest.raises(ValueError, match="ids from -4"):
        model.implicit_steps(torch.tensor([[-4, 5]]))
    model.implicit_steps(**padded(prompts))
    assert model.step_decoder.generation_config.to_dict() == before


def test_a_step_stays_within_the_decoders_context(tiny_lm, tiny_semcot, prompts, tiny_tokenizer):
    model = tiny_semcot()
    model.add_step_decoder(tiny_lm("gpt2", hidden_size=16, max_position_embeddings=5))
    [first, *_], *_ = model.implicit_steps(**padded(prompts), tokenizer=tiny_tokenizer)
    [longest, *_], *_ = model.implicit_steps(**padded(prompts), tokenizer=tiny_tokenizer, max_new_tokens=5)
    assert first == longest


def test_what_cannot_be_read_is_told(model, prompts, tiny_semcot, tiny_tokenizer):
    with pytest.raises(ValueError, match="max_new_tokens=0: a step has at least one token"):
        model.implicit_steps(**padded(prompts), max_new_tokens=0)
    model.generator_tokenizer = None
    with pytest.raises(ValueError, match="tokenizer=None, and no tokenizer is found at"):
        model.implicit_steps(**padded(prompts))
    model.config.separate_generator_tokenizer = True
    model.generator_tokenizer = tiny_tokenizer
    with pytest.raises(ValueError, match="tokenizer=None, and model.host_tokenizer is None"):
        model._steps_tokenizer()
    plain = tiny_semcot()
    with pytest.raises(ValueError, match="step_decoder is None: .*train with step_weight above 0"):
        plain.implicit_steps(**padded(prompts))
    with pytest.raises(ValueError, match="read them by implicit_steps, which needs a step decoder"):
        plain.implicit_text(**padded(prompts))


def test_loaded_checkpoints_read_the_same(model, prompts, tiny_tokenizer, tmp_path):
    model.save_pretrained(tmp_path, include_host=True)
    tiny_tokenizer.save_pretrained(tmp_path)
    again = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert again.implicit_steps(**padded(prompts)) == model.implicit_steps(**padded(prompts))


def test_steps_are_in_the_hosts_words(model, prompts, tiny_tokenizer, char_tokenizer):
    """Whatever the generator reads."""
    model.config.separate_generator_tokenizer = True
    model.host_tokenizer, model.generator_tokenizer = tiny_tokenizer, char_tokenizer
    ids = padded(prompts)
    assert model.implicit_steps(**ids) == model.implicit_steps(**ids, tokenizer=tiny_tokenizer)
    assert model.implicit_steps(**ids) != model.implicit_steps(**ids, tokenizer=char_tokenizer)


def loss_by_hand(decoder, latents, ids, mask):
    """The mean over all tokens of all steps, one step at a time."""
    losses = []
    for row, used in zip(ids.flatten(0, 1), mask.flatten(0, 1), strict=True):
        step = row[: int(used.sum())]
        latent = latents.flatten(0, 1)[len(losses)]
        embeds = torch.cat([latent[None], decoder.get_input_embeddings()(step[:-1])])[None] if len(step) else None
        losses.append(
            torch.nn.functional.cross_entropy(decoder(inputs_embeds=embeds).logits[0], step, reduction="none")
            if len(step)
            else latents.new_empty(0)
        )
    return torch.cat(losses).mean()


@pytest.mark.parametrize("limit", [1, 4 * 320, 30 * 320, 2**27])
def test_the_loss_is_that_of_each_step_alone(tiny_lm, monkeypatch, limit):
    """However many logits are in memory at once, with no more of them than that but in a single step."""
    decoder = tiny_lm("gemma2", hidden_size=16, final_logit_softcapping=2.0)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[3, 0, 7], [1, 9, 2]])
    mask = (torch.arange(9) < lengths[..., None]).long()
    ids = torch.randint(10, 300, mask.shape, generator=generator)
    latents = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = [latents, *decoder.parameters()]
    loss = loss_by_hand(decoder, latents, ids, mask)
    expected = torch.autograd.grad(loss, weights, allow_unused=True)
    calls = []
    decoder.register_forward_hook(lambda module, inputs, output: calls.append(output.logits.shape[:2]))
    monkeypatch.setattr(modeling_semcot, "_LOGITS_AT_ONCE", limit)
    found = step_decoding_loss(decoder, latents, ids, mask)
    torch.testing.assert_close(found.double(), loss, atol=1e-6, rtol=1e-6)
    forward = list(calls)
    gradients = torch.autograd.grad(found, weights, allow_unused=True)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)
    assert all(rows == 1 or rows * length * 320 <= limit for rows, length in forward)
    assert sum(rows for rows, _ in forward) == 5 and len(forward) == {1: 5, 1280: 4, 9600: 2}.get(limit, 1)
    # Each of several is computed again.
    assert len(calls) == len(forward) * (1 if len(forward) == 1 else 2)


def test_dropout_is_the_same_when_steps_are_computed_again(tiny_lm, monkeypatch):
    decoder = tiny_lm("gpt2", hidden_size=16, resid_pdrop=0.5).train()
    latents = torch.randn(2, 2, 16, dtype=torch.float64, requires_grad=True)
    ids, mask = torch.randint(10, 300, (2, 2, 4)), torch.ones(2, 2, 4, dtype=torch.long)
    monkeypatch.setattr(modeling_semcot, "_LOGITS_AT_ONCE", 1)

    def gradient(again):
        with monkeypatch.context() as patch:
            if not again:
                patch.setattr(modeling_semcot, "checkpoint", lambda function, *rest, **_: function(*rest))
            torch.manual_seed(0)
            return torch.autograd.grad(step_decoding_loss(decoder, latents, ids, mask), latents)[0]

    torch.testing.assert_close(gradient(again=True), gradient(again=False))


def test_a_decoder_that_is_divided_among_processes_is_called_once(tiny_lm, monkeypatch):
    decoder = tiny_lm("llama", hidden_size=16)
    decoder.lm_head.weight.ds_id = 0
    calls = []
    decoder.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(modeling_semcot, "_LOGITS_AT_ONCE", 1)
    latents = torch.randn(2, 2, 16, dtype=torch.float64)
    step_decoding_loss(decoder, latents, torch.ones(2, 2, 4, dtype=torch.long), torch.ones(2, 2, 4, dtype=torch.long))
    assert calls == [1]


def test_no_step_is_no_loss(tiny_lm):
    latents = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(2, 3, 4, dtype=torch.long)
    loss = step_decoding_loss(tiny_lm("llama", hidden_size=16), latents, nothing, nothing)
    assert loss.item() == 0 and not torch.autograd.grad(loss, latents)[0].any()
