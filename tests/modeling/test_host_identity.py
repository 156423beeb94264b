"""The host of an attached checkpoint is the one it was saved with, by name and by weights."""

import json
import logging
import shutil
from importlib.util import find_spec

import pytest
import torch
from conftest import VOCAB_SIZE
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from semcot_hf import SemCoTForCausalLM
from semcot_hf.modeling.weights_semcot import same_weights, weights_fingerprint

# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
GGUF = find_spec("gguf") is not None
IDS = torch.tensor([[10, 11, 12, 13]])
pair = SemCoTForCausalLM.from_host_generator_pretrained


@pytest.fixture(scope="module")
def root(tiny_lm, tmp_path_factory):
    """Folders of a host with other weights beside it (variant, subfolder, GGUF file), of a generator, and a model."""
    root = tmp_path_factory.mktemp("identity")
    tiny_lm(seed=0, dtype=torch.float32).save_pretrained(root / "host")
    for seed, change in ((5, {"variant": "other"}), (6, {"subfolder": "inner"})):
        folder = root / "host" / change.pop("subfolder", "")
        tiny_lm(seed=seed, dtype=torch.float32).save_pretrained(folder, **change)
    if GGUF:
        from gguf_files import write_llama

        write_llama(tiny_lm(seed=7, dtype=torch.float32), root / "host" / "host.gguf")
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    pair(root / "host", root / "generator").save_pretrained(root / "attached")
    return root


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


OTHERS = [{"variant": "other"}, {"subfolder": "inner"}, *([{"gguf_file": "host.gguf"}] if GGUF else [])]


@pytest.mark.parametrize("kwargs", OTHERS, ids=str)
def test_what_chooses_among_a_hosts_files_is_recorded(root, kwargs, tmp_path):
    model = pair(root / "host", root / "generator", host_kwargs=kwargs)
    assert not same(model.host, AutoModelForCausalLM.from_pretrained(root / "host"))
    model.save_pretrained(tmp_path / "made")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "made")
    assert not loaded.config.includes_host and same(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path / "again"), model)
    replaced = SemCoTForCausalLM.from_pretrained(root / "attached", host=root / "host", host_kwargs=kwargs)
    replaced.save_pretrained(tmp_path / "replaced")
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path / "replaced"), replaced)


@pytest.mark.parametrize("kwargs", [*OTHERS, {}], ids=str)
def test_a_host_object_is_found_again_or_included(root, kwargs, tmp_path):
    host = AutoModelForCausalLM.from_pretrained(root / "host", **kwargs)
    model = pair(host, root / "generator")
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert same(loaded, model)
    assert loaded.config.includes_host == ("variant" in kwargs or "subfolder" in kwargs)
    if loaded.config.includes_host:
        for one in (model, loaded):
            with pytest.raises(ValueError, match="this one has other weights than those found there"):
                one.save_pretrained(tmp_path / "attached", include_host=False)
        assert not (tmp_path / "attached").exists()


def test_options_that_change_the_host_are_noticed(root, tmp_path):
    model = pair(root / "host", root / "generator", host_kwargs={"num_hidden_layers": 1})
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.includes_host and same(loaded, model)


def merged_adapter(model):
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model.merge_and_unload()


def trained(model):
    weights = [weight.requires_grad_() for weight in model.host.parameters()]
    optimizer = torch.optim.SGD(weights, lr=1e-3)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    return model


@pytest.mark.parametrize("change", [merged_adapter, trained])
def test_a_changed_host_is_included_and_never_named(root, change, tmp_path):
    model = change(SemCoTForCausalLM.from_pretrained(root / "attached"))
    with pytest.raises(ValueError, match="has other weights than when it was loaded, which a loader would not find"):
        model.save_pretrained(tmp_path / "attached", include_host=False)
    assert not (tmp_path / "attached").exists()
    model.save_pretrained(tmp_path / "whole")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "whole")
    assert loaded.config.includes_host and same(loaded, model)
    with pytest.raises(ValueError, match="has other weights"):
        loaded.save_pretrained(tmp_path / "attached", include_host=False)


