"""LoRA adapters of peft on host, generator or both: they train, save, reload and merge; nothing else moves."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

ANSWER = [7, 8]
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
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
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
