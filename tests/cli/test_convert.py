"""`semcot convert` on a tiny checkpoint in the authors' layout."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from semcot_hf import SemCoTForCausalLM
from semcot_hf.cli.main import main


@pytest.fixture(scope="module")
def folder(tiny_lm, tiny_tokenizer, tmp_path_factory):
    """Holds host, generator and the published checkpoint: backbone with an extra row, and projection."""
    root = tmp_path_factory.mktemp("convert")
    tiny_lm("llama", dtype=torch.float32).save_pretrained(root / "host")
    tiny_tokenizer.save_pretrained(root / "host")
    generator = tiny_lm("qwen2", hidden_size=16, dtype=torch.float32)
    generator.save_pretrained(root / "generator")
    generator.resize_token_embeddings(generator.config.vocab_size + 1, mean_resizing=False)
    tensors = {f"model.{name}": value.contiguous() for name, value in generator.model.state_dict().items()}
    projection = torch.nn.Linear(16, 32).state_dict()
    tensors |= {f"projection_layer.{name}": value for name, value in projection.items()}
    (root / "published").mkdir()
    save_file(tensors, root / "published" / "model.safetensors", metadata={"format": "pt"})
    config = {"model_name": str(root / "generator"), "teacher_hid_dim": 32}
    (root / "published" / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize("whole", [False, True])
def test_converts_into_a_checkpoint_that_answers(folder, whole, tmp_path, capsys):
    flags = ["--model", str(folder / "published"), "--host", str(folder / "host"), "--output_dir", str(tmp_path)]
    flags += ["--num_implicit_tokens", "2", *(["--include_host", "true"] if whole else [])]
    assert main(["convert", *flags]) == 0
    printed = capsys.readouterr().out
    assert "k=2" in printed and ("with its host" in printed) == whole
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.includes_host == whole and model.config.num_implicit_tokens == 2
    first = SemCoTForCausalLM.from_original(folder / "published", host=folder / "host", num_implicit_tokens=2)
    ids = torch.tensor([[10, 11, 12]])
    assert torch.equal(model.implicit_embeddings(ids), first.implicit_embeddings(ids))
    chat = [{"role": "user", "content": "How many?"}]
    piped = pipeline("text-generation", model=str(tmp_path))(chat, max_new_tokens=3, do_sample=False)
    assert piped[0]["generated_text"][-1]["role"] == "assistant"
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template


def test_dtype_reaches_what_is_saved(folder, tmp_path):
    flags = ["--model", str(folder / "published"), "--host", str(folder / "host"), "--output_dir", str(tmp_path)]
    assert main(["convert", *flags, "--dtype", "bfloat16"]) == 0
    model = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert model.generator.dtype == model.thought_embedding.dtype == model.host.dtype == torch.bfloat16
    assert model.config.num_implicit_tokens == 1


def test_another_checkpoint_is_refused_in_one_line(folder, tmp_path, capsys):
    output = tmp_path / "out"
    flags = ["--model", str(folder / "generator"), "--host", str(folder / "host"), "--output_dir", str(output)]
    assert main(["convert", *flags]) == 1
    assert "has no model_name and teacher_hid_dim in its config.json" in capsys.readouterr().err
    assert not output.exists()