def test_a_host_changed_before_it_was_given_is_included(root, tmp_path):
    host = merged_adapter(AutoModelForCausalLM.from_pretrained(root / "host"))
    assert host.config.name_or_path == str(root / "host")
    model = pair(host, root / "generator")
    model.save_pretrained(tmp_path)
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path), model)


def test_other_weights_under_the_recorded_name_are_refused(root, tiny_lm, tmp_path):
    shutil.copytree(root / "host", tmp_path / "host")
    pair(tmp_path / "host", root / "generator").save_pretrained(tmp_path / "attached")
    tiny_lm(seed=8, dtype=torch.float32).save_pretrained(tmp_path / "host")
    message = r"The host '.*host' has other weights \(fingerprint float.* host_fingerprint=None to from_pretrained"
    with pytest.raises(ValueError, match=message):
        SemCoTForCausalLM.from_pretrained(tmp_path / "attached")
    with pytest.raises(ValueError, match=message):
        SemCoTForCausalLM.from_pretrained(tmp_path / "attached", dtype=torch.float16)
    model = SemCoTForCausalLM.from_pretrained(root / "attached")
    kept = model.host
    with pytest.raises(ValueError, match="other weights"):
        model.attach_host(AutoModelForCausalLM.from_pretrained(root / "host", variant="other"))
    assert model.host is kept
    taken = SemCoTForCausalLM.from_pretrained(tmp_path / "attached", host_fingerprint=None)
    taken.save_pretrained(tmp_path / "again")
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path / "again"), taken)


def test_a_checkpoint_without_a_fingerprint_loads_any_host(root, tmp_path):
    """As those of version 0.1.0 do."""
    model = SemCoTForCausalLM.from_pretrained(root / "attached")
    expected = model.config.host_fingerprint
    model.config.host_fingerprint = None
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.host_fingerprint == expected and same(loaded, model)


