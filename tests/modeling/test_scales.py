"""Implicit tokens and fed-back states start at the size of word embeddings, and stay so in a checkpoint."""

import pytest
import torch

from semcot_hf import SemCoTForCausalLM


def rms(tensor):
    return tensor.float().pow(2).mean().sqrt().item()


def test_tokens_start_at_the_size_of_the_hosts_words(tiny_semcot):
    model = tiny_semcot(generator_mode="sequential")
    words = model.get_input_embeddings()(torch.arange(64))
    tokens = model.implicit_embeddings(torch.arange(5, 25)[None])
    assert rms(tokens) == pytest.approx(rms(words), rel=0.5)


def test_fed_back_states_are_scaled(tiny_semcot, tmp_path):
    model = tiny_semcot(generator_mode="sequential")
    ids = torch.arange(64)[None]
    words = model.generator.get_input_embeddings()(ids)
    states = model.generator(inputs_embeds=words, use_cache=False).last_hidden_state
    assert model.config.feedback_scale == pytest.approx(rms(words) / rms(states), rel=1e-6)

    prompt = torch.arange(5, 25)[None]
    tokens = model.implicit_embeddings(prompt)
    model.save_pretrained(tmp_path)
    again = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert again.config.feedback_scale == model.config.feedback_scale
    assert torch.equal(again.implicit_embeddings(prompt), tokens)

    model.config.feedback_scale = 1.0
    unscaled = model.implicit_embeddings(prompt)
    assert torch.equal(unscaled[:, 0], tokens[:, 0])  # nothing is fed back before the first token
    assert not torch.allclose(unscaled[:, 1:], tokens[:, 1:])
