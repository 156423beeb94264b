"""The count of a training's operations."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from semcot_hf.training.operations import operation_counter, train


class Squares(torch.nn.Module):
    """A layer whose loss is a number; steps after `fails_at` are errors."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.layer, self.calls, self.fails_at = torch.nn.Linear(3, 4, bias=False), 0, fails_at

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("stopped here")
        return {"loss": self.layer(x).square().mean()}


def trainer_of(folder, module, **options):
    rows = [{"x": torch.full((3,), float(n))} for n in range(8)]
    given = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, **options}
    return Trainer(module, TrainingArguments(str(folder), save_strategy="no", **given), train_dataset=rows)


def test_all_steps_are_counted_and_told_with_rows_and_steps(tmp_path):
    with operation_counter() as counter:
        output = train(trainer_of(tmp_path, Squares(), num_train_epochs=3))
    # Forward and the gradient of the weights: two products of 2 x 3 x 4.
    assert output.metrics["total_flos"] == counter.get_total_flops() == 12 * 2 * 2 * (2 * 3 * 4)
    assert (output.metrics["train_samples"], output.metrics["train_steps"]) == (8, 12)


def test_a_compiled_model_is_not_counted(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, Squares(), max_steps=1)
    monkeypatch.setattr(trainer.args, "torch_compile", True)
    assert "total_flos" not in train(trainer).metrics


def test_counting_stops_with_a_step_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match="stopped here"):
        train(trainer_of(tmp_path, Squares(fails_at=2), max_steps=3))
    assert not torch.utils._python_dispatch._get_current_dispatch_mode()
