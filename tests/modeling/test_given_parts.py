"""Hosts and generators as users hand them over: changed since they were loaded, with adapters, of odd layers."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from slow_path import ANSWER, STATEFUL, example_prompts
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from semcot_hf import SemCoTConfig, SemCoTForCausalLM

# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.arange(10, 18)[None]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def with_adapter(model):
    model.add_adapter(LoraConfig(**LORA))
    return model


def wrapped(model):
    return get_peft_model(model, LoraConfig(**LORA))


def with_another_head(model):
    if model.get_output_embeddings() is not None:
        head = model.get_output_embeddings().weight
        model.lm_head = nn.Linear(head.shape[1], head.shape[0], bias=False, dtype=head.dtype)
    return model


@pytest.mark.parametrize("change", [with_adapter, wrapped, with_another_head])
def test_what_is_handed_over_stays_as_it_is(tiny_lm, tiny_semcot, change):
    host, generator = change(tiny_lm(seed=0)), change(tiny_lm(hidden_size=16, seed=1))
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in (host, generator)]
    expected = host(IDS).logits
    model = tiny_semcot(host, generator)
    for part, values in zip((host, generator), before, strict=True):
        after = part.state_dict()
        assert all(torch.equal(after[name], value) for name, value in values.items())
    torch.testing.assert_close(model(IDS, num_implicit_tokens=0).logits, expected)
    assert model.implicit_embeddings(IDS).isfinite().all()


def test_a_host_with_adapters_is_saved_merged_and_never_by_its_name(tiny_lm, tmp_path):
    folders = {name: str(tmp_path / name) for name in ("base", "adapter", "generator", "saved", "attached")}
    tiny_lm(dtype=torch.float32).save_pretrained(folders["base"])
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(folders["generator"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folders["base"]), LoraConfig(**LORA))
    adapted.save_pretrained(folders["adapter"])
    expected = adapted.eval()(IDS).logits
    hosts = {
        "its folder": folders["adapter"],
        "peft's wrapper": PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folders["base"]), folders["adapter"]
        ),
    }
    for kind, host in hosts.items():
        model = SemCoTForCausalLM.from_host_generator_pretrained(host, folders["generator"], num_implicit_tokens=2)
        torch.testing.assert_close(model(IDS, num_implicit_tokens=0).logits, expected, msg=kind)
        with pytest.raises(ValueError, match="include_host=False names the host .*, but this one has adapters"):
            model.save_pretrained(folders["attached"], include_host=False)
        model.save_pretrained(folders["saved"])
        loaded = SemCoTForCausalLM.from_pretrained(folders["saved"])
        assert not any("lora" in name for name in loaded.state_dict())
        torch.testing.assert_close(loaded(IDS, num_implicit_tokens=0).logits, expected, rtol=1e-4, atol=1e-5, msg=kind)


def test_a_generator_with_adapters_is_saved_merged(tiny_lm, tiny_semcot, tmp_path):
    model = tiny_semcot(generator=with_adapter(tiny_lm(hidden_size=16, seed=1)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, include_host=True)
    tokens = SemCoTForCausalLM.from_pretrained(tmp_path).implicit_embeddings(IDS)
    torch.testing.assert_close(tokens, model.implicit_embeddings(IDS), rtol=1e-6, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "more", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [5, 6]}]
)
def test_layers_trained_beside_a_hosts_adapters_are_saved_too(tiny_lm, tiny_semcot, tmp_path, more):
    adapted = get_peft_model(tiny_lm(), LoraConfig(**LORA, **more)).eval()
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "modules_to_save" in name or "token_adapter" in name:
                value.add_(0.3)
    expected = adapted(IDS).logits
    model = tiny_semcot(adapted)
    model.save_pretrained(tmp_path)
    loaded, info = SemCoTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(loaded(IDS, num_implicit_tokens=0).logits, expected)
    torch.testing.assert_close(model(IDS, num_implicit_tokens=0).logits, expected)


def test_a_model_with_adapters_put_into_it_is_saved_whole(tiny_semcot, tmp_path):
    model = with_adapter(tiny_semcot(answer_prompt_ids=ANSWER))
    model.save_pretrained(tmp_path, include_host=True)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.implicit_embeddings(IDS), model.implicit_embeddings(IDS))
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    assert model._hf_peft_config_loaded


@pytest.mark.parametrize("family", STATEFUL)
def test_layers_with_a_state(tiny_lm, tiny_semcot, family):
    """Through states that are overwritten no gradient passes, and they cannot be cut back."""
    host = tiny_lm(family, **STATEFUL[family])
    model = tiny_semcot(host, answer_prompt_ids=ANSWER).train()
    ids = torch.tensor([[10, 11, 12, 13, *ANSWER, 30, 31], [20, 21, 22, 23, *ANSWER, 32, 33]])
    labels = ids.masked_fill(torch.arange(8) < 6, -100)
    made = []
    for cached in (False, True):
        model.zero_grad()
        loss = model(ids, labels=labels, logits_to_keep=3, use_cache=False, use_question_cache=cached).loss
        loss.backward()
        made.append([loss.detach(), *(value.grad.clone() for value in model.parameters() if value.grad is not None)])
    torch.testing.assert_close(made[1], made[0])
    prompt = torch.tensor(example_prompts()[:1])
    assert model.eval().generate(prompt, max_new_tokens=3).shape[1] == prompt.shape[1] + 3
    with pytest.raises(ValueError, match="stateful"):
        model.generate(prompt, prompt_lookup_num_tokens=2, max_new_tokens=3)
    generator = tiny_lm(family, seed=1, **STATEFUL[family])
    sequential = tiny_semcot(generator=generator, generator_mode="sequential")
    with torch.no_grad():
        assert sequential.implicit_embeddings(prompt).isfinite().all()
    with pytest.raises(ValueError, match=f"'sequential' cannot be trained with a {family} generator"):
        sequential.implicit_embeddings(prompt)
    tiny_semcot(generator=generator).implicit_embeddings(prompt).sum().backward()


@pytest.mark.parametrize("family, sizes", [("mamba", {"state_size": 8}), ("rwkv", {"attention_hidden_size": 32})])
def test_a_host_without_attention_is_refused(tiny_lm, tiny_semcot, family, sizes):
    with pytest.raises(ValueError, match=f"host is a {family}, which keeps no keys and values"):
        tiny_semcot(tiny_lm(family, **sizes))


def test_a_host_whose_layers_read_ids_is_refused(tiny_lm, tiny_semcot):
    host = tiny_lm(
        "gemma3n_text",
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=320,
        laurel_rank=8,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=None,
        intermediate_size=[48, 48],
    )
    with pytest.raises(ValueError, match="hidden_size_per_layer_input=8"):
        tiny_semcot(host)


def test_clients_read_how_long_a_prompt_may_be():
    def limited(context):
        return LlamaConfig(
            hidden_size=16, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context
        )

    config = SemCoTConfig(host_config=limited(100), generator_config=limited(400), num_implicit_tokens=5)
    assert (config.max_position_embeddings, config.num_key_value_heads) == (95, 1)
    assert "max_position_embeddings" not in config.to_diff_dict()
    config = SemCoTConfig(host_config=limited(100), generator_config=limited(40), num_implicit_tokens=5)
    assert config.max_position_embeddings == 35
    # In tokens of its own the generator's limit says nothing about the host's.
    config.separate_generator_tokenizer = True
    assert config.max_position_embeddings == 95
    config.separate_generator_tokenizer, config.thought_prompt_ids = False, [[5] * 10, [6] * 4]
    assert config.max_position_embeddings == 40 - 14 - 5
    assert not hasattr(SemCoTConfig(), "max_position_embeddings")


def test_clients_set_how_long_a_prompt_may_be(tiny_lm, tmp_path):
    host, generator = tiny_lm(max_position_embeddings=100), tiny_lm(hidden_size=16, max_position_embeddings=40)
    host.save_pretrained(tmp_path / "host")
    generator.save_pretrained(tmp_path / "generator")
    pair = SemCoTForCausalLM.from_host_generator_pretrained(
        tmp_path / "host", tmp_path / "generator", num_implicit_tokens=5
    )
    pair.save_pretrained(tmp_path / "semcot", include_host=True)
    model = SemCoTForCausalLM.from_pretrained(tmp_path / "semcot", max_position_embeddings=60)
    assert model.config.max_position_embeddings == 60
    assert model.host.config.max_position_embeddings == 65
    model.generate(torch.full((1, 58), 9), max_new_tokens=2)
    with pytest.raises(ValueError, match="65"):
        model.generate(torch.full((1, 58), 9), max_new_tokens=3)
    config = SemCoTConfig(host_config=host.config, generator_config=generator.config, max_position_embeddings=50)
    assert config.max_position_embeddings == 50
