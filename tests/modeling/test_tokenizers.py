"""Host and generator with different tokenizers: what the generator reads, in training, generation and checkpoints."""

import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.inference.prompting import answer_prompt_ids, prompt_text, with_answer_prompt
from semcot_hf.modeling.vocabularies_semcot import generator_text, retokenize

# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
QUESTIONS = ["How many apples has Ann now?", "Ann has two.", "Bob gives one to Ann and one to Al"]
NEW = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def root(tiny_lm, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    tiny_lm("llama", dtype=torch.float32).save_pretrained(root / "host")
    tiny_lm("gpt2", hidden_size=16, vocab_size=110, dtype=torch.float32).save_pretrained(root / "generator")
    return root


@pytest.fixture(scope="module")
def model(root, tiny_tokenizer, char_tokenizer):
    return SemCoTForCausalLM.from_host_generator_pretrained(
        root / "host",
        root / "generator",
        num_implicit_tokens=3,
        answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
        host_tokenizer=tiny_tokenizer,
        generator_tokenizer=char_tokenizer,
    )


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    tokenizer = with_answer_prompt(tiny_tokenizer)
    return [prompt_text(tokenizer, question) for question in QUESTIONS]


def test_text_for_the_generator(tiny_tokenizer, char_tokenizer):
    ids = tiny_tokenizer("<bos><user>Ann has\n 2<assistant><eos>!", add_special_tokens=False)["input_ids"]
    assert {1, 2, 3, 4} < set(ids)
    assert generator_text(ids, tiny_tokenizer, char_tokenizer) == "[bos]<user>Ann has\n 2!"
    assert generator_text(ids, tiny_tokenizer, tiny_tokenizer) == "<bos><user>Ann has\n 2<assistant><eos>!"


def test_retokenized_rows_are_padded_on_the_left(tiny_tokenizer, char_tokenizer):
    batch = tiny_tokenizer(["Ann", "<user>Ann has two"], padding=True, return_tensors="pt", add_special_tokens=False)
    ids, mask = retokenize(batch["input_ids"], batch["attention_mask"], tiny_tokenizer, char_tokenizer)
    expected = [char_tokenizer(text)["input_ids"] for text in ("Ann", "<user>Ann has two")]
    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == expected
    assert mask.tolist() == [[0] * 9 + [1] * 3, [1] * 12] and (ids[0, :9] == char_tokenizer.pad_token_id).all()
    assert len(expected[1]) == 12 and char_tokenizer.unk_token_id not in ids


def test_retokenizing_lists_no_vocabulary(tiny_tokenizer, char_tokenizer, monkeypatch):
    """Listing thousands of added tokens takes longer than the question's tokens (Gemma has 6,400)."""

    def listed(*_):
        pytest.fail("the added tokens are listed")

    batch = tiny_tokenizer(["<bos>one flip", "two"], return_tensors="pt", padding=True)
    expected = retokenize(batch["input_ids"], batch["attention_mask"], tiny_tokenizer, char_tokenizer)
    for kind in {type(tiny_tokenizer), type(char_tokenizer)}:
        monkeypatch.setattr(kind, "added_tokens_decoder", property(listed))
        monkeypatch.setattr(kind, "get_added_vocab", listed)
    made = retokenize(batch["input_ids"], batch["attention_mask"], tiny_tokenizer, char_tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_one_tokenizer_twice_changes_nothing(tiny_semcot, tiny_lm, tiny_tokenizer, prompts):
    """Re-tokenizing into the same tokenizer gives the ids back, and so the same tokens."""
    host, generator = tiny_lm("llama"), tiny_lm("llama", hidden_size=16)
    plain = tiny_semcot(host, generator)
    separate = tiny_semcot(host, generator, host_tokenizer=tiny_tokenizer, generator_tokenizer=tiny_tokenizer)
    batch = tiny_tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    assert torch.equal(plain.implicit_embeddings(**batch), separate.implicit_embeddings(**batch))


def by_hand(model, tokenizer, char_tokenizer, prompt):
    """Z from the generator's own ids of the query's text, by the generator alone."""
    query = prompt.removesuffix("\nAnswer:").replace("<assistant>", "")
    ids = torch.tensor([char_tokenizer(query, add_special_tokens=False)["input_ids"]])
    embeds = model.generator.get_input_embeddings()(ids)
    embeds = torch.cat([embeds, model.thought_embedding.expand(1, 3, -1)], dim=1)
    return model.projection(model.generator(inputs_embeds=embeds).last_hidden_state[:, -3:])


def test_tokens_in_training_and_generation(model, tiny_tokenizer, char_tokenizer, prompts):
    batch = tiny_tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    made = model.implicit_embeddings(**batch)
    generated = model.generate(**batch, **NEW)
    for row, prompt in enumerate(prompts):
        expected = by_hand(model, tiny_tokenizer, char_tokenizer, prompt)
        torch.testing.assert_close(made[row], expected[0], atol=1e-5, rtol=1e-5)
        ids = torch.tensor([tiny_tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        alone = model.generate(ids, implicit_embeddings=expected, **NEW)
        assert generated[row, -5:].tolist() == alone[0, -5:].tolist()
        answered = torch.cat([ids, torch.tensor([[40, 41]])], dim=1)
        labels = torch.cat([torch.full_like(ids, -100), torch.tensor([[40, 41]])], dim=1)
        out = model(answered, labels=labels)
        torch.testing.assert_close(out.implicit_embeddings, expected, atol=1e-5, rtol=1e-5)
        out.loss.backward()
    assert model.generator.get_input_embeddings().weight.grad.abs().sum() > 0
    model.zero_grad()


def test_checkpoints_carry_both_tokenizers(model, tiny_tokenizer, char_tokenizer, prompts, tmp_path):
    for layout in ("attached", "whole"):
        with_answer_prompt(tiny_tokenizer).save_pretrained(tmp_path / layout)
        model.save_pretrained(tmp_path / layout, include_host=layout == "whole")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / layout)
        assert loaded.generator_tokenizer.get_vocab() == char_tokenizer.get_vocab()
        assert loaded.host_tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
        batch = tiny_tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        assert torch.equal(loaded.generate(**batch, **NEW), model.generate(**batch, **NEW))
        assert AutoTokenizer.from_pretrained(tmp_path / layout).chat_template.endswith("{%- endif %}")


def test_names_of_tokenizers(root, tiny_tokenizer, char_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "one")
    char_tokenizer.save_pretrained(tmp_path / "other")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        root / "host", root / "generator", host_tokenizer=tmp_path / "one", generator_tokenizer=str(tmp_path / "other")
    )
    assert model.config.separate_generator_tokenizer
    assert model.generator_tokenizer.get_vocab() == char_tokenizer.get_vocab()


def test_refusals(root, model, tiny_tokenizer):
    with pytest.raises(ValueError, match="host_tokenizer and generator_tokenizer go together"):
        SemCoTForCausalLM.from_host_generator_pretrained(
            root / "host", root / "generator", host_tokenizer=tiny_tokenizer
        )
    with pytest.raises(ValueError, match="a row of special tokens only"):
        model.generate(torch.tensor([[2, 4]]), **NEW)
    bare = SemCoTForCausalLM.from_host_generator_pretrained(root / "host", root / "generator")
    bare.config.separate_generator_tokenizer = True
    with pytest.raises(ValueError, match="model.host_tokenizer or model.generator_tokenizer is None: set both"):
        bare.generate(torch.tensor([[10, 11]]), **NEW)


def with_tokenizer(model, tokenizer, folder):
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def test_tokenizers_of_the_folders_are_compared(tiny_lm, tiny_tokenizer, char_tokenizer, prompts, tmp_path):
    """Folders, a folder above a subfolder, and models loaded from folders; without a tokenizer, ids are shared."""
    host = with_tokenizer(tiny_lm("llama", dtype=torch.float32), tiny_tokenizer, tmp_path / "host")
    small = {"hidden_size": 16, "dtype": torch.float32}
    other = with_tokenizer(tiny_lm("gpt2", vocab_size=110, **small), char_tokenizer, tmp_path / "other")
    shared = with_tokenizer(tiny_lm("llama", **small), tiny_tokenizer, tmp_path / "shared")
    bare = with_tokenizer(tiny_lm("gpt2", **small), None, tmp_path / "bare")
    tiny_lm("gpt2", vocab_size=110, **small).save_pretrained(other / "inner")
    inner = {"generator_kwargs": {"subfolder": "inner"}}
    pair = SemCoTForCausalLM.from_host_generator_pretrained
    for one in (
        pair(host, other),
        pair(host, other, **inner),
        pair(AutoModelForCausalLM.from_pretrained(host), AutoModelForCausalLM.from_pretrained(other)),
    ):
        assert one.config.separate_generator_tokenizer
        assert one.generator_tokenizer.get_vocab() == char_tokenizer.get_vocab()
        assert one.host_tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    one.save_pretrained(tmp_path / "saved")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([tiny_tokenizer(prompts[0], add_special_tokens=False)["input_ids"]])
    assert torch.equal(loaded.generate(ids, **NEW), one.generate(ids, **NEW))
    for generator in (shared, bare, tiny_lm("llama", **small)):
        one = pair(host, generator)
        assert not one.config.separate_generator_tokenizer and one.host_tokenizer is None
    assert (pair(host, other, projection="vocabulary").host_word_ids >= 0).any()


def test_tokenizers_of_the_base_of_adapters_are_compared(tiny_lm, tiny_tokenizer, char_tokenizer, tmp_path):
    small = {"hidden_size": 16, "dtype": torch.float32}
    host = with_tokenizer(tiny_lm("llama", dtype=torch.float32), tiny_tokenizer, tmp_path / "host")
    other = with_tokenizer(tiny_lm("llama", **small), char_tokenizer, tmp_path / "other")
    for folder in (host, other):
        base = AutoModelForCausalLM.from_pretrained(folder)
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(f"{folder}-adapters")
    pair = SemCoTForCausalLM.from_host_generator_pretrained
    for one in (pair(f"{host}-adapters", other), pair(host, f"{other}-adapters")):
        assert one.config.separate_generator_tokenizer


@pytest.mark.parametrize("damage", [lambda text: text[:500], lambda text: text.replace("{", "[", 3)])
def test_a_damaged_tokenizer_is_not_taken_for_none(tiny_lm, tiny_tokenizer, char_tokenizer, damage, tmp_path):
    host = with_tokenizer(tiny_lm("llama", dtype=torch.float32), tiny_tokenizer, tmp_path / "host")
    other = with_tokenizer(tiny_lm("llama", hidden_size=16, dtype=torch.float32), char_tokenizer, tmp_path / "other")
    (other / "tokenizer.json").write_text(damage((other / "tokenizer.json").read_text()))
    with pytest.raises(
        OSError, match="other': its tokenizer .tokenizer.json. is cut off or damaged .*copy or download"
    ):
        SemCoTForCausalLM.from_host_generator_pretrained(host, other)


@pytest.fixture
def own_code(tiny_lm, tiny_tokenizer, char_tokenizer, tmp_path, monkeypatch):
    """A folder with a host, and a generator whose tokenizer has code of its own; nobody answers questions."""
    tiny_lm(dtype=torch.float32, eos_token_id=2).save_pretrained(tmp_path / "host")
    tiny_tokenizer.save_pretrained(tmp_path / "host")
    tiny_lm(hidden_size=16, dtype=torch.float32, eos_token_id=2).save_pretrained(tmp_path / "generator")
    char_tokenizer.save_pretrained(tmp_path / "generator")
    code = (
        "from transformers import PreTrainedTokenizerFast\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (tmp_path / "generator" / "own.py").write_text(code)
    written = tmp_path / "generator" / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    written.write_text(json.dumps({**json.loads(written.read_text()), **own}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


def test_a_tokenizer_with_code_of_its_own_runs_it_when_it_is_trusted(own_code, char_tokenizer):
    pair = SemCoTForCausalLM.from_host_generator_pretrained
    parts = {"host": own_code / "host", "generator": own_code / "generator"}
    named = {f"{role}_tokenizer": folder for role, folder in parts.items()}
    with pytest.raises(ValueError, match="generator' has code of its own: pass trust_remote_code=True in generator_k"):
        pair(**parts, **named)
    with pytest.raises(ValueError, match="No tokenizer of the generator is found .*: pass tokenizer=, or trust_remot"):
        pair(**parts, recipe="prompted")
    trusted = {"generator_kwargs": {"trust_remote_code": True}}
    for options in ({}, named, {"recipe": "prompted"}):
        model = pair(**parts, **trusted, **options)
        assert type(model.generator_tokenizer).__name__ == "OwnTokenizer"
    model.save_pretrained(own_code / "saved")
    for loader in (SemCoTForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="(?s)contains custom code .*trust_remote_code=True"):
            loader.from_pretrained(own_code / "saved")
        loaded = loader.from_pretrained(own_code / "saved", trust_remote_code=True)
        assert type(loaded.generator_tokenizer).__name__ == "OwnTokenizer"
        assert loaded.generator_tokenizer.get_vocab() == char_tokenizer.get_vocab()
    other = shutil.copytree(own_code / "generator", own_code / "other")
    (other / "own.py").write_text((other / "own.py").read_text() + "# Another one.\n")
    model.host_tokenizer = AutoTokenizer.from_pretrained(other, trust_remote_code=True)
    with pytest.raises(
        ValueError, match="generator_tokenizer has code of its own in own.py, and host_tokenizer has o"
    ):
        model.save_pretrained(own_code / "two")
    assert not (own_code / "two").exists()


def test_thought_prompts_are_of_the_tokenizers_in_subfolders(tiny_lm, tiny_tokenizer, char_tokenizer, tmp_path):
    small = {"dtype": torch.float32, "eos_token_id": 2}
    with_tokenizer(tiny_lm(**small), tiny_tokenizer, tmp_path / "hosts" / "small")
    with_tokenizer(tiny_lm(hidden_size=16, **small), tiny_tokenizer, tmp_path / "generators" / "small")
    inner = {f"{role}_kwargs": {"subfolder": "small"} for role in ("host", "generator")}
    prompt = [{"role": "user", "content": "Think."}]
    pair = SemCoTForCausalLM.from_host_generator_pretrained
    wanted = pair(
        tmp_path / "hosts" / "small", tmp_path / "generators" / "small", recipe="prompted", thought_prompt=prompt
    )
    # Another one above them is not theirs.
    for folder in (None, tmp_path / "hosts", tmp_path / "generators"):
        if folder is not None:
            char_tokenizer.save_pretrained(folder)
        model = pair(tmp_path / "hosts", tmp_path / "generators", recipe="prompted", thought_prompt=prompt, **inner)
        assert model.config.thought_prompt_ids == wanted.config.thought_prompt_ids
        assert model.config.end_of_thought_token_ids == wanted.config.end_of_thought_token_ids
    model.config.generator_name_or_path = None
    assert model.words_tokenizer().get_vocab() == tiny_tokenizer.get_vocab()


def test_a_tokenizer_with_code_of_its_own_is_told(tiny_lm, char_tokenizer, tmp_path, caplog, monkeypatch):
    """It cannot be compared without running the code."""
    for name in ("host", "generator"):
        tiny_lm(dtype=torch.float32).save_pretrained(tmp_path / name)
        char_tokenizer.save_pretrained(tmp_path / name)
    written = tmp_path / "generator" / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    written.write_text(json.dumps({**json.loads(written.read_text()), **own}))
    (tmp_path / "generator" / "tokenizer.json").unlink()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        SemCoTForCausalLM.from_host_generator_pretrained(tmp_path / "host", tmp_path / "generator")
    assert "generator' has code of its own, which is not run" in caplog.text
