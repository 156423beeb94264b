"""Stage 2 as users of TRL expect it: adapters, streams, several evaluation sets, stored embeddings, early errors."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from distillation_models import config, make_model, moved, snapshot, train
from huggingface_hub import ModelCard
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from semcot_hf import SemCoTDistillationTrainer, SemCoTForCausalLM, build_alignment_encoder
from semcot_hf.data.tasks import coin_flip
from semcot_hf.distillation.targets import EncoderEmbeddings, MeanStates

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

LORA = dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])


def test_adapters_train_alone_and_are_merged_into_what_is_saved(tiny_folder, tmp_path):
    """The paper's ablation: the host itself with LoRA as the generator, and no projection between them."""
    fields = {"generator": str(tiny_folder / "host"), "projection": "identity", "generator_mode": "parallel"}
    before = make_model(tiny_folder, **fields)
    trainer = train(
        tiny_folder, tmp_path, fields=fields, peft_config=LoraConfig(**LORA), step_weight=0.0, projection_warmup=0.0
    )
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained == {"thought_embedding"} | {name for name in trained if "lora_" in name}
    assert {name for name, value in trainer.model.named_parameters() if value.grad is not None} <= trained
    trainer.save_model(str(tmp_path / "saved"))
    saved = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    changed = moved(saved, snapshot(before))
    layers = range(before.generator.config.num_hidden_layers)
    adapted = {f"generator.layers.{i}.self_attn.{name}.weight" for i in layers for name in LORA["target_modules"]}
    assert changed == adapted | {"thought_embedding"}
    ids = torch.tensor([[5, 6, 7, 8]])
    trainer.model.eval()
    torch.testing.assert_close(saved.implicit_embeddings(ids), trainer.model.implicit_embeddings(ids))


def test_a_step_decoder_gets_adapters_of_its_own(parts, tiny_tokenizer, rows, tmp_path):
    """All its weights in float32 take more memory than host and generator, and the adapters' rate ruins them."""
    model = parts()
    model.generator.to(torch.bfloat16)
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=config(tmp_path, step_weight=1.0, weight_decay=0.0),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
        peft_config=LoraConfig(**LORA),
    )
    before = snapshot(model)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in trained if "lora_" in name} == {"generator", "step_decoder"}
    alone = {"projection.weight", "projection.bias", "thought_embedding"}
    alone |= {"step_projection.weight", "step_projection.bias"}
    assert {name for name in trained if "lora_" not in name} == alone
    assert model.step_decoder.dtype == torch.bfloat16
    trainer.train()
    assert moved(model, before) == trained
    trainer.save_model(str(tmp_path / "saved"))
    saved = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    source = AutoModelForCausalLM.from_pretrained(model.config.generator_name_or_path, dtype=torch.bfloat16)
    changed = moved(saved.step_decoder, snapshot(source))
    assert changed and {name.split(".")[-2] for name in changed} == set(LORA["target_modules"])
    # In memory the projection is in float32 beside a decoder in 16 bits, as which it is saved.
    found, trained = saved.step_projection.weight, model.step_projection.weight
    assert trained.dtype == torch.float32 and found.dtype == saved.step_decoder.dtype == torch.bfloat16
    assert torch.equal(found, trained.to(torch.bfloat16))
    ids = torch.tensor([[5, 6, 7, 8]])
    for reader in (model.eval(), saved):
        [steps] = reader.implicit_steps(ids, tokenizer=tiny_tokenizer, max_new_tokens=3)
        assert len(steps) == model.config.num_implicit_tokens


def test_processes_that_do_not_save_leave_the_folder_alone(tiny_folder, tmp_path, monkeypatch):
    trainer = train(tiny_folder, tmp_path, step_weight=0.0)
    monkeypatch.setattr(type(trainer.args), "should_save", False)
    work = tmp_path / "saved" / ".unfinished"
    work.mkdir(parents=True)
    (work / "model.safetensors").write_text("what the first process writes")
    trainer.save_model(str(tmp_path / "saved"))
    assert [path.name for path in (tmp_path / "saved").rglob("*") if path.is_file()] == ["model.safetensors"]


