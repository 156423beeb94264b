"""Adapters of peft on host, generator or both: they train, save, reload and merge; nothing else moves."""

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, pipeline

from semcot_hf import SemCoTForCausalLM

ANSWER = [7, 8]
LORA = {"task_type": "CAUSAL_LM", "init_lora_weights": False}
TARGETS = {
    "host": r"host\..*(q_proj|v_proj)",
    "generator": r"generator\..*(q_proj|v_proj)",
    "both": r".*(q_proj|v_proj)",
}
INPUTS = {
    "input_ids": torch.tensor([[10, 11, 12, *ANSWER, 30, 31], [0, 13, 14, *ANSWER, 32, 33]]),
    "attention_mask": torch.tensor([[1] * 7, [0] + [1] * 6]),
    "labels": torch.tensor([[-100] * 5 + [30, 31], [-100] * 5 + [32, 33]]),
}
PROMPTS = {name: INPUTS[name][:, :5] for name in ("input_ids", "attention_mask")}


def train(model, steps=8):
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = model(**INPUTS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# peft 0.21 still reads the property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize("part", TARGETS)
def test_lora(tiny_semcot, part, tmp_path):
    base = tiny_semcot(answer_prompt_ids=ANSWER)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS[part], modules_to_save=["projection"])
    model = get_peft_model(base, config).train()
    adapted = [name for name, value in model.named_parameters() if value.requires_grad and "lora" in name]
    prefixes = {name.split("base_model.model.")[1].partition(".")[0] for name in adapted}
    assert prefixes == ({"host", "generator"} if part == "both" else {part})
    losses = train(model)
    assert losses[-1] < losses[0] - 0.5
    for name, value in model.named_parameters():
        if not value.requires_grad:
            original = name.removeprefix("base_model.model.").replace(".base_layer", "")
            original = original.replace("original_module.", "")
            assert torch.equal(value, before[original]), name

    model.eval()
    generated = model.generate(**PROMPTS, max_new_tokens=5)
    logits = model(**INPUTS).logits
    assert not torch.equal(logits, tiny_semcot(answer_prompt_ids=ANSWER)(**INPUTS).logits)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_semcot(answer_prompt_ids=ANSWER), tmp_path).eval()
    torch.testing.assert_close(loaded(**INPUTS).logits, logits, atol=1e-9, rtol=0)
    assert torch.equal(loaded.generate(**PROMPTS, max_new_tokens=5), generated)

    merged = loaded.merge_and_unload()
    assert type(merged) is type(base) and not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(**INPUTS).logits, logits, atol=1e-9, rtol=0)
    merged.save_pretrained(tmp_path / "merged", include_host=True)
    again = type(merged).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(**INPUTS).logits, logits, atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def folders(tiny_lm, tiny_tokenizer, tmp_path_factory):
    """An attached checkpoint and, by part, a folder of adapters for it with the logits of the adapted model."""
    root = tmp_path_factory.mktemp("adapters")
    # Its experts are saved under other names and in another form than they have in the model.
    moe = {"num_local_experts": 2, "num_experts_per_tok": 1}
    tiny_lm("mixtral", dtype=torch.float32, **moe).save_pretrained(root / "host")
    tiny_lm(hidden_size=16, seed=1, dtype=torch.float32).save_pretrained(root / "generator")
    SemCoTForCausalLM.from_host_generator_pretrained(
        root / "host", root / "generator", num_implicit_tokens=3, answer_prompt_ids=ANSWER
    ).save_pretrained(root / "base")
    tiny_tokenizer.save_pretrained(root / "base")
    logits = {}
    for part, targets in TARGETS.items():
        config = LoraConfig(r=4, target_modules=targets, modules_to_save=["projection"], **LORA)
        model = get_peft_model(SemCoTForCausalLM.from_pretrained(root / "base"), config).eval()
        with torch.no_grad():
            model.base_model.model.projection.modules_to_save["default"].weight.add_(0.1)
        model.save_pretrained(root / f"for-{part}")
        logits[part] = model(**INPUTS).logits
    return root, logits


LOADERS = {
    "class": SemCoTForCausalLM.from_pretrained,
    "auto": AutoModelForCausalLM.from_pretrained,
    "pipeline": lambda folder: pipeline("text-generation", model=str(folder)).model,
    "peft": AutoPeftModelForCausalLM.from_pretrained,
}


@pytest.mark.parametrize("part", TARGETS)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_folder_of_adapters_is_a_model(folders, part, loader):
    root, logits = folders
    torch.testing.assert_close(
        LOADERS[loader](root / f"for-{part}")(**INPUTS).logits, logits[part], rtol=1e-5, atol=1e-5
    )


def test_a_folder_of_a_hosts_adapters_is_a_host_for_a_checkpoint(folders, tiny_semcot, tmp_path):
    root, _ = folders
    host = get_peft_model(
        AutoModelForCausalLM.from_pretrained(root / "host"), LoraConfig(target_modules=["q_proj"], **LORA)
    )
    host.save_pretrained(tmp_path / "adapters")
    logits = SemCoTForCausalLM.from_pretrained(root / "base", host=host)(**INPUTS).logits
    model = SemCoTForCausalLM.from_pretrained(root / "base", host=tmp_path / "adapters")
    assert torch.equal(model(**INPUTS).logits, logits)
    model.save_pretrained(tmp_path / "saved")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.config.includes_host
    torch.testing.assert_close(loaded(**INPUTS).logits, logits, rtol=1e-4, atol=1e-4)


def test_a_model_with_loaded_adapters_is_saved_merged(folders, tmp_path):
    root, logits = folders
    for part in TARGETS:
        model, info = SemCoTForCausalLM.from_pretrained(root / f"for-{part}", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with pytest.raises(ValueError, match="save_directory=.* holds adapters of peft, which every loader would"):
            model.save_pretrained(root / f"for-{part}")
        model.save_pretrained(tmp_path / part)
        loaded, info = SemCoTForCausalLM.from_pretrained(tmp_path / part, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert loaded.config.includes_host is (part != "generator")
        torch.testing.assert_close(loaded(**INPUTS).logits, logits[part], rtol=1e-4, atol=1e-4)


def test_adapters_beside_a_checkpoint_or_below_a_folder(folders, tmp_path):
    root, logits = folders
    shutil.copytree(root / "base", tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(root / "for-host" / name, tmp_path / "both")
    shutil.copytree(root / "for-host", tmp_path / "runs" / "best")
    for path, options in (("both", {}), ("runs", {"subfolder": "best"})):
        model = SemCoTForCausalLM.from_pretrained(tmp_path / path, **options)
        torch.testing.assert_close(model(**INPUTS).logits, logits["host"], rtol=1e-5, atol=1e-5)


def test_folders_that_are_no_checkpoint(folders, tiny_semcot, tmp_path, monkeypatch):
    root, _ = folders
    get_peft_model(tiny_semcot(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match="nameless holds adapters that do not name their base .* model.load_adapter"):
        SemCoTForCausalLM.from_pretrained(tmp_path / "nameless")
    with pytest.raises(OSError, match="has no config.json that names host and generator: pass the id or folder"):
        SemCoTForCausalLM.from_pretrained(tmp_path)
    monkeypatch.setattr(f"{SemCoTForCausalLM.__module__.rpartition('.')[0]}.sources_semcot.is_peft_available", bool)
    with pytest.raises(ImportError, match="holds adapters of peft, which is not installed: pip install peft"):
        SemCoTForCausalLM.from_pretrained(root / "for-both")
