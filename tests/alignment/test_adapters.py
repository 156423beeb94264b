"""Stage 1 with adapters: they and the linear layer train alone, and what is saved is a plain encoder."""

import pytest
import torch
from alignment_models import Snapshots, config, make_host, snapshot
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from semcot_hf.alignment.encoder import build_alignment_encoder, trained_part
from semcot_hf.alignment.trainer import SemCoTAlignmentTrainer
from semcot_hf.training.adapters import ADAPTERS_NAME, add_adapters, merged_adapters

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

TARGETS = ["q_proj", "down_proj"]
LORA = dict(r=4, lora_alpha=8, target_modules=TARGETS, lora_dropout=0.1)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


def make_trainer(tokenizer, rows, folder, lora=None, callbacks=(), **options):
    """The layers 1 and 2 of 3 are the encoder's; four steps train the linear layer, four the adapters."""
    defaults = dict(max_steps=8, head_warmup=0.5, per_device_train_batch_size=8, eval_strategy="no")
    return SemCoTAlignmentTrainer(
        make_host(tokenizer),
        config(folder, **{**defaults, **options}),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=LoraConfig(**{**LORA, **(lora or {})}),
    )


@pytest.fixture(scope="module")
def run(tokenizer, rows, tmp_path_factory):
    """A run with checkpoints: its trainer, the weights at the start and after each step, and its folder."""
    folder, snapshots = tmp_path_factory.mktemp("adapters"), Snapshots()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        options = dict(save_strategy="steps", save_steps=2, save_total_limit=None)
        trainer = make_trainer(tokenizer, rows, folder, callbacks=[snapshots], **options)
        start = snapshot(trainer.model)
        trainer.train()
    return trainer, start, snapshots.after, folder


def test_adapters_and_the_linear_layer_train_alone(run):
    trainer, start, after, _ = run
    adapters = {name for name in start if "lora_" in name}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in adapters} == set(TARGETS)
    assert {name.split(".")[3] for name in adapters} == {"1", "2"}
    head = {name for name in start if name.startswith("2.linear.")}
    assert {name for name in start if not torch.equal(after[4][name], start[name])} == head
    assert {name for name in start if not torch.equal(after[8][name], after[4][name])} == head | adapters
    optimized = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    assert {name for name, value in trainer.model.named_parameters() if id(value) in optimized} == head | adapters


def test_saved_encoder_is_plain_and_gives_the_trained_vectors(run, rows, tmp_path):
    trainer, start, _, folder = run
    trainer.save_model(str(tmp_path))
    assert not [path.name for path in tmp_path.rglob("*adapter*")]
    loaded, texts = SentenceTransformer(str(tmp_path), device="cpu"), rows["reasoning"][:6]
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    expected = trainer.model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(loaded.encode(texts, convert_to_tensor=True), expected, rtol=0, atol=1e-5)
    untrained = snapshot(trainer.model)
    trainer.model.load_state_dict({**untrained, **{name: start[name] for name in start if "lora_" in name}})
    assert (trainer.model.encode(texts, convert_to_tensor=True) - expected).abs().max() > 1e-3
    trainer.model.load_state_dict(untrained)
    checkpoint = SentenceTransformer(str(folder / "checkpoint-8"), device="cpu")
    assert all(torch.equal(value, checkpoint.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert load_file(folder / "checkpoint-8" / ADAPTERS_NAME).keys() == {
        f"0.{name.removeprefix('0.')}" for name in start if "lora_" in name
    }


@pytest.mark.parametrize("step", [2, 6])
def test_a_resumed_run_ends_on_the_same_bits(run, tokenizer, rows, tmp_path, step):
    _, _, after, folder = run
    resumed = make_trainer(tokenizer, rows, tmp_path, save_strategy="no")
    set_seed(123)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert resumed.state.global_step == 8
    assert all(torch.equal(value, after[8][name]) for name, value in resumed.model.state_dict().items())


def test_the_best_checkpoint_is_the_one_that_is_kept(tokenizer, rows, tmp_path):
    options = dict(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer = make_trainer(tokenizer, rows, tmp_path, validation_fraction=0.3, **options)
    trainer.train()
    best = max(log["eval_mrr"] for log in trainer.state.log_history if "eval_mrr" in log)
    assert trainer.evaluate()["eval_mrr"] == pytest.approx(best)
    adapters = load_file(f"{trainer.state.best_model_checkpoint}/{ADAPTERS_NAME}")
    assert adapters and all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in adapters.items())


@pytest.mark.parametrize(
    ("family", "adapters"), [("opt", LoraConfig(target_modules="all-linear")), ("llama", IA3Config())]
)
def test_any_adapter_goes_into_the_encoders_layers_only(tiny_lm, tokenizer, family, adapters):
    """OPT has its layers deeper than others have them; IA3 finds its modules by itself."""
    changes = {"ffn_dim": 48, "word_embed_proj_dim": 32} if family == "opt" else {}
    host = tiny_lm(family, num_hidden_layers=4, **changes)
    encoder = build_alignment_encoder(host, tokenizer, first_layer=1, last_layer=2, embedding_dim=8)
    add_adapters(trained_part(encoder), adapters, "the linear layer")
    backbone = encoder[0].model
    trained = {name: value for name, value in backbone.named_parameters() if value.requires_grad}
    assert {name.split("layers.")[1].partition(".")[0] for name in trained} == {"1", "2"}
    assert all("lora_" in name or "ia3_" in name for name in trained)
    for value in trained.values():
        value.data += 0.1 * torch.randn_like(value)
    expected = encoder.encode(["Ann flips."], convert_to_tensor=True)
    with merged_adapters(encoder):
        assert not any("lora_" in name or "ia3_" in name for name in encoder.state_dict())
        torch.testing.assert_close(encoder.encode(["Ann flips."], convert_to_tensor=True), expected)
    assert torch.equal(encoder.encode(["Ann flips."], convert_to_tensor=True), expected)
    plain = build_alignment_encoder(host, tokenizer, first_layer=1, last_layer=2, embedding_dim=8)[0].model
    values = backbone.state_dict()
    for name, value in plain.state_dict().items():
        inner = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        assert torch.equal(values.get(name, values.get(inner)), value), name


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["qproj"]}, r"target_modules=\{'qproj'\} does not fit LlamaModel: .*'all-linear'"),
        ({"layers_to_transform": [0]}, r"does not fit LlamaModel: .*layers_to_transform': \[0\]"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save=\['norm'\]: leave it out. Only the adapters and the linear"),
        ({"bias": "all"}, "bias='all': leave it out"),
    ],
)
def test_adapters_that_cannot_be_are_refused(tokenizer, rows, tmp_path, lora, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tokenizer, rows, tmp_path, lora)


def test_adapters_upon_adapters_are_refused(run, tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match="the model already has adapters. Leave peft_config out"):
        SemCoTAlignmentTrainer(run[0].model, config(tmp_path), train_dataset=rows, peft_config=LoraConfig(**LORA))


def test_a_checkpoint_that_was_cut_off_is_passed_over(run, tokenizer, rows, tmp_path, monkeypatch):
    """Its state is written last of all its files."""
    _, _, after, folder = run
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").symlink_to(folder / f"checkpoint-{step}")
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 1')
    resumed = make_trainer(tokenizer, rows, tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, after[8][name]) for name, value in resumed.model.state_dict().items())