def test_adapters_of_a_16_bit_generator_train_in_float32(parts, tiny_tokenizer, rows, tmp_path):
    model = parts()
    model.generator.to(torch.bfloat16)
    trainer = SemCoTDistillationTrainer(
        model=model,
        # Bfloat16 has no step of 1e-5 at weights of 0.1.
        args=config(tmp_path, learning_rate=1e-5, weight_decay=0.0),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
        peft_config=LoraConfig(**LORA),
    )
    before = {name: value for name, value in snapshot(model).items() if "lora_A" in name}
    trainer.train()
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert moved(model, before) == before.keys()
    assert all((model.get_parameter(name) != value).float().mean() > 0.9 for name, value in before.items())
    assert model.generator.dtype == torch.bfloat16


def test_adapters_leave_other_modules_alone(parts, tiny_tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match="modules_to_save=.*leave it out"):
        SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            peft_config=LoraConfig(**LORA, modules_to_save=["projection"]),
        )


def test_embeddings_are_computed_once(parts, tiny_tokenizer, rows, tmp_path, monkeypatch, datasets_cache):
    encoder = build_alignment_encoder(parts().host, tiny_tokenizer, embedding_dim=8)
    encode, encoded = SentenceTransformer.encode, []
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda self, texts, **kw: encoded.extend(texts) or encode(self, texts, **kw)
    )

    def prepare(dataset):
        return SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path, alpha=0.5),
            train_dataset=dataset,
            processing_class=tiny_tokenizer,
            alignment_encoder=encoder,
        ).train_dataset

    first = prepare(rows)
    assert encoded == rows["reasoning"]
    again = prepare(Dataset.from_list(list(rows)))
    assert len(encoded) == len(rows)
    assert again["reasoning_embedding"] == first["reasoning_embedding"]
    vectors = torch.tensor(first["reasoning_embedding"])
    torch.testing.assert_close(vectors, torch.tensor(encode(encoder, rows["reasoning"])), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        encoder[2].linear.weight.mul_(2)
    prepare(rows)
    assert len(encoded) == 2 * len(rows)
    assert len(list(datasets_cache.glob("semcot_hf/reasoning-*.arrow"))) == 2
    encoder.max_seq_length = 6
    cut = torch.tensor(prepare(rows)["reasoning_embedding"])
    torch.testing.assert_close(cut, torch.tensor(encode(encoder, rows["reasoning"])), atol=1e-5, rtol=1e-5)
    assert len(encoded) == 3 * len(rows)


@pytest.mark.parametrize("view", ["embedding", "mean_pooled"])
def test_stored_embeddings_depend_on_the_configuration(parts, tiny_tokenizer, view):
    """Of equal weights, one computes by another epsilon."""
    host = parts().host
    prints = set()
    for epsilon in (1e-6, 1e-6, 1e-3):
        host.config.rms_norm_eps = epsilon
        encoder = build_alignment_encoder(host, tiny_tokenizer, embedding_dim=8)
        torch.nn.init.ones_(encoder[2].linear.weight)
        torch.nn.init.zeros_(encoder[2].linear.bias)
        embedder = MeanStates(host, tiny_tokenizer) if view == "mean_pooled" else EncoderEmbeddings(encoder)
        prints.add(embedder.fingerprint())
    assert len(prints) == 2


@pytest.mark.parametrize("view", ["embedding", "mean_pooled"])
def test_the_reasoning_is_embedded_in_the_precision_of_the_training(parts, tiny_tokenizer, rows, tmp_path, view):
    host, texts = parts().host, rows["reasoning"][:4]
    encoder = build_alignment_encoder(host, tiny_tokenizer, embedding_dim=8)

    def embedder(precision):
        if view == "mean_pooled":
            return MeanStates(host, tiny_tokenizer, precision)
        return EncoderEmbeddings(encoder, precision)

    full, half = embedder(None), embedder(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if view == "mean_pooled":
            batch = tiny_tokenizer(
                texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
            )
            states, mask = host(**batch, output_hidden_states=True).hidden_states[full.layer], batch["attention_mask"]
            expected = ((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1)[:, None]).numpy()
        else:
            expected = encoder.encode(texts)
    np.testing.assert_array_equal(half.encode(texts), expected)
    assert not np.array_equal(full.encode(texts), expected)
    np.testing.assert_allclose(full.encode(texts), expected, atol=0.05)
    assert half.fingerprint() != full.fingerprint()
    for weights, bf16, precision in (
        (torch.float32, True, torch.bfloat16),
        (torch.float32, False, None),
        (torch.bfloat16, False, torch.bfloat16),
    ):
        model = parts()
        model.host.to(weights)
        trainer = SemCoTDistillationTrainer(
            model=model,
            args=config(tmp_path, alpha=0.1, bf16=bf16, **({"alignment_view": view} if view == "mean_pooled" else {})),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            alignment_encoder=None if view == "mean_pooled" else encoder,
        )
        assert trainer._embedder.precision == precision


def test_streams_several_evaluation_sets_and_reports(parts, tiny_tokenizer, rows, tmp_path, caplog):
    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(
            tmp_path,
            max_steps=2,
            alpha=0.25,
            alignment_view="mean_pooled",
            eval_strategy="steps",
            eval_steps=2,
            eval_generations=2,
            report_to="tensorboard",
        ),
        train_dataset=rows.select(range(16)).to_iterable_dataset(),
        eval_dataset={"seen": rows.select(range(2)), "new": rows.select(range(16, 20))},
        processing_class=tiny_tokenizer,
    )
    trainer.train()
    evaluated = [log for log in trainer.state.log_history if "eval_new_loss" in log][0]
    assert {"eval_new_answer_loss", "eval_new_alignment_loss", "eval_new_accuracy"} <= evaluated.keys()
    assert any("eval_seen_accuracy" in log for log in trainer.state.log_history)
    assert list(tmp_path.rglob("events.out.tfevents*"))
    other = trainer.evaluate(rows.select(range(20, 24)))
    expected = 0.75 * other["eval_answer_loss"] + 0.25 * other["eval_alignment_loss"]
    assert other["eval_loss"] == pytest.approx(expected, rel=1e-4) and "eval_accuracy" in other
    # What the trainer itself holds of a set is tokenized already, streams too.
    again = trainer.evaluate(trainer._tokenize(rows.select(range(20, 24)).to_iterable_dataset(), "eval_dataset"))
    assert again["eval_answer_loss"] == pytest.approx(other["eval_answer_loss"], rel=1e-4)


def test_overlap_is_counted(parts, tiny_tokenizer, rows, tmp_path, caplog):
    SemCoTDistillationTrainer(
        model=parts(),
        args=config(tmp_path),
        train_dataset=rows.select(range(16)),
        eval_dataset={"mixed": rows.select(range(13, 20))},
        processing_class=tiny_tokenizer,
    )
    assert "eval_dataset['mixed']: 3 of 7 questions are in train_dataset too" in caplog.text


def test_batches_of_similar_lengths(parts, tiny_tokenizer, tmp_path):
    rows = Dataset.from_list(coin_flip.generate(96, seed=0, min_people=1, max_people=5))
    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(tmp_path, train_sampling_strategy="group_by_length"),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
    )
    lengths = trainer.train_dataset["length"]
    assert lengths == [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in trainer.train_dataset]
    padding = [(batch["attention_mask"] == 0).float().mean().item() for batch in trainer.get_train_dataloader()]
    trainer.args.train_sampling_strategy = "random"
    unsorted = [(batch["attention_mask"] == 0).float().mean().item() for batch in trainer.get_train_dataloader()]
    assert sum(padding) < 0.7 * sum(unsorted)


