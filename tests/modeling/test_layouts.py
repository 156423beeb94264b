"""Both checkpoint layouts: what is written, what is loaded, with which options, and what is refused."""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from semcot_hf import SemCoTConfig, SemCoTForCausalLM
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH

PROMPT = torch.tensor([[10, 11, 12, 13]])


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    """Folders of a host, a generator, and a model of both in either layout."""
    root = tmp_path_factory.mktemp("layouts")
    tiny_lm("llama", dtype=torch.float32).save_pretrained(root / "host")
    tiny_lm("qwen2", hidden_size=16, dtype=torch.float32).save_pretrained(root / "generator")
    model = SemCoTForCausalLM.from_host_generator_pretrained(root / "host", root / "generator", num_implicit_tokens=3)
    model.save_pretrained(root / "attached")
    model.save_pretrained(root / "whole", include_host=True)
    return root


@pytest.fixture(scope="module")
def model(folders):
    return SemCoTForCausalLM.from_pretrained(folders / "attached")


def stored(folder):
    return {
        name: values.get_tensor(name)
        for path in folder.glob("*.safetensors")
        for values in [safe_open(path, "pt")]
        for name in values.keys()
    }


def same(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype for name, value in ours.items())


LOAD_PARTS = """
import sys
from semcot_hf import SemCoTForCausalLM
model = SemCoTForCausalLM.from_host_generator_pretrained(*sys.argv[1:])
print(type(model.generator).__name__)
"""


def test_a_generator_by_path_is_loaded_without_a_word(folders):
    """In a process of its own, where nothing keeps transformers' report of the LM head's weights back."""
    command = [sys.executable, "-c", LOAD_PARTS, str(folders / "host"), str(folders / "generator")]
    assert any(name.startswith("lm_head.") for name in stored(folders / "generator"))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    assert done.stdout == "Qwen2Model\n"
    assert "UNEXPECTED" not in done.stderr and "lm_head" not in done.stderr


# What is written


def test_the_attached_layout_holds_no_host(folders):
    names = stored(folders / "attached").keys()
    assert names and not any(name.startswith("host.") for name in names)
    assert {"thought_embedding", "projection.weight", "projection.bias"} < names
    config = json.loads((folders / "attached" / "config.json").read_text())
    assert config["host_name_or_path"] == str(folders / "host") and config["includes_host"] is False


def test_the_whole_layout_needs_nothing_else(folders, model, tmp_path):
    (folders / "whole").rename(tmp_path / "moved")
    try:
        loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "moved")
    finally:
        (tmp_path / "moved").rename(folders / "whole")
    assert same(loaded, model)


def test_only_safetensors_and_code_are_written(folders):
    for layout in ("attached", "whole"):
        suffixes = {path.suffix for path in (folders / layout).iterdir()}
        assert suffixes == {".json", ".safetensors", ".py"}


@pytest.mark.parametrize("layout", ["attached", "whole"])
def test_saving_again_keeps_the_layout(folders, layout, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / layout)
    other = {"attached": True, "whole": False}[layout]
    model.save_pretrained(tmp_path / "other", include_host=other)
    model.save_pretrained(tmp_path / "same")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["includes_host"] is other
    assert stored(tmp_path / "same").keys() == stored(folders / layout).keys()
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path / "same"), model)


def test_a_host_without_a_name_is_included(tiny_semcot, tmp_path):
    model = tiny_semcot()
    model.save_pretrained(tmp_path / "model")
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path / "model"), model)
    with pytest.raises(ValueError, match="include_host=False needs config.host_name_or_path"):
        model.save_pretrained(tmp_path / "other", include_host=False)


@pytest.mark.parametrize("layout", ["attached", "whole"])
def test_shards(model, layout, tmp_path):
    model.save_pretrained(tmp_path, include_host=layout == "whole", max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path), model)


def test_saving_over_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file' is a file: pass a folder"):
        model.save_pretrained(tmp_path / "file")


# What is loaded


def test_a_new_model_is_its_parts(folders):
    """Pretrained weights arrive bit for bit; <thought> starts as the mean of the generator's embeddings."""
    model = SemCoTForCausalLM.from_host_generator_pretrained(folders / "host", folders / "generator")
    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    generator = AutoModelForCausalLM.from_pretrained(folders / "generator")
    assert same(model.host, host) and same(model.generator, generator.model)
    mean = generator.get_input_embeddings().weight.mean(dim=0)
    torch.testing.assert_close(model.thought_embedding.data, mean)
    assert model.config.generator_name_or_path == str(folders / "generator")
    assert not model.training and not any(parameter.requires_grad for parameter in model.host.parameters())
    assert all(parameter.requires_grad for parameter in model.generator.parameters())


