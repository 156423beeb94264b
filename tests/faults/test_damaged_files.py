"""Files of checkpoints cut off, with a flipped bit, or from another checkpoint: told at loading, or without effect."""

import logging
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.cli.arguments import load_model
from semcot_hf.inference.prompting import with_answer_prompt
from semcot_hf.modeling.checksums_semcot import tokenizer_checksum
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.storage import config_digest, weights_digest

CASES = int(os.environ.get("SEMCOT_FAULTS_FILES", 50))
LAYOUTS = ("attached", "whole", "two-tokenizers")
# Files with weights are drawn as often as all others together.
OTHERS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def checkpoints(tiny_lm, tiny_tokenizer, char_tokenizer, tmp_path_factory):
    """Folder with two checkpoints, of like sizes, in each layout, as the trainer saves them."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiny_lm(dtype=torch.float32).save_pretrained(root / "host")
    for seed in (1, 2):
        tiny_lm(hidden_size=16, seed=seed, dtype=torch.float32).save_pretrained(root / "generator")
        for layout in LAYOUTS:
            torch.manual_seed(seed)
            model = SemCoTForCausalLM.from_host_generator_pretrained(
                root / "host", root / "generator", num_implicit_tokens=seed + 1
            )
            if layout == "two-tokenizers":
                model.config.separate_generator_tokenizer = True
                model.host_tokenizer, model.generator_tokenizer = tiny_tokenizer, char_tokenizer
            tokenizer = with_answer_prompt(tiny_tokenizer, " Answer:" if seed == 1 else "\nAnswer:")
            model.generation_config.do_sample, model.generation_config.temperature = True, 0.5 + seed / 10
            model.config.tokenizer_checksum = tokenizer_checksum(tokenizer)
            model.config.escalation = Escalation(0.3 * seed, max_reasoning_tokens=seed).to_dict()
            model.save_pretrained(root / f"{layout}-{seed}", include_host=layout == "whole")
            tokenizer.save_pretrained(root / f"{layout}-{seed}")
    return root


def content(folder):
    """Load a checkpoint as the commands do; return what it holds."""
    model, tokenizer = load_model(SimpleNamespace(model=str(folder), dtype="auto", trust_remote_code=False))
    own = [part and tokenizer_checksum(part) for part in (model.host_tokenizer, model.generator_tokenizer)]
    digests = [weights_digest(model, None), config_digest(model), tokenizer_checksum(tokenizer)]
    return [*digests, *own, type(AutoModelForCausalLM.from_pretrained(folder))]


def damage(rng: random.Random, folder: Path, other: Path) -> tuple[Path, str]:
    """Damage a file of a checkpoint; return it and how."""
    names = [name for name in OTHERS if (folder / name).exists()]
    names += sorted(str(path.relative_to(folder)) for path in folder.glob("*_tokenizer/*"))
    path = folder / ("model.safetensors" if rng.random() < 0.5 else rng.choice(names))
    return path, damage_file(rng, path, other / path.relative_to(folder))


def damage_file(rng: random.Random, path: Path, other: Path) -> str:
    """Damage a file; return how."""
    whole = path.read_bytes()
    way = rng.choice(["cut off", "flipped", "flipped", "mixed up"])
    if way == "mixed up":
        shutil.copy(other, path)
    elif way == "cut off":
        path.write_bytes(whole[: rng.randrange(len(whole))])
    else:
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
    return way


@pytest.mark.timeout(1800)
def test_damaged_files_are_told_or_change_nothing(checkpoints, tmp_path, caplog):
    expected = {layout: content(checkpoints / f"{layout}-1") for layout in LAYOUTS}
    outcomes: Counter[str] = Counter()
    problems = []
    for seed in range(CASES):
        rng = random.Random(seed)
        layout = rng.choice(LAYOUTS)
        folder = shutil.copytree(checkpoints / f"{layout}-1", tmp_path / f"{layout}-1")
        path, way = damage(rng, folder, checkpoints / f"{layout}-2")
        caplog.clear()
        about = f"seed {seed}: {layout} {path.relative_to(folder)} {way}"
        with caplog.at_level(logging.WARNING):
            try:
                found = content(folder)
            except (OSError, ValueError) as error:
                outcome = "refused"
                if not any(word in str(error) for word in (path.name, path.stem, str(folder), "*.safetensors")):
                    problems.append(f"{about}: the error names no file: {error!r}")
            except Exception as error:
                # tokenizers raises plain Exceptions.
                outcome = "refused by another library"
                if path.suffix == ".safetensors" or path.name == "config.json":
                    problems.append(f"{about}: {error!r}")
            else:
                told = [
                    text for text in caplog.messages if "not as it was saved" in text or "not the one that" in text
                ]
                same = found == expected[layout]
                outcome = "warned" if told else "without effect" if same else "silent"
                if outcome == "silent":
                    problems.append(f"{about}: silent")
        outcomes[f"{path.name}: {outcome}"] += 1
        if log := os.environ.get("SEMCOT_FAULTS_LOG"):
            with open(log, "a") as file:
                file.write(f"{about}: {outcome}\n")
        shutil.rmtree(folder)
    print(outcomes)
    assert not problems, "\n".join(problems)


def test_the_checkpoints_themselves_are_whole(checkpoints, caplog):
    with caplog.at_level(logging.WARNING):
        for folder in checkpoints.glob("*-[12]"):
            content(folder)
            AutoTokenizer.from_pretrained(folder)
    assert not [text for text in caplog.messages if "not as it was saved" in text or "not the one that" in text]


# peft 0.21 still reads the property that transformers 5.23 renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_adapters_that_are_cut_off_are_refused(checkpoints, tmp_path, name):
    """Their folder is peft's, without checksums: a flipped bit of a number is not noticed."""
    model = SemCoTForCausalLM.from_pretrained(checkpoints / "attached-1")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapters")
    whole = (tmp_path / "adapters" / name).read_bytes()
    for seed in range(4):
        (tmp_path / "adapters" / name).write_bytes(whole[: random.Random(seed).randrange(len(whole))])
        # AutoModelForCausalLM reads the configuration of adapters itself.
        for factory in (SemCoTForCausalLM, AutoModelForCausalLM)[: 1 if name == "adapter_config.json" else 2]:
            with pytest.raises((OSError, ValueError), match=f"{tmp_path}/adapters"):
                factory.from_pretrained(tmp_path / "adapters")
