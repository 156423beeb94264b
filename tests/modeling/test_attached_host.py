"""The host of an attached checkpoint: replaced, resized, kept in a subfolder; and the options that reach it."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from semcot_hf import SemCoTForCausalLM

IDS = torch.tensor([[10, 11, 12, 13]])


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    root = tmp_path_factory.mktemp("attached")
    for name, seed in (("host", 0), ("other", 5), ("hosts/inner", 6)):
        tiny_lm(seed=seed, dtype=torch.bfloat16).save_pretrained(root / name)
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    model = SemCoTForCausalLM.from_host_generator_pretrained(root / "host", root / "generator", num_implicit_tokens=3)
    model.save_pretrained(root / "attached")
    return root


def answers(model):
    return model.generate(IDS, max_new_tokens=6, min_new_tokens=6).tolist()


def given_when_loaded(folders):
    return SemCoTForCausalLM.from_pretrained(folders / "attached", host=folders / "other")


def attached_later(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "attached")
    model.attach_host(AutoModelForCausalLM.from_pretrained(folders / "other"))
    return model


@pytest.mark.parametrize("replaced", [given_when_loaded, attached_later])
def test_another_host_is_the_one_that_a_checkpoint_names(folders, tmp_path, replaced):
    model = replaced(folders)
    model.save_pretrained(tmp_path)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.host_name_or_path == str(folders / "other") and not loaded.config.includes_host
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_host_without_a_name_put_in_its_place_is_included(folders, tiny_lm, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / "attached", host=tiny_lm(seed=9))
    model.save_pretrained(tmp_path)
    assert answers(SemCoTForCausalLM.from_pretrained(tmp_path)) == answers(model)


def test_a_host_in_a_subfolder_is_found_again(folders, tmp_path):
    inner = {"subfolder": "inner"}
    made = SemCoTForCausalLM.from_host_generator_pretrained(
        folders / "hosts", folders / "generator", host_kwargs=inner
    )
    given = SemCoTForCausalLM.from_pretrained(folders / "attached", host=folders / "hosts", host_kwargs=inner)
    for name, model in (("made", made), ("given", given)):
        model.save_pretrained(tmp_path / name)
        loaded = SemCoTForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(loaded.host.lm_head.weight, model.host.lm_head.weight), name


def test_a_resized_host_is_included_and_never_named(folders, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / "attached")
    model.resize_token_embeddings(330)
    assert model.host.config.vocab_size == model.config.vocab_size == 330
    assert model(IDS, labels=IDS).loss.isfinite()
    with pytest.raises(ValueError, match="its vocabulary resized from 320 to 330"):
        model.save_pretrained(tmp_path / "attached", include_host=False)
    model.save_pretrained(tmp_path / "whole")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "whole")
    assert loaded.config.includes_host and answers(loaded) == answers(model)


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_no_dtype_and_auto_are_the_ones_saved_with(folders, dtype, tmp_path):
    SemCoTForCausalLM.from_pretrained(folders / "attached", host_kwargs={"dtype": torch.float32}).save_pretrained(
        tmp_path
    )
    model = SemCoTForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert model.host.dtype == model.generator.dtype == torch.float32
    model = SemCoTForCausalLM.from_pretrained(folders / "attached", dtype=dtype)
    assert model.host.dtype == torch.bfloat16 and model.generator.dtype == torch.float32


def test_attention_of_the_host_alone(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "attached", attn_implementation={"host_config": "eager"})
    assert model.host.config._attn_implementation == "eager" != model.generator.config._attn_implementation
    model = SemCoTForCausalLM.from_pretrained(folders / "attached")
    model.set_attn_implementation({"host_config": "eager"})
    assert model.host.config._attn_implementation == "eager" != model.generator.config._attn_implementation


def test_a_device_map_may_name_parts_of_the_host(folders):
    places = dict.fromkeys(("generator", "projection", "thought_embedding"), "cpu")
    for host in ({"host": "meta"}, {"host.model": "meta", "host.lm_head": "meta"}):
        model = SemCoTForCausalLM.from_pretrained(folders / "attached", device_map={**places, **host})
        assert model.host.device.type == "meta" and model.generator.device.type == "cpu"


def test_fields_of_the_configuration_may_be_passed(folders):
    model = SemCoTForCausalLM.from_pretrained(
        folders / "attached", num_implicit_tokens=1, output_attentions=True, attn_implementation="eager"
    )
    assert model.config.num_implicit_tokens == 1 and model.config.output_attentions
    assert model.implicit_embeddings(IDS).shape[1] == 1
    assert len(model(IDS, num_implicit_tokens=1).attentions) == 2
    with pytest.raises(TypeError, match="no_such_field"):
        SemCoTForCausalLM.from_pretrained(folders / "attached", no_such_field=1)


def test_tokenizers_are_saved_and_uploaded_by_the_main_process_alone(
    folders, tiny_lm, tiny_tokenizer, char_tokenizer, monkeypatch, tmp_path
):
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        folders / "host", folders / "generator", host_tokenizer=tiny_tokenizer, generator_tokenizer=char_tokenizer
    )
    model.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second" / "host_tokenizer").exists()
    uploaded = []
    hub = SimpleNamespace(
        create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=repo_id),
        create_commit=lambda repo_id, operations, **_: uploaded.extend(operations),
    )
    for module in ("transformers.modeling_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: hub)
    model.save_pretrained(tmp_path / "main", push_to_hub=True, repo_id="me/model")
    names = {operation.path_in_repo for operation in uploaded}
    assert {"config.json", "host_tokenizer/tokenizer.json", "generator_tokenizer/tokenizer.json"} <= names
    model.host_tokenizer = None
    with pytest.raises(ValueError, match="model.host_tokenizer is None"):
        model.save_pretrained(tmp_path / "none")


def test_a_host_object_that_cannot_be_copied_passes_the_auto_classes_with_the_configuration(folders, monkeypatch):
    """They copy all arguments unless they get the configuration; quanto's tensors cannot be copied."""

    def refuse(*_):
        raise RuntimeError("a host was copied")

    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    monkeypatch.setattr(type(host.lm_head.weight), "__deepcopy__", refuse)
    with pytest.raises(RuntimeError, match="a host was copied"):
        AutoModelForCausalLM.from_pretrained(folders / "attached", host=host)
    config = AutoConfig.from_pretrained(folders / "attached")
    for model in (
        AutoModelForCausalLM.from_pretrained(folders / "attached", host=host, config=config),
        SemCoTForCausalLM.from_pretrained(folders / "attached", host=host),
    ):
        assert model.host is host
