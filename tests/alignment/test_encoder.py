"""The alignment encoder: cut from hosts of many architectures, one result by every way in, saved and loaded."""

import pytest
import torch
from sentence_transformers import SentenceTransformer

from semcot_hf.alignment.encoder import (
    _takes_hidden_states,
    alignment_layers,
    build_alignment_encoder,
    encode_hidden_states,
    frozen_states,
    load_alignment_encoder,
    trained_layers,
)

TEXTS = ["Ann has three apples.", "2", "How many apples has Bob now? Two, for he ate one."]
CHANGES = {
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "gemma3_text": {"sliding_window": 4},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
}
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi", "olmo", "opt"]


def make_host(tiny_lm, family="llama", **changes):
    if family == "opt":
        changes = {"ffn_dim": 48, "word_embed_proj_dim": 32, **changes}
    return tiny_lm(family, num_hidden_layers=4, **CHANGES.get(family, {}), **changes)


@pytest.fixture
def host(tiny_lm):
    return make_host(tiny_lm)


@pytest.fixture
def encoder(host, tiny_tokenizer):
    return build_alignment_encoder(host, tiny_tokenizer, first_layer=1, last_layer=2, embedding_dim=12)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_embeddings_and_hidden_states_give_the_same_vector(tiny_lm, tiny_tokenizer, family):
    host = make_host(tiny_lm, family)
    encoder = build_alignment_encoder(host, tiny_tokenizer, first_layer=1, last_layer=2, embedding_dim=12)
    by_text = encoder.encode(TEXTS, convert_to_tensor=True)
    features = encoder.preprocess(TEXTS)
    ids, mask = features["input_ids"], features["attention_mask"]
    embeddings = host.get_input_embeddings()(ids)
    by_embedding = encoder({"inputs_embeds": embeddings, "attention_mask": mask})["sentence_embedding"]
    states = host(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    by_state = encode_hidden_states(encoder, states, mask, first_layer=1)
    torch.testing.assert_close(frozen_states(encoder, ids, mask)[mask.bool()], states[mask.bool()])

    assert by_text.shape == (3, 12)
    torch.testing.assert_close(by_text.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(by_embedding, by_text, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_state, by_text, rtol=0, atol=1e-12)
    alone = torch.cat([encoder.encode([text], convert_to_tensor=True) for text in TEXTS])
    torch.testing.assert_close(alone, by_text, rtol=0, atol=1e-6)  # Gemma normalises in float32
    assert (by_text[0] - by_text[1]).abs().max() > 0.01


def test_the_encoder_computes_host_layers_norm_mean_and_linear(host, encoder, tiny_tokenizer):
    """Against the host itself: its hidden states before layer 3, its final norm, and the linear layer by hand."""
    ids = tiny_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    states = host(input_ids=ids, output_hidden_states=True).hidden_states[3]
    dense = encoder[2].linear
    expected = torch.nn.functional.linear(host.model.norm(states).mean(dim=1), dense.weight, dense.bias)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.encode([TEXTS[0]], convert_to_tensor=True), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken", "weightedmean"])
def test_poolings(host, tiny_tokenizer, pooling):
    encoder = build_alignment_encoder(host, tiny_tokenizer, pooling=pooling, embedding_dim=12)
    features = encoder.preprocess(TEXTS)
    encoder[0](features)
    for i, length in enumerate(features["attention_mask"].sum(dim=1)):
        tokens = features["token_embeddings"][i, :length]
        weights = torch.arange(1, length + 1, dtype=torch.float64)
        expected = {
            "mean": tokens.mean(dim=0),
            "max": tokens.max(dim=0).values,
            "lasttoken": tokens[-1],
            "weightedmean": (tokens * weights[:, None]).sum(dim=0) / weights.sum(),
        }[pooling]
        torch.testing.assert_close(encoder[1](features)["sentence_embedding"][i], expected)


def test_frozen_encoder_passes_gradients_to_embeddings_and_states(encoder):
    encoder.requires_grad_(False)
    mask = torch.ones(2, 3, dtype=torch.long)
    for encode in (
        lambda z: encoder({"inputs_embeds": z, "attention_mask": mask})["sentence_embedding"],
        lambda z: encode_hidden_states(encoder, z, mask),
    ):
        z = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
        encode(z)[0, 0].backward()
        assert z.grad[0].abs().min() > 0 and not z.grad[1].any()
        step = 1e-3 * z.grad.sign()
        slope = (encode(z + step) - encode(z - step))[0, 0] / 2e-3
        torch.testing.assert_close(slope.item(), z.grad.abs().sum().item(), rtol=1e-2, atol=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_padding_of_embeddings_and_states_does_not_count(encoder):
    z = torch.randn(1, 3, 32, dtype=torch.float64)
    padded = torch.cat([z, torch.randn(1, 2, 32, dtype=torch.float64)], dim=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    for encode in (
        lambda z, mask: encoder({"inputs_embeds": z, "attention_mask": mask})["sentence_embedding"],
        lambda z, mask: encode_hidden_states(encoder, z, mask),
    ):
        torch.testing.assert_close(encode(padded, mask), encode(z, mask[:, :3]), rtol=0, atol=1e-12)


def test_only_the_layers_from_first_on_and_the_linear_layer_may_train(host, encoder):
    trainable = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    prefixes = {name.split(".self_attn")[0].split(".mlp")[0] for name in trainable if "norm" not in name}
    assert prefixes == {"0.model.layers.1", "0.model.layers.2", "2.linear.weight", "2.linear.bias"}
    assert len(trained_layers(encoder)) == 2
    for name, parameter in encoder[0].model.named_parameters():
        assert torch.equal(parameter, host.model.get_parameter(name)), name
        assert parameter.data_ptr() != host.model.get_parameter(name).data_ptr(), name


def test_the_host_stays_as_it_was(tiny_lm, tiny_tokenizer):
    host, untouched = make_host(tiny_lm), make_host(tiny_lm)
    template = tiny_tokenizer.chat_template
    encoder = build_alignment_encoder(host, tiny_tokenizer)
    encode_hidden_states(encoder, torch.randn(1, 2, 32, dtype=torch.float64), torch.ones(1, 2))
    assert host.config.to_dict() == untouched.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(host.parameters(), untouched.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in host.parameters())
    assert tiny_tokenizer.chat_template == template and tiny_tokenizer.padding_side == "left"


def test_saved_it_is_a_sentence_transformer(encoder, tmp_path):
    encoder.save_pretrained(str(tmp_path), create_model_card=False)
    assert not list(tmp_path.rglob("*.py")) and not list(tmp_path.rglob("*.bin"))
    loaded = SentenceTransformer(str(tmp_path))
    expected = encoder.encode(TEXTS, convert_to_tensor=True)
    assert torch.equal(loaded.encode(TEXTS, convert_to_tensor=True), expected)
    again = load_alignment_encoder(tmp_path)
    assert alignment_layers(again) == (1, 2)
    states = torch.randn(2, 3, 32, dtype=torch.float64)
    mask = torch.ones(2, 3)
    assert torch.equal(encode_hidden_states(again, states, mask), encode_hidden_states(encoder, states, mask))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in encoder.named_parameters() if p.requires_grad
    }


def test_plain_texts_are_not_wrapped_in_the_chat_template(encoder, tiny_tokenizer):
    ids = encoder.preprocess([TEXTS[0]])["input_ids"][0].tolist()
    assert ids == tiny_tokenizer(TEXTS[0])["input_ids"]


def test_a_tokenizer_without_padding_pads_with_its_end(host, tiny_tokenizer):
    tiny_tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<eos>")
    encoder = build_alignment_encoder(host, tiny_tokenizer)
    assert encoder.tokenizer.pad_token == "<eos>"
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a padding nor an end token: set tokenizer.pad_token"):
        build_alignment_encoder(host, tiny_tokenizer)


def test_semcot_models_and_backbones_are_hosts_too(host, tiny_semcot, tiny_tokenizer):
    of_lm, of_backbone, of_semcot = (
        build_alignment_encoder(model, tiny_tokenizer)[0].model.state_dict()
        for model in (host, host.model, tiny_semcot(host=host))
    )
    for key, value in of_lm.items():
        assert torch.equal(value, of_backbone[key]) and torch.equal(value, of_semcot[key])


def test_dtype_and_default_range_come_from_the_host(tiny_lm, tiny_tokenizer):
    host = tiny_lm("llama", num_hidden_layers=8, dtype=torch.bfloat16)
    encoder = build_alignment_encoder(host, tiny_tokenizer)
    assert alignment_layers(encoder) == (4, 5)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder.get_embedding_dimension() == 768


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_layer": 4}, r"first_layer=2, last_layer=4: the host has 4 layers, so need .* <= 3"),
        ({"first_layer": 3, "last_layer": 1}, "first_layer=3, last_layer=1"),
        ({"first_layer": -1}, "first_layer=-1"),
        ({"pooling": "median"}, "pooling='median' is unknown: choose one of mean, max, lasttoken, weightedmean"),
        ({"embedding_dim": 0}, "embedding_dim=0 must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(host, tiny_tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        build_alignment_encoder(host, tiny_tokenizer, **options)


def test_wrong_states_are_refused(encoder):
    states, mask = torch.randn(1, 3, 32, dtype=torch.float64), torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"first_layer=2, but this encoder reads the host's hidden_states\[1\]"):
        encode_hidden_states(encoder, states, mask, first_layer=2)
    with pytest.raises(ValueError, match=r"states \(1, 3, 32\) and attention_mask \(1, 2\) do not fit"):
        encode_hidden_states(encoder, states, mask[:, :2])


def test_layers_that_read_more_than_hidden_states_are_found_out(encoder):
    """A layer is made to read something of an earlier one, as per-layer inputs do."""
    backbone, seen = encoder[0].model, [0.0]
    assert _takes_hidden_states(backbone, 1)
    backbone.layers[0].register_forward_pre_hook(lambda *_: seen.append(1.0))
    backbone.layers[1].register_forward_hook(lambda module, inputs, output: output + seen.pop())
    assert not _takes_hidden_states(backbone, 1)
    backbone.config.semcot_alignment["takes_hidden_states"] = False
    with pytest.raises(ValueError, match="the layers of LlamaModel read more than hidden states.*at layer 1"):
        encode_hidden_states(encoder, torch.randn(1, 2, 32, dtype=torch.float64), torch.ones(1, 2))


def test_other_sentence_transformers_are_refused(encoder):
    del encoder[0].model.config.semcot_alignment
    with pytest.raises(ValueError, match="was not cut out of a host: pass one made by build_alignment_encoder"):
        load_alignment_encoder(encoder)


def test_a_host_with_projected_word_embeddings_is_refused(tiny_lm, tiny_semcot, tiny_tokenizer):
    host = tiny_lm("opt", word_embed_proj_dim=16)
    message = "word embeddings of size 16 and layers of size 32"
    with pytest.raises(ValueError, match=message):
        build_alignment_encoder(host, tiny_tokenizer)
    with pytest.raises(ValueError, match=message):
        tiny_semcot(host)
