"""Folders that are never overwritten, parts that could not be loaded again, and paths that are never published."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from semcot_hf import SemCoTForCausalLM
from semcot_hf.modeling.folders_semcot import check_run_folder, is_folder

pair = SemCoTForCausalLM.from_host_generator_pretrained


@pytest.fixture
def folders(tiny_lm, tmp_path):
    tiny_lm(dtype=torch.float32).save_pretrained(tmp_path / "host")
    tiny_lm(dtype=torch.float32).save_pretrained(tmp_path / "hosts" / "host_tokenizer")
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(tmp_path / "generator")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("include_host", [None, True, False])
def test_the_folders_of_the_parts_are_never_written(folders, include_host):
    (folders / "link").symlink_to(folders / "host")
    model = pair(folders / "host", folders / "generator")
    before = contents(folders)
    for name, role in (("host", "host"), ("link", "host"), ("host/", "host"), ("generator", "generator")):
        with pytest.raises(ValueError, match=f"save_directory=.* is where the {role} comes from, which would be over"):
            model.save_pretrained(f"{folders}/{name}", include_host=include_host)
    assert contents(folders) == before
    model.save_pretrained(folders / "host" / "semcot", include_host=include_host)
    assert SemCoTForCausalLM.from_pretrained(folders / "host" / "semcot").config.includes_host is bool(include_host)


def test_folders_of_parts_given_otherwise(folders, tiny_lm, tiny_tokenizer, monkeypatch):
    objects = [AutoModelForCausalLM.from_pretrained(folders / name) for name in ("host", "generator")]
    model = pair(*objects)
    model.config.host_name_or_path = None
    inner = pair(folders / "hosts", folders / "generator", host_kwargs={"subfolder": "host_tokenizer"})
    steps = pair(tiny_lm(), tiny_lm(hidden_size=16, seed=1))
    steps.add_step_decoder(objects[0])
    before = contents(folders)
    for one, name in ((model, "host"), (model, "generator"), (inner, "hosts/host_tokenizer"), (steps, "host")):
        with pytest.raises(ValueError, match="is where the .* comes from"):
            one.save_pretrained(folders / name)
    inner.host_tokenizer = inner.generator_tokenizer = tiny_tokenizer
    inner.config.separate_generator_tokenizer = True
    with pytest.raises(ValueError, match="is where the host comes from"):
        inner.save_pretrained(folders / "hosts")
    assert contents(folders) == before
    # transformers reads a folder of this name before the Hub.
    model.config.host_name_or_path = "lab/host"
    monkeypatch.chdir(folders)
    with pytest.raises(ValueError, match="is where the host comes from"):
        model.save_pretrained("lab/host")
    assert not (folders / "lab").exists()


def test_folders_of_runs(tmp_path):
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoint-20"):
        with pytest.raises(ValueError, match="output_dir=.*run' .*the host"):
            check_run_folder(tmp_path / "run", [("host", source)])
    check_run_folder(tmp_path / "run", [("host", tmp_path / "run" / "host"), ("generator", None)])


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


@pytest.mark.parametrize("role", ["host", "generator"])
def test_parts_that_could_not_be_loaded_again(folders, role):
    """They are refused as folders, before their weights are read, and as models."""
    pair(folders / "host", folders / "generator").save_pretrained(folders / "semcot")
    sizes = json.loads((folders / "host" / "config.json").read_text())
    OwnModel(OwnConfig(**{**sizes, "model_type": "own_llama"})).save_pretrained(folders / "own")
    config = json.loads((folders / "own" / "config.json").read_text())
    assert config["model_type"] == "own_llama"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folders / "own" / "config.json").write_text(json.dumps(config))
    semcot, own = SemCoTForCausalLM.from_pretrained(folders / "semcot"), OwnModel.from_pretrained(folders / "own")
    whole = {"host": folders / "host", "generator": folders / "generator"}
    for part, message in (
        (folders / "semcot", "is a SemCoT model, of which only a part would be used"),
        (semcot, "is a SemCoT model"),
        (folders / "own", "model_type='own_llama'. has code of its own"),
        (own, "has code of its own, which no SemCoT checkpoint has: take a model type of transformers"),
    ):
        with pytest.raises(ValueError, match=f"{role}=.*{message}"):
            pair(**{**whole, role: part})
    if role == "host":
        for host in (folders / "semcot", folders / "own", own, semcot):
            with pytest.raises(ValueError, match="is a SemCoT model|code of its own"):
                SemCoTForCausalLM.from_pretrained(folders / "semcot", host=host)
        with pytest.raises(ValueError, match="is a SemCoT model"):
            semcot.attach_host(semcot)


def test_code_beside_a_known_model_type(folders):
    """With trust_remote_code, the class would be another one than a checkpoint loads."""
    config = json.loads((folders / "host" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.OwnModel"}
    (folders / "host" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="code of its own, .* without trust_remote_code"):
        pair(folders / "host", folders / "generator", host_kwargs={"trust_remote_code": True})
    pair(folders / "host", folders / "generator")


def test_a_quantized_generator(folders, tiny_lm):
    generator = tiny_lm(hidden_size=16, seed=1)
    generator.is_quantized = True
    with pytest.raises(ValueError, match="generator is quantized, .*: load it without quantization_config"):
        pair(folders / "host", generator)
    backbone = tiny_lm(hidden_size=16, seed=1).model
    backbone.config._is_quantized = True
    with pytest.raises(ValueError, match="generator is quantized"):
        pair(folders / "host", backbone)
    model = pair(folders / "host", folders / "generator")
    for part in (model, model.generator):
        part.is_quantized = True
        with pytest.raises(ValueError, match="The generator is quantized, and its weights cannot be saved: load"):
            model.save_pretrained(folders / "out", include_host=part is model)
        part.is_quantized = False
    assert not (folders / "out").exists()


SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SMALL, "intermediate_size": 48, "max_position_embeddings": 128}
T5 = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def made(auto, family, **sizes):
    torch.manual_seed(0)
    return auto.from_config(CONFIG_MAPPING[family](**sizes)).eval()


def test_encoders_and_encoder_decoders(tiny_lm, tiny_semcot):
    """Encoders serve as parallel generators, where a padded batch has the tokens of each question alone."""
    translator = made(AutoModelForSeq2SeqLM, "t5", **T5)
    for parts in ({"host": translator}, {"generator": translator}, {"generator": translator.base_model}):
        with pytest.raises(ValueError, match=f"{next(iter(parts))} is a T5.* .model_type='t5'., an encoder-decoder"):
            tiny_semcot(**parts)
    for family in ("bert", "rembert"):
        with pytest.raises(ValueError, match=f"host is a .*{family}'., an encoder, .*: take a causal LM, or set is_d"):
            tiny_semcot(made(AutoModelForCausalLM, family, **ENCODER))
        with pytest.raises(ValueError, match="'sequential' needs a generator that keeps keys and values"):
            tiny_semcot(generator=made(AutoModel, family, **ENCODER), generator_mode="sequential")
    for host in (tiny_lm().model, made(AutoModelForMaskedLM, "bert", **ENCODER)):
        with pytest.raises(ValueError, match="host is a .*, which writes no text: take a causal LM, as AutoModelFor"):
            tiny_semcot(host)
    tiny_semcot(made(AutoModelForCausalLM, "bert", **ENCODER, is_decoder=True))
    tiny_semcot(tiny_lm("gpt_neox"), tiny_lm("gpt_neox", seed=1), generator_mode="sequential")
    ids = torch.tensor([[10, 11, 12, 13], [0, 0, 14, 15]])
    for family in ("bert", "roberta"):
        model = tiny_semcot(generator=made(AutoModel, family, **ENCODER))
        alone = torch.cat([model.implicit_embeddings(ids[:1]), model.implicit_embeddings(ids[1:, 2:])])
        torch.testing.assert_close(model.implicit_embeddings(ids, (ids > 0).long()), alone, rtol=1e-4, atol=1e-5)


def test_a_host_from_a_gguf_file(folders, tiny_lm):
    """Unpacked, its weights can be included; packed, only a recorded file can be loaded again."""
    pytest.importorskip("gguf")
    from gguf_files import write_llama

    write_llama(tiny_lm(dtype=torch.float32), folders / "host" / "host.gguf")
    host = AutoModelForCausalLM.from_pretrained(folders / "host", gguf_file="host.gguf")
    assert host.is_quantized
    model = pair(host, folders / "generator")
    model.save_pretrained(folders / "whole", include_host=True)
    loaded = SemCoTForCausalLM.from_pretrained(folders / "whole")
    assert torch.equal(loaded.host.lm_head.weight, host.lm_head.weight)
    layer = host.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.uint8), requires_grad=False)
    assert "packed1-" in pair(host, folders / "generator").config.host_fingerprint
    with pytest.raises(ValueError, match="cannot save a quantized host"):
        model.save_pretrained(folders / "packed", include_host=True)
    model.config.host_gguf_file = model.config.host_fingerprint = model._host_is_there = None
    host.quantization_method = "gguf"
    with pytest.raises(ValueError, match="cannot save a quantized host: .* host_kwargs such as gguf_file"):
        model.save_pretrained(folders / "packed")
    assert not (folders / "packed").exists()


@pytest.fixture
def uploads(monkeypatch):
    """The files that are uploaded to a stand-in for the Hub, by repository."""
    found = {}

    def create_commit(repo_id, operations, **_):
        files = found.setdefault(repo_id, {})
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()

    hub = SimpleNamespace(
        create_repo=lambda repo_id, **_: found.setdefault(repo_id, {}) and None or SimpleNamespace(repo_id=repo_id),
        create_commit=create_commit,
    )
    for module in ("transformers.modeling_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: hub)
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: SimpleNamespace(save=lambda _: None)
    )
    return found


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_no_path_of_this_machine_is_pushed(folders, uploads, how):
    model = pair(folders / "host", folders / "generator")

    def push(repo, **options):
        if how == "push_to_hub":
            model.push_to_hub(repo, **options)
        else:
            model.save_pretrained(folders / "out", push_to_hub=True, repo_id=repo, **options)

    push("lab/semcot")
    config = json.loads(uploads["lab/semcot"]["config.json"])
    assert config["includes_host"] and str(folders) not in json.dumps(config)
    (folders / "pushed").mkdir()
    for name, content in uploads["lab/semcot"].items():
        (folders / "pushed" / name).write_bytes(content)
    with safe_open(folders / "pushed" / "model.safetensors", "pt") as file:
        assert any(name.startswith("host.") for name in file.keys())
    loaded = SemCoTForCausalLM.from_pretrained(folders / "pushed")
    assert torch.equal(loaded.host.lm_head.weight, model.host.lm_head.weight)
    assert not model.config.includes_host and model.config.host_name_or_path == str(folders / "host")
    assert model.host.config.name_or_path == str(folders / "host")
    with pytest.raises(ValueError, match="The host is in the folder .* of this machine, .*: pass include_host=True"):
        push("lab/attached", include_host=False)
    model.config.host_name_or_path = "lab/host"
    with pytest.raises(ValueError, match="repo_id='lab/host' is where the host comes from: push to another"):
        push("lab/host", include_host=True)
    push("lab/attached", include_host=False)
    config = json.loads(uploads["lab/attached"]["config.json"])
    assert config["host_name_or_path"] == "lab/host" and str(folders) not in json.dumps(config)
    assert uploads.keys() == {"lab/semcot", "lab/attached"}


def test_a_quantized_host_in_a_folder_is_not_pushed(folders, uploads):
    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    host.config.quantization_config, host.is_quantized = BitsAndBytesConfig(load_in_4bit=True), True
    model = pair(host, folders / "generator")
    with pytest.raises(ValueError, match="a quantized host cannot be included"):
        model.push_to_hub("lab/semcot")
    assert not uploads


def test_a_relative_folder_is_one_from_another_directory_too(folders, uploads, monkeypatch):
    monkeypatch.chdir(folders)
    models = [pair("host", "generator"), pair(AutoModelForCausalLM.from_pretrained("host"), "generator")]
    models[0].save_pretrained("attached")
    models.append(SemCoTForCausalLM.from_pretrained("attached"))
    (folders / "elsewhere").mkdir()
    monkeypatch.chdir(folders / "elsewhere")
    for number, model in enumerate(models):
        model.push_to_hub(f"lab/semcot-{number}")
        config = json.loads(uploads[f"lab/semcot-{number}"]["config.json"])
        assert config["includes_host"] and config["host_name_or_path"] is None
        assert config["generator_name_or_path"] is None and model.config.host_name_or_path == "host"


def test_a_configuration_alone_publishes_no_path(folders, uploads):
    config = pair(folders / "host", folders / "generator").config
    with pytest.raises(ValueError, match="names a host in the folder .*: push the model, by SemCoTForCausalLM.push"):
        config.push_to_hub("lab/config")
    assert not uploads
    config.host_name_or_path = "lab/host"
    config.push_to_hub("lab/config")
    assert json.loads(uploads["lab/config"]["config.json"])["host_name_or_path"] == "lab/host"


def test_a_saved_folder_and_a_pipeline_publish_no_path_either(folders, uploads, tiny_tokenizer):
    """Inside `for_the_hub`, whatever saves the model."""
    tiny_tokenizer.save_pretrained(folders / "generator")
    model = pair(folders / "host", folders / "generator")
    model.save_pretrained(folders / "attached")
    tiny_tokenizer.save_pretrained(folders / "attached")
    pipe = pipeline("text-generation", model=str(folders / "attached"))
    with pipe.model.for_the_hub():
        pipe.push_to_hub("lab/pipeline")
        pipe.save_pretrained(folders / "for-the-hub")
    for content in (uploads["lab/pipeline"]["config.json"], (folders / "for-the-hub" / "config.json").read_bytes()):
        assert json.loads(content)["includes_host"] and str(folders).encode() not in content


def test_a_configuration_is_not_saved_over_that_of_a_part(folders):
    config = pair(folders / "host", folders / "generator").config
    before = contents(folders)
    for part in ("host", "generator"):
        with pytest.raises(ValueError, match=f"save_directory=.* is where the {part} comes from, which would be over"):
            config.save_pretrained(folders / part)
    inner = pair(folders / "hosts", folders / "generator", host_kwargs={"subfolder": "host_tokenizer"}).config
    with pytest.raises(ValueError, match="is where the host comes from"):
        inner.save_pretrained(folders / "hosts" / "host_tokenizer")
    assert contents(folders) == before
    config.save_pretrained(folders / "config")


@pytest.mark.parametrize("value", [None, 3, torch.nn.Linear(2, 2), LlamaConfig()])
@pytest.mark.parametrize("role", ["host", "generator"])
def test_what_is_no_model_and_no_name(folders, role, value):
    parts = {"host": folders / "host", "generator": folders / "generator", role: value}
    with pytest.raises(ValueError, match=f"{role}=.*: pass an id, a path, or a model of transformers"):
        pair(**parts)
    if value is None:
        return
    model = pair(folders / "host", folders / "generator")
    model.save_pretrained(folders / "attached")
    with pytest.raises(ValueError, match="host=.*: pass an id, a path, or a model of transformers"):
        SemCoTForCausalLM.from_pretrained(folders / "attached", host=value)
    for attach, name in ((model.attach_host, "host"), (model.add_step_decoder, "step decoder")):
        for wrong in (value, folders / "host"):
            with pytest.raises(ValueError, match=f"{name}=.*: pass a model of transformers"):
                attach(wrong)


def test_folders_and_ids(tmp_path, monkeypatch):
    (tmp_path / "lab" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert all(map(is_folder, ["/models/host", "./host", "../host", "~/host", "runs/best/host", "lab/here", tmp_path]))
    assert not any(map(is_folder, ["lab/host", "gpt2", "", None]))


def test_folders_are_known_by_another_name(folders, tiny_lm, monkeypatch):
    """Relative paths after a change of directory, subfolders, snapshots of the Hub's cache, folders of adapters."""
    cache = folders / "cache" / "models--lab--host"
    snapshot = cache / "snapshots" / ("a" * 40)
    for path in (snapshot, cache / "refs", cache / "blobs"):
        path.mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    for file in (folders / "host").iterdir():
        shutil.copy(file, cache / "blobs" / file.name)
        (snapshot / file.name).symlink_to(cache / "blobs" / file.name)
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(folders / "generators" / "small")
    monkeypatch.chdir(folders)
    cached = {"cache_dir": str(folders / "cache"), "local_files_only": True}
    models = [
        (pair("host", "generator"), ("host", "generator")),
        (pair("host", "generators", generator_kwargs={"subfolder": "small"}), ("generators/small",)),
        (pair("lab/host", "generator", host_kwargs=cached), (snapshot,)),
        (pair(AutoModelForCausalLM.from_pretrained("host"), "generator"), ("host",)),
    ]
    models[0][0].save_pretrained(folders / "attached")
    models.append(
        (
            SemCoTForCausalLM.from_pretrained(folders / "attached", host="hosts/host_tokenizer"),
            ("hosts/host_tokenizer",),
        )
    )
    (folders / "elsewhere").mkdir()
    monkeypatch.chdir(folders / "elsewhere")
    before = contents(folders)
    for model, places in models:
        for place in places:
            with pytest.raises(
                ValueError, match="is where the (host|generator) comes from, which would be overwritten"
            ):
                model.save_pretrained(folders / place)
            with pytest.raises(ValueError, match="output_dir=.* is where the"):
                check_run_folder(folders / place, model.part_sources())
    assert contents(folders) == before


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_links_point_to_is_not_written(folders, link):
    (folders / "linked").mkdir()
    for file in (folders / "host").iterdir():
        link(file, folders / "linked" / file.name)
    before = contents(folders / "host")
    model = pair(folders / "host", folders / "generator")
    model.save_pretrained(folders / "linked")
    assert contents(folders / "host") == before
    assert torch.equal(
        SemCoTForCausalLM.from_pretrained(folders / "linked").projection.weight, model.projection.weight
    )
