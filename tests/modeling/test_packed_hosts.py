"""Hosts whose weights stay packed as in their GGUF file: saved by that file's name, and compared with it."""

import shutil
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig, Lfm2Config, Lfm2ForCausalLM

from semcot_hf import SemCoTForCausalLM
from semcot_hf.modeling.weights_semcot import is_quantized

pytest.importorskip("gguf")
from gguf_files import use_packed_weights, write_packed_lfm2

IDS = torch.arange(10, 20)[None]
# Otherwise transformers asks the Hub for an attention of ggml.
SDPA = {"attn_implementation": "sdpa"}
HOSTS = {
    "safetensors": {},
    "first, packed": {"gguf_file": "first.gguf"},
    "second, packed": {"gguf_file": "second.gguf"},
    "first, unpacked": {"gguf_file": "first.gguf", "quantization_config": GgufConfig(dequantize=True)},
}
pair = SemCoTForCausalLM.from_host_generator_pretrained


@pytest.fixture(scope="module")
def root(tiny_lm, tmp_path_factory):
    """Folders of a host with two GGUF files of other weights beside it, and of a generator."""
    root = tmp_path_factory.mktemp("packed")
    for seed, name in enumerate(("host", "first.gguf", "second.gguf")):
        torch.manual_seed(seed)
        config = Lfm2Config(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=64,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", "full_attention"],
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=False,
        )
        model = Lfm2ForCausalLM(config)
        if name == "host":
            model.save_pretrained(root / name)
        else:
            write_packed_lfm2(model, root / "host" / name)
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    return root


@pytest.fixture(autouse=True)
def packed(monkeypatch):
    use_packed_weights(monkeypatch)


def host(root, name):
    return AutoModelForCausalLM.from_pretrained(root / "host", **HOSTS[name], **SDPA)


def logits(model):
    with torch.no_grad():
        return model(IDS, num_implicit_tokens=0).logits


@pytest.mark.parametrize(("first", "second"), list(product(HOSTS, HOSTS)))
@pytest.mark.parametrize("given", ["by name", "as object"])
def test_a_host_object_put_in_anothers_place_is_loaded_again_or_refused(root, tmp_path, given, first, second):
    by_name = given == "by name"
    one = root / "host" if by_name else host(root, first)
    model = pair(one, root / "generator", host_kwargs={**HOSTS[first], **SDPA} if by_name else None)
    kept, other = model.host, host(root, second)
    assert is_quantized(other) == ("packed" in second.split())
    try:
        model.attach_host(other)
    except ValueError as error:
        # The same folder, and weights that are known to be others.
        assert "has other weights (fingerprint" in str(error) and first != second
        assert model.host is kept and ("packed" in first.split()) == ("packed" in second.split())
        return
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path, **SDPA)
    torch.testing.assert_close(logits(loaded), logits(other), rtol=0, atol=1e-6)
    assert loaded.config.includes_host or loaded.config.host_gguf_file == HOSTS[second].get("gguf_file")
    assert not (loaded.config.includes_host and "packed" in second.split())


def test_a_packed_object_is_recorded_by_its_file(root, tmp_path):
    model = pair(host(root, "second, packed"), root / "generator")
    model.save_pretrained(tmp_path / "made")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "made", **SDPA)
    assert is_quantized(loaded.host) and torch.equal(logits(loaded), logits(model))
    assert "packed" in loaded.config.host_fingerprint
    loaded.save_pretrained(tmp_path / "again")
    again = SemCoTForCausalLM.from_pretrained(tmp_path / "again", **SDPA)
    assert torch.equal(logits(again), logits(model))


def test_another_file_of_the_recorded_name_is_refused(root, tmp_path):
    shutil.copytree(root / "host", tmp_path / "host")
    model = pair(tmp_path / "host", root / "generator", host_kwargs={**HOSTS["first, packed"], **SDPA})
    model.save_pretrained(tmp_path / "out")
    shutil.copy(root / "host" / "second.gguf", tmp_path / "host" / "first.gguf")
    message = r"The host '.*host' gguf_file=first.gguf has other weights .*host_fingerprint=None to from_pretrained"
    with pytest.raises(ValueError, match=message):
        SemCoTForCausalLM.from_pretrained(tmp_path / "out", **SDPA)
    taken = SemCoTForCausalLM.from_pretrained(tmp_path / "out", host_fingerprint=None, **SDPA)
    assert torch.equal(logits(taken), logits(pair(host(root, "second, packed"), root / "generator")))


def test_a_packed_host_of_which_the_subfolder_is_unknown_is_refused(root, tmp_path):
    """Beside the folder is another file of this name."""
    (root / "host" / "inner").mkdir()
    shutil.copy(root / "host" / "second.gguf", root / "host" / "inner" / "first.gguf")
    inner = AutoModelForCausalLM.from_pretrained(root / "host", subfolder="inner", **HOSTS["first, packed"], **SDPA)
    model = pair(inner, root / "generator")
    for include, message in ((None, "cannot save a quantized host"), (False, "other weights than those found there")):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "out", include_host=include)
    assert not (tmp_path / "out").exists()


def test_unpacked_weights_may_stand_for_packed_ones(root, tmp_path, monkeypatch):
    """As on a machine without the kernel, where the same file is unpacked."""
    model = pair(root / "host", root / "generator", host_kwargs={**HOSTS["first, packed"], **SDPA})
    model.save_pretrained(tmp_path / "packed")
    monkeypatch.setattr("transformers.integrations.gguf.kernels._gguf_kernel", False)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "packed", **SDPA)
    assert not is_quantized(loaded.host)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    again = SemCoTForCausalLM.from_pretrained(tmp_path / "again", **SDPA)
    assert not again.config.includes_host and torch.equal(logits(again), logits(loaded))
