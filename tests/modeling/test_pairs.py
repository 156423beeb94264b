"""Any decoder-only pair: each family as host and as generator, against the slow path and one by one."""

import pytest
import torch
from slow_path import ANSWER, GENERATORS, HOSTS, example_prompts, new_ids, padded, slow_path

from semcot_hf import SemCoTForCausalLM

NEW = 5


@pytest.fixture(scope="module")
def lms(tiny_lm):
    """Function (name, hidden_size) -> one model per family, shared by the module's tests."""
    made = {}

    def get(name, hidden_size):
        if (name, hidden_size) not in made:
            made[name, hidden_size] = tiny_lm(name.partition("-")[0], hidden_size=hidden_size, **HOSTS[name])
        return made[name, hidden_size]

    return get


def check_against_the_slow_path(model, prompts):
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    batch = model.generate(**inputs, max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True)
    tokens = model.implicit_embeddings(**inputs)
    for row, prompt in enumerate(prompts):
        single = torch.tensor([prompt])
        torch.testing.assert_close(tokens[row], model.implicit_embeddings(single)[0], atol=1e-6, rtol=1e-6)
        ids, logits = slow_path(model, prompt, NEW)
        assert new_ids(batch, width)[row] == ids
        torch.testing.assert_close(torch.stack(batch.logits)[:, row], logits.float(), atol=1e-4, rtol=1e-4)
        assert new_ids(model.generate(single, max_new_tokens=NEW), len(prompt)) == [ids]


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(host, lms, tiny_semcot):
    model = tiny_semcot(lms(host, 32), lms("llama", 16), answer_prompt_ids=ANSWER)
    check_against_the_slow_path(model, example_prompts()[:3])


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_generators(generator, mode, lms, tiny_semcot):
    model = tiny_semcot(lms("gpt2", 32), lms(generator, 16), answer_prompt_ids=ANSWER, generator_mode=mode)
    check_against_the_slow_path(model, example_prompts()[:3])


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("host", HOSTS)
def test_pairs(host, generator, lms, tiny_semcot):
    """Padded batches equal single prompts, and the loss reaches the generator, in every pair."""
    model = tiny_semcot(lms(host, 32), lms(generator, 16), 2, answer_prompt_ids=ANSWER)
    prompts = example_prompts()[2:]
    inputs = padded(prompts)
    width = inputs["input_ids"].shape[1]
    batch = new_ids(model.generate(**inputs, max_new_tokens=3), width)
    for row, prompt in enumerate(prompts):
        assert model.generate(torch.tensor([prompt]), max_new_tokens=3)[0, len(prompt) :].tolist() == batch[row]
    labels = inputs["input_ids"].clone()
    labels[:, :-1] = -100
    model(**inputs, labels=labels).loss.backward()
    assert model.thought_embedding.grad.abs().sum() > 0 and model.host.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("host", HOSTS)
def test_both_layouts_reload_equal(host, lms, tiny_semcot, tmp_path):
    lms(host, 32).save_pretrained(tmp_path / "host")
    lms("llama", 16).save_pretrained(tmp_path / "generator")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        tmp_path / "host", tmp_path / "generator", num_implicit_tokens=3, answer_prompt_ids=ANSWER
    )
    prompts = torch.tensor(example_prompts()[:1])
    expected = model.generate(prompts, max_new_tokens=NEW)
    for layout in ("attached", "whole"):
        model.save_pretrained(tmp_path / layout, include_host=layout == "whole")
        loaded, report = SemCoTForCausalLM.from_pretrained(tmp_path / layout, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(not parameter.requires_grad for parameter in loaded.host.parameters())
        tied = loaded.host.get_output_embeddings().weight is loaded.host.get_input_embeddings().weight
        assert tied == bool(model.host.config.tie_word_embeddings)
        assert torch.equal(loaded.generate(prompts, max_new_tokens=NEW), expected)


def test_a_host_with_a_cache_of_its_own(tiny_lm, tiny_semcot):
    """Linear attention keeps no keys and values in some layers; transformers tells such families by name."""
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["linear_attention", "full_attention"]}
    host = tiny_lm("minimax", **sizes)
    model = tiny_semcot(host, answer_prompt_ids=ANSWER)
    prompt = torch.tensor(example_prompts()[:1])
    plain = model.generate(prompt, max_new_tokens=NEW, num_implicit_tokens=0)
    assert torch.equal(plain, host.generate(prompt, max_new_tokens=NEW))
    ids, _ = slow_path(model, prompt[0].tolist(), NEW)
    assert new_ids(model.generate(prompt, max_new_tokens=NEW), prompt.shape[1]) == [ids]


def test_a_generator_whose_backbone_has_no_name(tiny_lm, tiny_semcot):
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "head_dim": 8}
    model = tiny_semcot(generator=tiny_lm("llama4_text", hidden_size=16, **sizes), answer_prompt_ids=ANSWER)
    assert model.implicit_embeddings(torch.tensor(example_prompts()[:1])).isfinite().all()
