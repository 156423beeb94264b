"""Parts of another class, or changed in their layers, of which a checkpoint would be another model, or none."""

import pytest
import torch
from torch.nn.utils import parametrizations, prune
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from semcot_hf import SemCoTForCausalLM

pair = SemCoTForCausalLM.from_host_generator_pretrained
IDS = torch.tensor([[10, 11, 12, 13]])


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    root = tmp_path_factory.mktemp("structure")
    tiny_lm(dtype=torch.float32).save_pretrained(root / "host")
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    pair(root / "host", root / "generator").save_pretrained(root / "semcot")
    return root


class OwnForward(LlamaForCausalLM):
    def forward(self, *args, past_key_values=None, **kwargs):
        return super().forward(*args, past_key_values=past_key_values, **kwargs)


class OwnBackbone(LlamaModel):
    pass


def quantized(model):
    # Deprecated, but what users find first for CPUs.
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


def in_type(dtype):
    def change(model):
        layer = model.model.layers[0].mlp.up_proj
        layer.weight = torch.nn.Parameter(layer.weight.data.to(dtype), requires_grad=False)

    return change


def without_a_layer(model):
    model.model.layers = model.model.layers[:1]


def with_more_in_a_layer(model):
    layer = model.model.layers[0].mlp
    layer.up_proj = torch.nn.Sequential(layer.up_proj, torch.nn.Linear(48, 48))


def wider(model):
    model.model.embed_tokens = torch.nn.Embedding(400, model.config.hidden_size)


CHANGES = {
    "quantize_dynamic": quantized,
    "int8": in_type(torch.int8),
    "float8": in_type(torch.float8_e4m3fn),
    "pruned": lambda model: prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5),
    "weight_norm": lambda model: parametrizations.weight_norm(model.model.layers[0].mlp.up_proj),
    "without-a-layer": without_a_layer,
    "with-more-in-a-layer": with_more_in_a_layer,
    "wider": wider,
}
ignored = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")


@ignored
@pytest.mark.parametrize("role", ["host", "generator", "step decoder"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_are_refused(folders, role, change, tmp_path):
    """As objects, and by saving once they are changed in a model."""
    whole = {"host": folders / "host", "generator": folders / "generator"}
    part = AutoModelForCausalLM.from_pretrained(whole.get(role, folders / "host"))
    CHANGES[change](part)
    with pytest.raises(ValueError, match=f"{role} is a Llama.* that (has|lacks) .* would be another model, or none"):
        if role == "step decoder":
            pair(**whole).add_step_decoder(part)
        else:
            pair(**{**whole, role: part})
    if role == "host":
        for attach in (
            lambda: SemCoTForCausalLM.from_pretrained(folders / "semcot", host=part),
            lambda: SemCoTForCausalLM.from_pretrained(folders / "semcot").attach_host(part),
        ):
            with pytest.raises(ValueError, match="host is a Llama.* that (has|lacks)"):
                attach()
    if change in ("int8", "float8"):
        return
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    if role == "generator":
        # The change is made to what has a backbone as `model`.
        model.model = model.generator
        CHANGES[change](model)
        del model.model
    elif role == "host":
        CHANGES[change](model.host)
    else:
        model.add_step_decoder(AutoModelForCausalLM.from_pretrained(folders / "host"))
        CHANGES[change](model.step_decoder)
    with pytest.raises(ValueError, match="The model (has|lacks) .* could not be loaded again, so that nothing was"):
        model.save_pretrained(tmp_path / "saved", include_host=role == "host" or None)
    assert not (tmp_path / "saved").exists()


def test_a_pruned_model_is_saved_once_its_masks_are_applied(folders, tmp_path):
    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    layer = host.model.layers[0].mlp.up_proj
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.remove(layer, "weight")
    model = pair(host, folders / "generator")
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.includes_host
    expected = model(IDS, num_implicit_tokens=2).logits
    assert torch.equal(loaded(IDS, num_implicit_tokens=2).logits, expected)


def test_classes_of_ones_own(folders):
    """transformers would load its own class from their configuration; only the backbone of a generator counts."""
    own = OwnForward.from_pretrained(folders / "host")
    with pytest.raises(ValueError, match="host is a OwnForward .* transformers loads a LlamaForCausalLM .* register"):
        pair(own, folders / "generator")
    with pytest.raises(ValueError, match="host is a OwnForward"):
        SemCoTForCausalLM.from_pretrained(folders / "semcot", host=own)
    backbone = OwnBackbone.from_pretrained(folders / "generator")
    with pytest.raises(ValueError, match="generator is a OwnBackbone .* transformers loads a LlamaModel"):
        pair(folders / "host", backbone)
    with pytest.raises(ValueError, match="step decoder is a OwnForward"):
        pair(folders / "host", folders / "generator").add_step_decoder(own)


def test_step_decoders_that_could_not_be_loaded_again(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    with pytest.raises(ValueError, match="step decoder=a SemCoTForCausalLM is a SemCoT model"):
        model.add_step_decoder(SemCoTForCausalLM.from_pretrained(folders / "semcot"))
    with pytest.raises(ValueError, match="step decoder is a LlamaModel .*, which writes no text"):
        model.add_step_decoder(AutoModel.from_pretrained(folders / "host"))
    packed = AutoModelForCausalLM.from_pretrained(folders / "host")
    packed.is_quantized = True
    with pytest.raises(ValueError, match="step decoder is quantized, and its weights are trained and saved"):
        model.add_step_decoder(packed)
    assert model.step_decoder is None and model.config.step_decoder_config is None


def test_compiled_parts(folders, tmp_path):
    """They are taken out of torch.compile's wrapper."""
    parts = [AutoModelForCausalLM.from_pretrained(folders / name) for name in ("host", "generator")]
    torch.manual_seed(0)
    expected = pair(*parts)(IDS, num_implicit_tokens=2).logits
    torch.manual_seed(0)
    model = pair(*(torch.compile(part, backend="eager") for part in parts))
    assert torch.equal(model(IDS, num_implicit_tokens=2).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS, num_implicit_tokens=2).logits, expected) and not loaded.config.includes_host
