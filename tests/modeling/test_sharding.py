"""Weights of which a process holds a part: FSDP2 on a mesh of one process, DeepSpeed ZeRO-3 by a stand-in for it."""

import json
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import AutoModelForCausalLM

from semcot_hf import SemCoTForCausalLM

pair = SemCoTForCausalLM.from_host_generator_pretrained
CHANGED = "host.model.layers.0.mlp.up_proj.weight"
IDS = torch.tensor([[10, 11, 12, 13]])


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    root = tmp_path_factory.mktemp("sharding")
    tiny_lm(dtype=torch.float32).save_pretrained(root / "host")
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    pair(root / "host", root / "generator").save_pretrained(root / "semcot")
    return root


@pytest.fixture(scope="module")
def sharded():
    """Function (model) -> the model with its layers and itself sharded by FSDP2."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))

    def shard(model):
        for layer in [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]:
            fully_shard(layer, mesh=mesh)
        return model if isinstance(model, FSDPModule) else fully_shard(model, mesh=mesh)

    yield shard
    distributed.destroy_process_group()


def partitioned(model):
    """Empty the weights of a model as ZeRO-3 does, which notes their shapes."""
    for number, value in enumerate(model.parameters()):
        value.ds_id, value.ds_shape, value.data = number, value.shape, torch.empty(0, dtype=value.dtype)
    return model


@pytest.fixture
def zero3(monkeypatch):
    """Context in which transformers takes this process for one of ZeRO-3, whose partitioning waits for the others."""

    def partition(**_):
        pytest.fail("all processes are needed")

    @contextmanager
    def enabled():
        with monkeypatch.context() as patch:
            deepspeed = SimpleNamespace(zero=SimpleNamespace(Init=partition), __spec__=ModuleSpec("deepspeed", None))
            patch.setitem(sys.modules, "deepspeed", deepspeed)
            patch.setattr("transformers.modeling_utils.is_deepspeed_zero3_enabled", lambda: True)
            patch.setattr("transformers.modeling_utils.deepspeed_config", dict)
            yield

    return enabled


def logits(folder):
    with torch.no_grad():
        return SemCoTForCausalLM.from_pretrained(folder)(IDS, num_implicit_tokens=2).logits


def test_a_host_with_sharded_layers_is_attached(folders, sharded):
    host = AutoModelForCausalLM.from_pretrained(folders / "host")
    sharded(host.model.layers[0])
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot", host=host)
    with torch.no_grad():
        assert torch.equal(model(IDS, num_implicit_tokens=2).logits, logits(folders / "semcot"))


@pytest.mark.parametrize("include_host", [None, True])
def test_what_fsdp_gathers_is_saved(folders, sharded, include_host, tmp_path):
    model = sharded(SemCoTForCausalLM.from_pretrained(folders / "semcot"))
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model.save_pretrained(tmp_path, state_dict=gathered, include_host=include_host)
    saved, plain = (
        (json.loads((folder / "config.json").read_text()), sorted(path.name for path in folder.glob("*.py")))
        for folder in (tmp_path, folders / "semcot")
    )
    # FSDP2 puts a class of torch's own before the model's.
    assert saved[0]["auto_map"] == plain[0]["auto_map"] and saved[1] == plain[1]
    assert saved[0]["architectures"] == ["SemCoTForCausalLM"] and isinstance(model, FSDPModule)
    assert saved[0]["includes_host"] is bool(include_host)
    assert torch.equal(logits(tmp_path), logits(folders / "semcot"))


@pytest.mark.parametrize("how", ["fsdp2", "zero3"])
def test_a_gathered_host_that_was_changed_is_not_dropped(folders, sharded, how, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    gathered = {name: value.clone() for name, value in model.state_dict().items()}
    gathered[CHANGED][0, 0] += 1
    (sharded if how == "fsdp2" else partitioned)(model)
    with pytest.raises(ValueError, match="state_dict has other values of the host than .*: pass include_host=True"):
        model.save_pretrained(tmp_path / "saved", state_dict=gathered)
    assert not (tmp_path / "saved").exists()
    model.save_pretrained(tmp_path / "saved", state_dict=gathered, include_host=True)
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.state_dict()[CHANGED], gathered[CHANGED])


@pytest.mark.parametrize("include_host", [None, True])
def test_what_zero3_gathers_is_saved_by_one_process_alone(folders, zero3, include_host, tmp_path):
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    gathered = {name: value.clone() for name, value in model.state_dict().items()}
    with zero3():
        partitioned(model).save_pretrained(tmp_path, state_dict=gathered, include_host=include_host)
    assert torch.equal(logits(tmp_path), logits(folders / "semcot"))


@pytest.mark.parametrize("part", ["host", "step decoder"])
def test_a_part_that_zero3_holds_is_checked_by_its_whole_shapes(folders, part):
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    attach = model.attach_host if part == "host" else model.add_step_decoder
    attach(partitioned(AutoModelForCausalLM.from_pretrained(folders / "host")))
    wider = AutoModelForCausalLM.from_pretrained(folders / "host")
    wider.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(50, 32))
    with pytest.raises(ValueError, match=rf"{part} is a .* of shape \(50, 32\), but \(48, 32\) by its configuration"):
        attach(partitioned(wider))


def test_the_weights_of_one_process_alone_are_not_saved(folders, sharded, tmp_path):
    for shard in (partitioned, sharded):
        model = shard(SemCoTForCausalLM.from_pretrained(folders / "semcot"))
        with pytest.raises(ValueError, match="weights of which this process holds a part .*: pass state_dict="):
            model.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_a_configuration_without_weights_is_saved_for_deepspeed(folders, tmp_path):
    """transformers' `Trainer` saves no weights if DeepSpeed, which writes them itself, gathers none."""
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    with pytest.raises(ValueError, match="The model lacks 23 weights"):
        model.save_pretrained(tmp_path, state_dict={})
    partitioned(model).save_pretrained(tmp_path, state_dict={})
    assert json.loads((tmp_path / "config.json").read_text()).get("weights_checksum") is None


