"""The count of a training's operations."""

import json

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from semcot_hf.training.operations import OperationCounter, operation_counter, train


class Squares(torch.nn.Module):
    """A layer whose loss is a number. The first call fills a cache; the call `fails_at` is an error."""

    def __init__(self, fails_at=None, error=RuntimeError):
        super().__init__()
        self.layer, self.calls, self.fails_at, self.error = torch.nn.Linear(3, 4, bias=False), 0, fails_at, error

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.error("CUDA out of memory.")
        if self.calls == 1:
            torch.ones(10, 10) @ torch.ones(10, 10)
        return {"loss": self.layer(x).square().mean()}


# Forward and the gradient of the weights: two products of 2 x 3 x 4.
STEP = 2 * 2 * (2 * 3 * 4)
CACHE = 2 * 10**3


def trainer_of(folder, module, **options):
    rows = [{"x": torch.full((3,), float(n))} for n in range(8)]
    given = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, **options}
    given = {"save_strategy": "no", **given}
    return Trainer(module, TrainingArguments(str(folder), **given), train_dataset=rows)


@pytest.mark.parametrize("steps", [3, 20, 50])
def test_the_estimate_is_the_count_of_all_steps(steps, tmp_path):
    with operation_counter() as counter:
        output = train(trainer_of(tmp_path, Squares(), max_steps=steps), count_operations=True)
    assert output.metrics["total_flos"] == counter.get_total_flops() == CACHE + steps * STEP
    assert (output.metrics["train_samples"], output.metrics["train_steps"]) == (8, steps)
    assert json.loads((tmp_path / "train_results.json").read_text()) == output.metrics


def test_nothing_is_counted_without_asking_nor_of_a_compiled_model(tmp_path, monkeypatch):
    for count in (False, True):
        trainer = trainer_of(tmp_path, Squares(), max_steps=1)
        monkeypatch.setattr(trainer.args, "torch_compile", count)
        metrics = train(trainer, count_operations=count).metrics
        assert "total_flos" not in metrics and metrics["train_steps"] == 1


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_what_was_made_is_counted_of_a_training_that_stops_and_of_one_that_is_resumed(tmp_path):
    trainer = trainer_of(tmp_path, Squares(), max_steps=12)
    trainer.add_callback(StopAt())
    assert train(trainer, count_operations=True).metrics["total_flos"] == CACHE + 4 * STEP
    # Stopped before the first sample, of which nothing follows.
    trainer = trainer_of(tmp_path, Squares(), max_steps=1000)
    trainer.add_callback(StopAt())
    assert "total_flos" not in train(trainer, count_operations=True).metrics
    # The step from which a training goes on fills its cache again.
    options = {"max_steps": 120, "save_strategy": "steps", "save_steps": 60}
    train(trainer_of(tmp_path, Squares(), **options), count_operations=True)
    again = trainer_of(tmp_path, Squares(), **options)
    metrics = train(again, str(tmp_path / "checkpoint-60"), count_operations=True).metrics
    assert (metrics["resumed_at_step"], metrics["train_steps"]) == (60, 120)
    assert metrics["total_flos"] == CACHE + 60 * STEP
    assert not any(isinstance(one, OperationCounter) for one in again.callback_handler.callbacks)


def test_counting_stops_with_a_step_that_fails_and_old_results_are_gone(tmp_path):
    (tmp_path / "train_results.json").write_text("{}")
    with pytest.raises(RuntimeError, match="out of memory"):
        train(trainer_of(tmp_path, Squares(fails_at=1), max_steps=3), count_operations=True)
    assert not torch.utils._python_dispatch._get_current_dispatch_mode()
    assert not (tmp_path / "train_results.json").exists()


def test_a_batch_that_is_halved_is_counted_once(tmp_path):
    module = Squares(fails_at=1, error=torch.cuda.OutOfMemoryError)
    trainer = trainer_of(tmp_path, module, max_steps=2, auto_find_batch_size=True)
    assert train(trainer, count_operations=True).metrics["total_flos"] == 2 * STEP // 2
    assert not torch.utils._python_dispatch._get_current_dispatch_mode()


def test_products_of_groups_are_counted_by_their_rows():
    a, b = torch.ones(6, 8, dtype=torch.bfloat16), torch.ones(3, 8, 16, dtype=torch.bfloat16)
    with operation_counter() as counter:
        torch._grouped_mm(a, b, offs=torch.tensor([1, 4, 6], dtype=torch.int32))
    assert counter.get_total_flops() == 2 * 6 * 8 * 16