@pytest.mark.parametrize("first", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fingerprints_survive_casts_and_adapters(tiny_lm, first):
    model, other = tiny_lm(dtype=first), tiny_lm(seed=3, dtype=first)
    known = weights_fingerprint(model)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert same_weights(known, weights_fingerprint(tiny_lm(dtype=first).to(dtype))) is True
        assert same_weights(known, weights_fingerprint(other.to(dtype))) is False
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert weights_fingerprint(adapted.get_base_model()) == known
    model.get_input_embeddings().weight.data[5] += 1
    assert same_weights(known, weights_fingerprint(model)) is False
    assert same_weights(None, known) is None and same_weights("no fingerprint", known) is None
    assert weights_fingerprint(tiny_lm(dtype=first).to("meta")) is None


def test_a_cast_host_keeps_its_name(root, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(root / "attached").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert not loaded.config.includes_host and same(loaded, model)
    assert SemCoTForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("part", ["model", "backbone"])
def test_one_object_as_host_and_generator_is_two(tiny_lm, part):
    host = tiny_lm()
    model = pair(host, host if part == "model" else host.model)
    assert model.host is host and all(weight.requires_grad for weight in model.generator.parameters())
    assert not any(weight.requires_grad for weight in host.parameters())
    before = {name: value.clone() for name, value in host.state_dict().items()}
    with torch.no_grad():
        for weight in model.generator.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    model.add_step_decoder(host)
    assert model.step_decoder is not host


EDITS = {
    "one row of the embedding": lambda host: host.get_input_embeddings().weight.data[77].add_(1),
    "one value": lambda host: host.get_input_embeddings().weight.data[77, 3].add_(1),
    "one column": lambda host: host.model.layers[0].mlp.up_proj.weight.data[:, 9].mul_(2),
    "rows moved": lambda host: host.lm_head.weight.data.copy_(host.lm_head.weight.data.roll(1, dims=0)),
    "layers swapped": lambda host: setattr(host.model, "layers", nn.ModuleList(reversed(list(host.model.layers)))),
    "another module": lambda host: setattr(host, "lm_head", nn.Linear(256, VOCAB_SIZE, bias=False)),
    "a merged adapter": lambda host: merged_adapter(host),
    "its window": lambda host: setattr(host.config, "sliding_window", 3),
}


@pytest.fixture(scope="module")
def wide(tiny_lm, tmp_path_factory):
    """Folders of a host that is much larger than what is sampled of its weights, and of a generator."""
    root = tmp_path_factory.mktemp("wide")
    sizes = {"intermediate_size": 256, "sliding_window": None, "dtype": torch.float32}
    tiny_lm("mistral", hidden_size=256, **sizes).save_pretrained(root / "host")
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    return root


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_small_changes_of_the_host_are_noticed(wide, edit, tmp_path):
    model = pair(wide / "host", wide / "generator")
    edit(model.host)
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.includes_host and same(loaded, model)
    ids = torch.arange(70, 80)[None]
    assert torch.equal(loaded(ids, num_implicit_tokens=0).logits, model(ids, num_implicit_tokens=0).logits)


def test_what_is_no_change_of_the_host(wide, tmp_path):
    model = pair(wide / "host", wide / "generator")
    size = model.config.vocab_size
    model.host.resize_token_embeddings(size + 1, mean_resizing=False)
    model.host.resize_token_embeddings(size)
    model.host.config.use_cache, model.host.config.pad_token_id = False, 5
    model.host.get_output_embeddings().weight.data += 0
    model.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert not SemCoTForCausalLM.from_pretrained(tmp_path).config.includes_host


@pytest.mark.parametrize("how", ["pair", "object", "loading"])
def test_settings_of_a_host_are_not_lost(wide, how, tmp_path):
    """The window changes what the host computes, and no weight."""
    window = {"sliding_window": 3}
    if how == "pair":
        model = pair(wide / "host", wide / "generator", host_kwargs=window)
    elif how == "object":
        model = pair(AutoModelForCausalLM.from_pretrained(wide / "host", **window), wide / "generator")
    else:
        pair(wide / "host", wide / "generator").save_pretrained(tmp_path / "attached")
        model = SemCoTForCausalLM.from_pretrained(tmp_path / "attached", host_kwargs=window)
    with pytest.raises(
        ValueError, match="has other settings than the one found there .sliding_window=3 instead of None"
    ):
        model.save_pretrained(tmp_path / "out", include_host=False)
    model.save_pretrained(tmp_path / "out")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(70, 90)[None]
    assert torch.equal(loaded(ids, num_implicit_tokens=0).logits, model(ids, num_implicit_tokens=0).logits)


def test_settings_that_changed_in_the_hosts_folder_are_told(wide, tmp_path, caplog):
    shutil.copytree(wide / "host", tmp_path / "host")
    pair(tmp_path / "host", wide / "generator").save_pretrained(tmp_path / "attached")
    config = json.loads((tmp_path / "host" / "config.json").read_text())
    (tmp_path / "host" / "config.json").write_text(json.dumps({**config, "sliding_window": 3}))
    propagating = logging.getLogger("transformers")
    propagating.propagate = True
    try:
        SemCoTForCausalLM.from_pretrained(tmp_path / "attached")
    finally:
        propagating.propagate = False
    assert "other settings than when this model was saved: sliding_window=3 instead of None" in caplog.text


def test_a_state_dict_with_another_host_is_not_dropped(root, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(root / "attached")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "same", state_dict=state)
    assert same(SemCoTForCausalLM.from_pretrained(tmp_path / "same"), model)
    state["host.model.norm.weight"] += 1
    with pytest.raises(ValueError, match="other values of 'host.model.norm.weight'.*include_host=True"):
        model.save_pretrained(tmp_path / "out", state_dict=state)
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "out", state_dict=state, include_host=True)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.host.model.norm.weight, state["host.model.norm.weight"])


def test_fingerprints_of_earlier_versions_are_compared(root, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(root / "attached")
    model.config.host_fingerprint = model.config.host_fingerprint.rpartition("-")[0]
    model.save_pretrained(tmp_path)
    assert len(SemCoTForCausalLM.from_pretrained(tmp_path).config.host_fingerprint.split("-")) == 4
    with pytest.raises(ValueError, match="other weights"):
        model.attach_host(AutoModelForCausalLM.from_pretrained(root / "host", variant="other"))


def test_a_variant_through_every_loader(root, tmp_path):
    model = pair(root / "host", root / "generator", host_kwargs={"variant": "other"})
    model.save_pretrained(tmp_path / "inner", variant="half")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="inner", variant="half"), model)
