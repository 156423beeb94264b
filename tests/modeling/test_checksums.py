"""Damaged files of checkpoints, and files of other checkpoints: noticed at loading, and nothing else is refused."""

import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from semcot_hf import SemCoTConfig, SemCoTForCausalLM

# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LAYOUTS = ("attached", "whole")


@pytest.fixture(scope="module")
def folders(tiny_lm, tmp_path_factory):
    """A checkpoint in both layouts, its host in bfloat16 and its generator in float32 with odd sizes; and another."""
    root = tmp_path_factory.mktemp("checksums")
    host = tiny_lm("llama", dtype=torch.bfloat16, tie_word_embeddings=True, vocab_size=321)
    host.save_pretrained(root / "host")
    for seed, name in enumerate(("", "other-")):
        generator = tiny_lm("gpt2", hidden_size=12, seed=seed, dtype=torch.float32, n_head=2, vocab_size=321)
        generator.save_pretrained(root / f"{name}generator")
        model = SemCoTForCausalLM.from_host_generator_pretrained(root / "host", root / f"{name}generator")
        model.save_pretrained(root / f"{name}attached")
        model.save_pretrained(root / f"{name}whole", include_host=True, max_shard_size="60KB")
    return root


@pytest.fixture
def damaged(folders, tmp_path):
    """Function (layout) -> a copy of the checkpoint to be damaged."""
    return lambda layout: shutil.copytree(folders / layout, tmp_path / layout)


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_whole_files_load_in_every_dtype(folders, layout, dtype):
    assert json.loads((folders / layout / "config.json").read_text())["weights_checksum"]
    model = SemCoTForCausalLM.from_pretrained(folders / layout, dtype=dtype)
    assert model.config.weights_checksum is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [-1, -1001, -20001])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_a_flipped_bit_of_the_weights_is_an_error(damaged, layout, place, dtype):
    folder = damaged(layout)
    flip(sorted(folder.glob("model*.safetensors"))[0], place)
    with pytest.raises(ValueError, match=rf"weights.*{layout}.*damaged.*weights_checksum=None"):
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    SemCoTForCausalLM.from_pretrained(folder, dtype=dtype, weights_checksum=None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bit_that_a_cast_keeps_is_noticed_through_it(damaged, layout, dtype):
    folder = damaged(layout)
    flip(sorted(folder.glob("model*.safetensors"))[-1], -1, bit=7)
    with pytest.raises(ValueError, match="weights.*damaged"):
        SemCoTForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_and_configuration_of_two_checkpoints_do_not_go_together(damaged, folders, layout):
    folder = damaged(layout)
    for path in (folders / f"other-{layout}").glob("model*"):
        shutil.copy(path, folder)
    with pytest.raises(ValueError, match="is another checkpoint's"):
        SemCoTForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_off_file_of_weights_is_named_with_a_remedy(damaged, folders, layout):
    folder = damaged(layout)
    path = sorted(folder.glob("model*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=rf"checkpoint '.*{layout}': a file of weights.*copy or download"):
        SemCoTForCausalLM.from_pretrained(folder)


def test_a_cut_off_host_is_named(damaged, folders, tmp_path):
    folder, host = damaged("attached"), shutil.copytree(folders / "host", tmp_path / "host")
    (host / "model.safetensors").write_bytes((host / "model.safetensors").read_bytes()[:-100])
    for load in (
        lambda: SemCoTForCausalLM.from_pretrained(folder, host=host),
        lambda: SemCoTForCausalLM.from_host_generator_pretrained(host, folders / "generator"),
    ):
        with pytest.raises(OSError, match="host '.*host': a file of weights"):
            load()


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_edited_configuration_is_an_error_unless_its_checksum_is_deleted(damaged):
    folder = damaged("attached")
    edit(folder, "config.json", num_implicit_tokens=4)
    for load in (SemCoTForCausalLM, AutoModelForCausalLM, SemCoTConfig):
        with pytest.raises(ValueError, match="config.json.*attached.*delete its line config_checksum"):
            load.from_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    del content["config_checksum"]
    (folder / "config.json").write_text(json.dumps(content))
    assert SemCoTForCausalLM.from_pretrained(folder).config.num_implicit_tokens == 4


def test_the_host_may_be_moved_and_files_of_other_versions_load(damaged, folders, tmp_path):
    folder, host = damaged("attached"), shutil.copytree(folders / "host", tmp_path / "moved")
    edit(folder, "config.json", host_name_or_path=str(host), transformers_version="5.0.0")
    assert SemCoTForCausalLM.from_pretrained(folder).config.host_name_or_path == str(host)


def test_an_edited_generation_configuration_is_loaded_with_a_warning(damaged, caplog):
    folder = damaged("attached")
    with caplog.at_level(logging.WARNING):
        SemCoTForCausalLM.from_pretrained(folder)
        assert "generation_config.json" not in caplog.text
        edit(folder, "generation_config.json", temperature=0.5)
        assert SemCoTForCausalLM.from_pretrained(folder).generation_config.temperature == 0.5
    assert "generation_config.json of the checkpoint" in caplog.text


def test_checkpoints_without_checksums_load_as_before(damaged):
    folder = damaged("whole")
    content = json.loads((folder / "config.json").read_text())
    for name in ("config_checksum", "weights_checksum", "generation_checksum"):
        del content[name]
    (folder / "config.json").write_text(json.dumps(content))
    flip(sorted(folder.glob("model*.safetensors"))[0], -1)
    SemCoTForCausalLM.from_pretrained(folder)


def test_a_configuration_saved_by_itself_promises_no_weights(folders, tmp_path):
    SemCoTForCausalLM.from_pretrained(folders / "attached").config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.get("weights_checksum") is None and SemCoTConfig.from_pretrained(tmp_path)


def test_adapters_on_a_checkpoint_do_not_count(folders, tmp_path):
    lora = LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False)
    get_peft_model(SemCoTForCausalLM.from_pretrained(folders / "attached"), lora).save_pretrained(tmp_path / "adapter")
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    adapted.save_pretrained(tmp_path / "merged")
    SemCoTForCausalLM.from_pretrained(tmp_path / "merged")


def test_a_configuration_read_from_its_file(tiny_semcot, tmp_path):
    tiny_semcot().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    read = SemCoTConfig.from_json_file(path)
    assert read.to_dict() == SemCoTConfig.from_pretrained(tmp_path).to_dict()
    assert not hasattr(read, "config_checksum")
    path.write_text(path.read_text().replace('"num_implicit_tokens": 3', '"num_implicit_tokens": 4'))
    with pytest.raises(ValueError, match="config.json.*is not as it was saved"):
        SemCoTConfig.from_json_file(path)
