"""Trainers of transformers and TRL: those that call the model train it with its tokens, others are refused."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

# TRL 1.16 and peft 0.21 still use the names that transformers 5.23 replaced.
pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")
ROWS = [{"prompt": "Ann has three apples.", "completion": " Answer: 2"}] * 2
OPTIONS = {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}


@pytest.mark.parametrize("adapters", [None, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")])
def test_losses_from_a_backbones_states_are_refused(tiny_semcot, tiny_tokenizer, adapters, tmp_path):
    trainer = SFTTrainer(
        tiny_semcot().float(),
        SFTConfig(output_dir=str(tmp_path), **OPTIONS),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer,
        peft_config=adapters,
    )
    with pytest.raises(ValueError, match="SFTTrainer.* leave the implicit tokens out. .*SemCoTDistillationTrainer"):
        trainer.train()


def test_the_trainer_of_transformers_trains_through_forward(tiny_semcot, tmp_path):
    model = tiny_semcot().float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row = {"input_ids": [10, 11, 12, 13], "attention_mask": [1] * 4, "labels": [-100, -100, 12, 13]}
    options = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.1, **OPTIONS)
    Trainer(model, options, train_dataset=Dataset.from_list([row] * 4)).train()
    changed = {
        name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"generator", "projection", "thought_embedding"}