def test_weights_that_zero3_holds_are_not_compared_with_their_checksum(folders):
    model = SemCoTForCausalLM.from_pretrained(folders / "semcot")
    checksum = json.loads((folders / "semcot" / "config.json").read_text())["weights_checksum"]
    partitioned(model)._check_checksums("semcot", checksum, None)


@pytest.mark.parametrize("part", ["host", "generator"])
def test_a_pair_of_parts_that_zero3_holds_is_refused(folders, part):
    """Its projection and <thought> are made from word embeddings, which are not there."""
    parts = {name: AutoModelForCausalLM.from_pretrained(folders / name) for name in ("host", "generator")}
    partitioned(parts[part])
    with pytest.raises(ValueError, match=f"{part} has weights .*ZeRO-3.*: make the pair before TrainingArguments"):
        pair(**parts)


@pytest.mark.parametrize("how", ["fsdp2", "zero3"])
def test_a_host_object_is_compared_with_what_its_name_leads_to(folders, sharded, zero3, how, tmp_path):
    """ZeRO-3 would load it on all processes, of which one saves: the host is included."""
    hosts = [AutoModelForCausalLM.from_pretrained(folders / "host") for _ in range(2)]
    hosts[1].model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    for host in hosts:
        model = pair(host, folders / "generator")
        gathered = {name: value.clone() for name, value in model.state_dict().items()}
        if how == "fsdp2":
            sharded(model).save_pretrained(tmp_path, state_dict=gathered)
        else:
            with zero3():
                partitioned(model).save_pretrained(tmp_path, state_dict=gathered)
        loaded = SemCoTForCausalLM.from_pretrained(tmp_path)
        assert loaded.config.includes_host is (how == "zero3" or host is hosts[1])
        assert torch.equal(loaded.state_dict()[CHANGED], gathered[CHANGED])