def test_loss_that_is_no_number_stops_the_run(parts, tiny_tokenizer, rows, tmp_path):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                model.projection.weight.data.fill_(float("nan"))

    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(tmp_path),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
        callbacks=[Break()],
    )
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*answer_loss nan.*lower learning_rate"):
        trainer.train()


def test_projection_has_its_own_rate_and_decay(parts, tiny_tokenizer, rows, tmp_path):
    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(
            tmp_path,
            learning_rate=1e-5,
            weight_decay=1e-7,
            projection_learning_rate=1e-3,
            projection_weight_decay=0.01,
        ),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
    )
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    found = {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for value in group["params"]
    }
    assert found["projection.weight"] == found["thought_embedding"] == (1e-3, 0.01)
    assert found["projection.bias"] == (1e-3, 0.0)
    assert found["generator.layers.0.mlp.up_proj.weight"] == (1e-5, 1e-7)
    assert found["generator.norm.weight"] == (1e-5, 0.0)


def test_model_by_path_in_bfloat16_trains_in_float32(parts, rows, tmp_path):
    model = parts(num_implicit_tokens=1)
    model.save_pretrained(tmp_path / "model")
    trainer = SemCoTDistillationTrainer(
        model=str(tmp_path / "model"),
        args=config(
            tmp_path / "run",
            max_steps=1,
            step_weight=1.0,
            keep_step_decoder=False,
            model_init_kwargs={"dtype": "bfloat16"},
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model.config.host_name_or_path),
    )
    assert {value.dtype for value in trainer.model.parameters() if value.requires_grad} == {torch.float32}
    assert trainer.model.host.dtype == torch.bfloat16
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.step_decoder is None and trainer.model.step_decoder is not None
    trainer.create_model_card(tags="demo")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert {"semcot", "demo"} <= set(card.data.tags) and "step_weight" in card.text