def test_models_can_be_handed_over(folders, tiny_lm):
    host, generator = tiny_lm("gpt2"), tiny_lm("phi", hidden_size=16)
    model = SemCoTForCausalLM.from_host_generator_pretrained(host, generator)
    assert model.host is host and model.generator is generator.base_model
    loaded = SemCoTForCausalLM.from_pretrained(
        folders / "attached", host=AutoModelForCausalLM.from_pretrained(folders / "host")
    )
    assert loaded.host.config.model_type == "llama"


@pytest.mark.parametrize("layout", ["attached", "whole"])
def test_dtype_reaches_both(folders, layout):
    model = SemCoTForCausalLM.from_pretrained(folders / layout, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.generate(PROMPT, max_new_tokens=3).shape == (1, 7)


def test_host_and_generator_dtypes_apart(folders, tmp_path):
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        folders / "host", folders / "generator", host_kwargs={"dtype": torch.bfloat16}
    )

    def dtypes(part):
        return {parameter.dtype for parameter in part.parameters()}

    assert dtypes(model.host) == {torch.bfloat16} and dtypes(model.generator) == {torch.float32}
    assert model.projection.weight.dtype == model.thought_embedding.dtype == torch.float32
    model(PROMPT, labels=torch.tensor([[-100, -100, 12, 13]])).loss.backward()
    assert model.generate(PROMPT, max_new_tokens=3).shape == (1, 7)
    for layout in ("attached", "whole"):
        model.save_pretrained(tmp_path / layout, include_host=layout == "whole")
        assert same(SemCoTForCausalLM.from_pretrained(tmp_path / layout), model)


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize("layout", ["attached", "whole"])
@pytest.mark.parametrize("projection", ["linear", "vocabulary"])
@pytest.mark.parametrize(("host", "generator"), [(HALF, HALF), (FULL, HALF), (HALF, FULL), (HALF, torch.float16)])
def test_each_part_keeps_its_dtype_beside_tokens_trained_in_float32(
    folders, tiny_lm, tmp_path, layout, projection, host, generator
):
    """As after training with adapters: the generator as it was, what is new in float32."""
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        folders / "host",
        folders / "generator",
        projection=projection,
        generator_mode="sequential",
        num_implicit_tokens=3,
        host_kwargs={"dtype": host},
        generator_kwargs={"dtype": generator},
    )
    if projection == "linear":
        model.add_step_decoder(tiny_lm("qwen2", hidden_size=16, dtype=generator))
        model.projection.float()
    model.thought_embedding.data = model.thought_embedding.data.float()
    model.save_pretrained(tmp_path, include_host=layout == "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert same(loaded, model) and loaded.host.dtype == host and loaded.generator.dtype == generator
    assert torch.equal(loaded.generate(PROMPT, max_new_tokens=3), model.generate(PROMPT, max_new_tokens=3))
    chosen = SemCoTForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in chosen.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", ["attached", "whole"])
def test_attention_implementation_reaches_both(folders, layout):
    model = SemCoTForCausalLM.from_pretrained(folders / layout, attn_implementation="eager")
    assert model.host.config._attn_implementation == model.generator.config._attn_implementation == "eager"
    default = SemCoTForCausalLM.from_pretrained(folders / layout)
    assert default.host.config._attn_implementation == default.generator.config._attn_implementation == "sdpa"


def test_attention_implementations_apart(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "attached", host_kwargs={"attn_implementation": "eager"})
    assert model.host.config._attn_implementation == "eager"
    assert model.generator.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("layout", ["attached", "whole"])
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(folders, layout, device_map, model):
    loaded = SemCoTForCausalLM.from_pretrained(folders / layout, device_map=device_map)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert torch.equal(loaded.generate(PROMPT, max_new_tokens=4), model.generate(PROMPT, max_new_tokens=4))


@pytest.mark.parametrize("layout", ["attached", "whole"])
def test_options_reach_both_through_auto_classes(folders, layout):
    model = AutoModelForCausalLM.from_pretrained(
        folders / layout, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu", num_implicit_tokens=1
    )
    for part in (model.host, model.generator):
        assert part.config._attn_implementation == "eager" and part.dtype == torch.bfloat16
    assert model.config.num_implicit_tokens == 1


class _Asked(Exception):
    pass


def test_hub_and_quantization_arguments_reach_the_host(folders, monkeypatch):
    """No quantization backend is needed to see what is asked of the host, and that it alone can be in 4 bit."""
    asked = {}

    def from_pretrained(name, **kwargs):
        asked.update(kwargs, name=name)
        raise _Asked

    quantization = BitsAndBytesConfig(load_in_4bit=True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    config = SemCoTConfig.from_pretrained(folders / "attached")
    config.host_revision = "1234abc"
    with pytest.raises(_Asked):
        SemCoTForCausalLM.from_pretrained(
            folders / "attached",
            config=config,
            dtype=torch.bfloat16,
            local_files_only=True,
            host_kwargs={"quantization_config": quantization},
        )
    assert asked == {
        "name": str(folders / "host"),
        "revision": "1234abc",
        "dtype": torch.bfloat16,
        "local_files_only": True,
        "quantization_config": quantization,
        # Nothing asks whether to run code.
        "trust_remote_code": False,
    }


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed and would quantize")
def test_a_quantized_host_leaves_no_trace_in_an_attached_checkpoint(folders, tmp_path):
    """Else loading takes the generator's plain weights for quantized ones; bitsandbytes itself is not needed here."""
    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    host.config.quantization_config, host.is_quantized = BitsAndBytesConfig(load_in_4bit=True), True
    model = SemCoTForCausalLM.from_host_generator_pretrained(host, folders / "generator", num_implicit_tokens=2)
    assert not hasattr(model.config.host_config, "quantization_config")
    with pytest.raises(ValueError, match="include_host=True cannot save a quantized host"):
        model.save_pretrained(tmp_path / "whole", include_host=True)
    assert not (tmp_path / "whole").exists()
    model.save_pretrained(tmp_path / "attached")
    assert "quantization" not in (tmp_path / "attached" / "config.json").read_text()
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "attached")
    ids = torch.arange(5, 12)[None]
    torch.testing.assert_close(loaded.implicit_embeddings(ids), model.implicit_embeddings(ids))


def packed(model):
    """Replace a weight by a tensor that is made of others and has no storage, as torchao and quanto quantize."""
    layer = model.layers[0].mlp.up_proj
    weight = layer.weight.data
    layer.weight = torch.nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    with pytest.raises(RuntimeError, match="storage"):
        layer.weight.untyped_storage().data_ptr()
    return weight


@pytest.mark.parametrize("how", ["before", "in place"])
def test_a_host_of_tensors_without_storage(folders, how, tmp_path, warnings_of):
    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    if how == "in place":
        model = SemCoTForCausalLM.from_host_generator_pretrained(host, folders / "generator")
        weight = packed(host.model)
    else:
        weight = packed(host.model)
        model = SemCoTForCausalLM.from_host_generator_pretrained(host, folders / "generator")
        assert model.config.host_fingerprint is None
    with pytest.raises(ValueError, match="include_host=True cannot save a quantized host"):
        model.save_pretrained(tmp_path / "whole", include_host=True)
    assert not (tmp_path / "whole").exists()
    model.save_pretrained(tmp_path / "attached")
    assert any("The host is quantized, and the checkpoint names it" in text for text in warnings_of())
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "attached")
    assert not loaded.config.includes_host and torch.equal(loaded.host.model.layers[0].mlp.up_proj.weight, weight)


