"""Trainers of transformers and TRL: those that call the model train it with its tokens, others are refused."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from transformers.utils.generic import find_labels
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from semcot_hf import SemCoTForCausalLM

# TRL 1.16 and peft 0.21 still use the names that transformers 5.23 replaced.
pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")
ROWS = [{"prompt": "Ann has three apples.", "completion": " Answer: 2"}] * 2
OPTIONS = {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}


ADAPTERS = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
PREFERENCES = [{"prompt": "Ann has three apples.", "chosen": " Answer: 2", "rejected": " Answer: 3"}] * 2
LABELLED = [{**row, "label": number == 0} for number, row in enumerate(ROWS)]
TRAINERS = {
    "SFT": (SFTTrainer, SFTConfig, ROWS, {}),
    "SFT of adapters": (SFTTrainer, SFTConfig, ROWS, {"peft_config": ADAPTERS}),
    "DPO": (DPOTrainer, DPOConfig, PREFERENCES, {"ref_model": None}),
    "DPO of adapters": (DPOTrainer, DPOConfig, PREFERENCES, {"peft_config": ADAPTERS}),
    "KTO": (KTOTrainer, KTOConfig, LABELLED, {"ref_model": None}),
    "GRPO": (
        GRPOTrainer,
        GRPOConfig,
        PREFERENCES,
        {"reward_funcs": lambda completions, **kwargs: [1.0] * len(completions)},
    ),
    "RLOO": (
        RLOOTrainer,
        RLOOConfig,
        PREFERENCES,
        {"reward_funcs": lambda completions, **kwargs: [1.0] * len(completions)},
    ),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_losses_from_a_backbones_states_are_refused(tiny_semcot, tiny_tokenizer, name, tmp_path):
    """When the trainer is made, before anything is computed."""
    trainer, config, rows, more = TRAINERS[name]
    options = {**OPTIONS, **({"num_generations": 2, "beta": 0.0} if "reward_funcs" in more else {})}
    if "ref_model" in more:
        more = {"ref_model": tiny_semcot(seed=5).float()}
    with pytest.raises(
        ValueError, match="trainer of TRL .*leave the implicit tokens out. .*SemCoTDistillationTrainer"
    ):
        trainer(
            model=tiny_semcot().float(),
            args=config(output_dir=str(tmp_path), per_device_train_batch_size=2, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer,
            **more,
        )


@pytest.mark.parametrize("name", ["DPO", "KTO"])
def test_a_saved_pair_is_refused_where_the_reference_is_loaded_by_its_name(
    tiny_semcot, tiny_tokenizer, name, tmp_path
):
    """A new pair has no name, and TRL cannot load it before it meets any code of ours."""
    trainer, config, rows, _ = TRAINERS[name]
    tiny_semcot().float().save_pretrained(tmp_path / "pair")
    for model, error, message in (
        (tiny_semcot().float(), OSError, "Repo id must use alphanumeric"),
        (
            SemCoTForCausalLM.from_pretrained(tmp_path / "pair"),
            ValueError,
            "trainer of TRL .*SemCoTDistillationTrainer",
        ),
    ):
        with pytest.raises(error, match=message):
            trainer(
                model=model,
                args=config(output_dir=str(tmp_path / "run"), per_device_train_batch_size=2, **OPTIONS),
                train_dataset=Dataset.from_list(rows),
                processing_class=tiny_tokenizer,
            )


def test_what_stands_for_a_backbone_is_no_model(tiny_semcot):
    with pytest.raises(ValueError, match="has no such backbone. TRL's trainers .*model.host.base_model"):
        tiny_semcot().base_model(torch.tensor([[10, 11]]))


def test_tags_of_others_are_added(tiny_semcot):
    model = tiny_semcot()
    model.add_model_tags("mine")
    assert model.model_tags == ["mine"]


def test_the_trainer_of_transformers_trains_through_forward(tiny_semcot, tmp_path):
    model = tiny_semcot().float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row = {"input_ids": [10, 11, 12, 13], "attention_mask": [1] * 4, "labels": [-100, -100, 12, 13]}
    options = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.1, **OPTIONS)
    rows = Dataset.from_list([row] * 4)
    trainer = Trainer(model, options, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    changed = {
        name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"generator", "projection", "thought_embedding"}
    # Trainer takes each argument of forward with "label" in its name for one that every row has.
    assert find_labels(SemCoTForCausalLM) == ["labels"]
    loss = model(**{name: torch.tensor([value]) for name, value in row.items()}).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("place", ["", "checkpoint-7"])
def test_the_trainer_of_transformers_writes_no_checkpoint_beside_the_host(tiny_lm, place, tmp_path):
    """It would end by overwriting the host, or delete it as one of its older checkpoints."""
    tiny_lm().save_pretrained(tmp_path / "run" / place)
    tiny_lm(hidden_size=16, seed=1).save_pretrained(tmp_path / "generator")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    model = SemCoTForCausalLM.from_host_generator_pretrained(tmp_path / "run" / place, tmp_path / "generator").float()
    row = {"input_ids": [10, 11, 12, 13], "attention_mask": [1] * 4, "labels": [-100, -100, 12, 13]}
    options = {**OPTIONS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = Trainer(
        model, TrainingArguments(output_dir=str(tmp_path / "run"), **options), train_dataset=Dataset.from_list([row])
    )
    with pytest.raises(ValueError, match="output_dir=.*run' (is where|holds) the host.*: choose another folder"):
        trainer.train()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    model.save_pretrained(tmp_path / "own" / "checkpoint-1")
    loaded = SemCoTForCausalLM.from_pretrained(tmp_path / "own" / "checkpoint-1")
    loaded.save_pretrained(tmp_path / "own" / "checkpoint-2")