def test_too_long_for_the_teacher_is_an_error(parts, tiny_tokenizer, tmp_path):
    row = {"query": "a", "reasoning": "b " * 60, "answer": "c"}
    with pytest.raises(ValueError, match=r"tokens \(prompt, reasoning and answer\), beyond max_length=64"):
        SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path, kl_weight=1.0, max_length=64),
            train_dataset=Dataset.from_list([row]),
            processing_class=tiny_tokenizer,
        )


def test_training_on_keeps_the_models_own_answer_prompt(parts, tiny_tokenizer, rows, tmp_path):
    def trainer(model, processing_class=None, **options):
        return SemCoTDistillationTrainer(
            model=model, args=config(tmp_path, **options), train_dataset=rows, processing_class=processing_class
        )

    first = trainer(parts(), tiny_tokenizer, answer_prompt="\nA:")
    saved = str(tmp_path / "saved")
    first.save_model(saved)
    ids, prompts = first.model.config.answer_prompt_ids, first.train_dataset["prompt_ids"]
    assert tiny_tokenizer.decode(prompts[0]).endswith("<assistant>\nA:")
    # With the checkpoint's tokenizer and with the host's, by default and by name.
    for processing_class, options in ((None, {}), (tiny_tokenizer, {}), (None, {"answer_prompt": "\nA:"})):
        again = trainer(saved, processing_class, **options)
        assert again.model.config.answer_prompt_ids == ids and again.train_dataset["prompt_ids"] == prompts
    other = trainer(saved, tiny_tokenizer, answer_prompt="\nSo:")
    assert tiny_tokenizer.decode(other.train_dataset["prompt_ids"][0]).endswith("<assistant>\nSo:")
    with pytest.raises(ValueError, match=r"answer_prompt='\\nSo:': processing_class ends prompts on the model's own"):
        trainer(saved, answer_prompt="\nSo:")


def test_an_answer_prompt_that_the_tokenizer_lacks_is_refused(parts, char_tokenizer, tiny_tokenizer, rows, tmp_path):
    model = parts(answer_prompt_ids=tiny_tokenizer("\nA:")["input_ids"])
    other = copy.deepcopy(char_tokenizer)
    other.eos_token = "[bos]"
    with pytest.raises(ValueError, match="answer_prompt=None keeps the model's own, .* does not encode as .*: pass"):
        SemCoTDistillationTrainer(model=model, args=config(tmp_path), train_dataset=rows, processing_class=other)
