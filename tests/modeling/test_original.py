"""The authors' published checkpoints, made here in their layout: their formula's tokens and their conversion."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from semcot_hf import SemCoTForCausalLM
from semcot_hf.convert import PROMPTS, convert_original

FAMILIES = ("llama", "mistral", "qwen2")


def publish(folder, generator_folder, host_size):
    """Write a checkpoint as the authors' training script leaves it; returns its two modules."""
    generator = AutoModel.from_pretrained(generator_folder, dtype=torch.float32)
    torch.manual_seed(0)
    generator.resize_token_embeddings(generator.config.vocab_size + 1, mean_resizing=False)
    projection = torch.nn.Linear(generator.config.hidden_size, host_size)
    torch.nn.init.normal_(projection.weight)
    folder.mkdir()
    tensors = {f"model.{name}": value.contiguous() for name, value in generator.state_dict().items()}
    tensors |= {f"projection_layer.{name}": value for name, value in projection.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_name": str(generator_folder), "teacher_hid_dim": host_size}
    (folder / "config.json").write_text(json.dumps(config))
    return generator, projection


@pytest.fixture(scope="module", params=FAMILIES)
def original(request, tiny_lm, tiny_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    tiny_lm("llama", dtype=torch.float32).save_pretrained(root / "host")
    tiny_tokenizer.save_pretrained(root / "host")
    tiny_lm(request.param, hidden_size=16, dtype=torch.float32).save_pretrained(root / "generator")
    generator, projection = publish(root / "published", root / "generator", 32)
    return root, generator, projection


def authors_tokens(generator, projection, query, count):
    """Z of one query by the authors' formula: k thoughts behind the query, states from the last query token on."""
    thought = generator.config.vocab_size - 1
    ids = torch.tensor([[*query, *[thought] * count]])
    start = len(query) - 1
    with torch.no_grad():
        return projection(generator(ids).last_hidden_state[:, start : start + count])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_tokens_are_those_of_the_authors_formula(original, count):
    root, generator, projection = original
    model = SemCoTForCausalLM.from_original(root / "published", host=root / "host", num_implicit_tokens=count)
    queries = [[10, 11, 12, 13, 14], [20, 21], [30, 31, 32]]
    ids = torch.tensor([[0] * (5 - len(query)) + query for query in queries])
    batch = model.implicit_embeddings(ids, (ids > 0).long())
    for row, query in enumerate(queries):
        expected = authors_tokens(generator, projection, query, count)
        assert (batch[row] - expected[0]).abs().max() <= 1e-5
        assert (model.implicit_embeddings(torch.tensor([query])) - expected).abs().max() <= 1e-5
    assert model.config.state_offset == -1 and model.config.num_implicit_tokens == count


def test_the_extra_row_becomes_the_thought_and_the_others_stay(original):
    root, generator, projection = original
    model = SemCoTForCausalLM.from_original(root / "published", host=root / "host")
    table = generator.get_input_embeddings().weight
    assert torch.equal(model.generator.get_input_embeddings().weight, table[:-1])
    assert torch.equal(model.thought_embedding, table[-1])
    assert torch.equal(model.projection.weight, projection.weight)
    assert torch.equal(model.projection.bias, projection.bias)
    assert model.config.generator_config.vocab_size == model.generator.config.vocab_size == 320
    others = {name: value for name, value in generator.state_dict().items() if "embed_tokens" not in name}
    assert all(torch.equal(value, model.generator.state_dict()[name]) for name, value in others.items())
    host = AutoModelForCausalLM.from_pretrained(root / "host").state_dict()
    assert all(torch.equal(value, host[name]) for name, value in model.host.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.host.parameters())


@pytest.mark.parametrize("include_host", [False, True])
def test_conversion(original, tmp_path, include_host, monkeypatch):
    root, _, _ = original
    family = json.loads((root / "generator" / "config.json").read_text())["model_type"]
    opening, answer_prompt = PROMPTS[family]
    convert_original(root / "published", root / "host", tmp_path, num_implicit_tokens=2, include_host=include_host)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    first = SemCoTForCausalLM.from_original(root / "published", host=root / "host", num_implicit_tokens=2)
    ids = torch.tensor([[10, 11, 12]])
    assert torch.equal(model.implicit_embeddings(ids), first.implicit_embeddings(ids))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "How many?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == opening + "How many?" + answer_prompt
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[-len(model.config.answer_prompt_ids) :] == model.config.answer_prompt_ids
    assert tokenizer.decode(model.config.answer_prompt_ids) == answer_prompt
    piped = pipeline("text-generation", model=str(tmp_path))(chat, max_new_tokens=3, do_sample=False)
    out = model.generate(torch.tensor([ids]), max_new_tokens=3)
    assert piped[0]["generated_text"][-1]["content"] == tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def test_dtype(original):
    root, _, _ = original
    model = SemCoTForCausalLM.from_original(
        root / "published", host=root / "host", dtype=torch.bfloat16, host_kwargs={"dtype": torch.float32}
    )
    assert model.thought_embedding.dtype == model.generator.dtype == torch.bfloat16
    assert model.host.dtype == torch.float32


def test_refusals(original, tiny_lm):
    root, _, _ = original
    with pytest.raises(ValueError, match="has no model_name and teacher_hid_dim in its config.json"):
        SemCoTForCausalLM.from_original(root / "generator", host=root / "host")
    with pytest.raises(ValueError, match="host has hidden_size=16, but .* a host of hidden_size=32: pass that host"):
        SemCoTForCausalLM.from_original(root / "published", host=tiny_lm("llama", hidden_size=16))


def test_a_generator_family_without_a_prompt_is_not_converted(tiny_lm, tiny_tokenizer, tmp_path):
    tiny_lm("llama", dtype=torch.float32).save_pretrained(tmp_path / "host")
    tiny_tokenizer.save_pretrained(tmp_path / "host")
    tiny_lm("phi", hidden_size=16, dtype=torch.float32).save_pretrained(tmp_path / "generator")
    publish(tmp_path / "published", tmp_path / "generator", 32)
    with pytest.raises(ValueError, match="model_type='phi', for which the authors have no prompt"):
        convert_original(tmp_path / "published", tmp_path / "host", tmp_path / "out")
    assert not (tmp_path / "out").exists()
