"""The training aid of `examples/pretrain_task_models.py`, and the script itself for the task that needs it."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from semcot_hf.bench.tasks.pretraining import fresh_model
from semcot_hf.demo import HOST_PATH

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def aid(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("earlier_tokens")


def test_earlier_tokens_stand_in_for_the_first_layers_attention_token_by_token_and_leave_nothing(aid):
    torch.manual_seed(0)
    model = fresh_model(AutoTokenizer.from_pretrained(HOST_PATH), 2, 32).eval()
    state, ids = TrainerState(max_steps=100), torch.randint(10, 60, (2, 30))
    first = model.model.layers[0]
    plain, given, seen = model.get_input_embeddings()(ids), aid.EarlierTokens((0.2, 0.6)), {}
    logits = model(ids).logits
    given.on_train_begin(None, state, None, model=model)
    # What the layer reads, and what its attention has added to that.
    first.register_forward_pre_hook(lambda _, args, kwargs: seen.update(read=args[0]), with_kwargs=True)
    first.self_attn.register_forward_hook(lambda *call: seen.update(attention=call[-1][0]))

    def share_at(step):
        state.global_step = step
        given.on_step_begin(None, state, None)
        model(ids)
        told = (seen["read"] != plain).any(-1)
        for row in range(2):
            for place in range(1, 30):
                earlier = [
                    plain[row, place - distance] * signs
                    for distance, signs in zip(aid.DISTANCES, given.signs, strict=True)
                    if place >= distance
                ]
                whole = plain[row, place] + told[row, place] * torch.stack(earlier).sum(0)
                torch.testing.assert_close(seen["read"][row, place], whole)
        assert torch.equal((seen["attention"] == 0).all(-1)[:, 1:], told[:, 1:])
        return told[:, 1:].float().mean().item()

    assert given.signs.abs().eq(1).all() and len(given.signs.unique(dim=0)) == len(aid.DISTANCES)
    model.train()
    assert [share_at(step) for step in (0, 20, 60, 99)] == [1, 1, 0, 0]
    assert 0.3 < share_at(40) < 0.7
    model.eval()
    assert share_at(0) == 0
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=0)
    model.train()
    share_at(0)
    given.on_train_end(None, state, None)
    assert share_at(0) == 0


def test_the_script_makes_a_pair_with_the_aid_where_the_task_needs_it(aid, tmp_path, monkeypatch, capsys):
    begun = []

    class Noted(aid.EarlierTokens):
        def on_train_begin(self, args, state, control, **kwargs):
            begun.append((self.span, self.seed))
            super().on_train_begin(args, state, control, **kwargs)

    script = importlib.import_module("pretrain_task_models")
    monkeypatch.setattr(script, "EarlierTokens", Noted)
    flags = ["--steps_factor", "0.001", "--eval_samples", "2", "--seed", "3", "--output_dir", str(tmp_path)]
    script.main(["--task", "graph", *flags])
    # Once, for the generator.
    assert begun == [((0.2, 0.6), 3)]
    assert capsys.readouterr().out.count('"training_seconds"') == 2
    host, generator = (AutoModelForCausalLM.from_pretrained(tmp_path / part) for part in ("host", "generator"))
    assert 3 * generator.num_parameters() <= host.num_parameters()
    assert json.loads((tmp_path / "host/figures.json").read_text())["no_cot"]["n"] == 2