def test_a_generator_that_is_quantized_in_place(folders, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / "attached")
    packed(model.generator)
    with pytest.raises(ValueError, match="The generator is quantized, and its weights cannot be saved"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="generator is quantized, and its weights are trained and saved"):
        SemCoTForCausalLM.from_host_generator_pretrained(folders / "host", model.generator)


def test_shared_quantization_reaches_the_generator(folders):
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises((ImportError, RuntimeError), match="bitsandbytes|accelerator|GPU"):
        SemCoTForCausalLM.from_pretrained(folders / "attached", quantization_config=quantization)


def test_meta_device(folders):
    config = SemCoTConfig.from_pretrained(folders / "whole")
    with torch.device("meta"):
        model = SemCoTForCausalLM(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    empty = model.to_empty(device="cpu")
    empty.load_state_dict(stored(folders / "whole"))
    assert same(empty, SemCoTForCausalLM.from_pretrained(folders / "whole"))


def test_resizing_the_vocabulary_is_seen_by_the_config(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "whole")
    model.resize_token_embeddings(330)
    assert model.config.vocab_size == model.host.config.vocab_size == 330
    assert model.generate(torch.tensor([[329, 10]]), num_implicit_tokens=0, max_new_tokens=2).shape == (1, 4)
    assert model.get_output_embeddings() is model.host.lm_head


# What is refused


def test_a_missing_host(folders, tmp_path):
    config = SemCoTConfig.from_pretrained(folders / "attached")
    config.host_name_or_path = str(tmp_path / "gone")
    with pytest.raises(OSError, match=r"its host '.*gone' could not be found. Pass host= .* include_host=True"):
        SemCoTForCausalLM.from_pretrained(folders / "attached", config=config)


@pytest.mark.parametrize("change", [{"hidden_size": 16}, {"vocab_size": 321}], ids=str)
def test_another_host(folders, tiny_lm, change):
    name, value = next(iter(change.items()))
    wanted = {"hidden_size": 32, "vocab_size": 320}[name]
    with pytest.raises(ValueError, match=f"host has {name}={value}, but .* {name}={wanted}: pass the host"):
        SemCoTForCausalLM.from_pretrained(folders / "attached", host=tiny_lm("llama", **change))


def test_a_host_beside_the_one_included(folders):
    with pytest.raises(ValueError, match="carries its host: leave host and host_kwargs out"):
        SemCoTForCausalLM.from_pretrained(folders / "whole", host=folders / "host")


def test_a_folder_that_is_no_checkpoint(folders):
    with pytest.raises(ValueError, match="model_type='llama', not of a SemCoT model: pass it as host or generator"):
        SemCoTForCausalLM.from_pretrained(folders / "host")


def test_ids_that_the_generator_does_not_know(folders, tiny_lm):
    """Padded vocabularies of one tokenizer differ in size; only ids beyond the smaller one are an error."""
    generator = tiny_lm("llama", hidden_size=16, vocab_size=300, dtype=torch.float32)
    model = SemCoTForCausalLM.from_host_generator_pretrained(folders / "host", generator)
    assert model.generate(PROMPT, max_new_tokens=2).shape == (1, 6)
    with pytest.raises(ValueError, match="holds the id 310, but the generator knows 300 ids"):
        model.generate(torch.tensor([[10, 310]]), max_new_tokens=2)


@pytest.mark.parametrize("experts", ["host", "generator"])
@pytest.mark.parametrize("include_host", [False, True])
def test_parts_whose_weights_are_saved_under_other_names(folders, tiny_lm, experts, include_host, tmp_path):
    """transformers renames and splits a Mixtral's experts in files; the other part keeps its names."""
    size = {"host": 32, "generator": 16}[experts]
    moe = tiny_lm("mixtral", hidden_size=size, dtype=torch.float32, num_local_experts=2, num_experts_per_tok=1)
    moe.save_pretrained(tmp_path / "experts")
    parts = {name: folders / name for name in ("host", "generator")} | {experts: tmp_path / "experts"}
    model = SemCoTForCausalLM.from_host_generator_pretrained(**parts)
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder, include_host=include_host)
        loaded, info = SemCoTForCausalLM.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert same(loaded, model)
        model = loaded


def test_rotary_positions_keep_their_precision(folders, tiny_lm, tmp_path):
    """They are computed in float32 whatever the dtypes of the parts, which are loaded in a common one."""
    tiny_lm("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "host")
    model = SemCoTForCausalLM.from_host_generator_pretrained(tmp_path / "host", folders / "generator")
    model.save_pretrained(tmp_path / "whole", include_host=True)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "whole")
    assert same(loaded, model) and loaded.host.dtype == torch.bfloat16 != loaded.generator.dtype
    for name, value in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), value), name


@pytest.mark.parametrize("include_host", [True, False])
def test_a_generation_config_is_loaded_as_it_was_saved(include_host, tmp_path, warnings_of):
    model = SemCoTForCausalLM.from_host_generator_pretrained(str(HOST_PATH), str(GENERATOR_PATH))
    model.save_pretrained(tmp_path, include_host=include_host)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert "build_host" not in vars(loaded.generation_config)
    assert not [text for text in warnings_of() if "generation_config.json" in text]
