"""Stage 2: what moves, what stays, what is supervised, and what is refused."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, DatasetDict, IterableDataset
from distillation_models import config, moved, snapshot

from semcot_hf import SemCoTDistillationTrainer, SemCoTForCausalLM, build_alignment_encoder
from semcot_hf.distillation.batches import DistillationCollator
from semcot_hf.distillation.data import RowSettings, tokenize_row
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_frozen_is_frozen_and_the_rest_moves(parts, tiny_tokenizer, rows, tmp_path, mode):
    model = parts(generator_mode=mode)
    encoder = build_alignment_encoder(model.host, tiny_tokenizer, embedding_dim=8)
    args = config(tmp_path / "run", alpha=0.25, step_weight=1.0, kl_weight=0.5, hidden_weight=0.5)
    trainer = SemCoTDistillationTrainer(
        model=model, args=args, train_dataset=rows, processing_class=tiny_tokenizer, alignment_encoder=encoder
    )
    before = snapshot(model)
    frozen_encoder = snapshot(encoder)
    trainer.train()
    changed = moved(model, before)
    frozen = {name for name in before if name.startswith("host.") or name == "generator.embed_tokens.weight"}
    assert not changed & frozen
    assert changed == set(before) - frozen
    assert moved(encoder, frozen_encoder) == set()
    logged = trainer.state.log_history[0]
    for part in ("answer_loss", "alignment_loss", "step_loss", "kl_loss", "hidden_loss", "grad_norm"):
        assert math.isfinite(logged[part])
    total = (0.75 * logged["answer_loss"] + 0.25 * logged["alignment_loss"] + logged["step_loss"]) + 0.5 * (
        logged["kl_loss"] + logged["hidden_loss"]
    )
    assert logged["loss"] == pytest.approx(total, rel=1e-3)


def test_warmup_moves_projection_and_thought_only(parts, tiny_tokenizer, rows, tmp_path):
    model = parts()
    args = config(tmp_path / "run", max_steps=4, projection_warmup=0.5)
    trainer = SemCoTDistillationTrainer(model=model, args=args, train_dataset=rows, processing_class=tiny_tokenizer)
    before = snapshot(model)
    seen = {}

    class Watch(type(trainer.callback_handler.callbacks[0])):
        def on_step_end(self, args, state, control, **kwargs):
            seen[state.global_step] = moved(model, before)

    trainer.add_callback(Watch())
    trainer.train()
    assert seen[2] == {"projection.weight", "projection.bias", "thought_embedding"}
    assert any(name.startswith("generator.layers") for name in seen[3])


def test_hidden_state_view_trains(parts, tiny_tokenizer, rows, tmp_path):
    model = parts()
    encoder = build_alignment_encoder(model.host, tiny_tokenizer, embedding_dim=8)
    args = config(tmp_path / "run", max_steps=1, alpha=1.0, alignment_view="hidden_state")
    trainer = SemCoTDistillationTrainer(
        model=model, args=args, train_dataset=rows, processing_class=tiny_tokenizer, alignment_encoder=encoder
    )
    before = snapshot(model)
    trainer.train()
    assert "projection.weight" in moved(model, before)
    assert 0 < trainer.state.log_history[0]["alignment_loss"] < 2


def test_learns_and_what_is_saved_answers_alike(parts, tiny_tokenizer, tmp_path):
    rows = Dataset.from_list(
        [
            {"query": f"Say {word}.", "reasoning": f"It is {word}.", "answer": word, "steps": [f"It is {word}."]}
            for word in ("yes", "no")
        ]
        * 4
    )
    model = parts(num_implicit_tokens=4)
    # Sharp enough that some implicit tokens can make this random host as good as sure of an answer.
    model.host.lm_head.weight.data *= 4
    args = config(
        tmp_path / "run",
        max_steps=110,
        per_device_train_batch_size=8,
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        logging_steps=10,
        step_weight=1.0,
        eval_generations=2,
        per_device_eval_batch_size=2,
        generation_max_new_tokens=6,
        include_host=True,
    )
    trainer = SemCoTDistillationTrainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows, processing_class=tiny_tokenizer
    )
    first = trainer.evaluate()
    assert first["eval_accuracy"] == 0.0
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_answer_loss"] < 0.05 * first["eval_answer_loss"]
    assert metrics["eval_step_loss"] < 0.05 * first["eval_step_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    again = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = type(tiny_tokenizer).from_pretrained(tmp_path / "saved")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say no."}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    steps = next(row["steps"] for row in rows if row["query"] == "Say no.")
    assert again.implicit_steps(ids)[0][: len(steps)] == steps
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(again.generate(ids, max_new_tokens=6, do_sample=False), expected)
    assert tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True) == " no"


def test_collator_pads_prompts_left_and_answers_right(tiny_tokenizer, rows):
    tokenizer = with_answer_prompt(tiny_tokenizer)
    size = len(answer_prompt_ids(tiny_tokenizer))
    tokens = [tokenize_row(row, tokenizer, RowSettings(size, 3)) for row in rows.select(range(5))]
    batch = DistillationCollator(tokenizer.pad_token_id, with_steps=True, with_teacher=True)(tokens)
    start = max(len(row["prompt_ids"]) for row in tokens)
    for index, row in enumerate(tokens):
        prompt, answer = row["prompt_ids"], row["completion_ids"]
        assert batch["input_ids"][index, start - len(prompt) : start].tolist() == prompt
        assert batch["input_ids"][index, start : start + len(answer)].tolist() == answer
        assert answer[-1] == tokenizer.eos_token_id
        labelled = batch["labels"][index] != -100
        assert torch.equal(labelled, batch["completion_mask"][index].bool())
        assert batch["attention_mask"][index].sum() == len(prompt) + len(answer)
        told = [tokenizer.decode(step, skip_special_tokens=True) for step in row["step_ids"]]
        assert told[: len(rows[index]["steps"])] == rows[index]["steps"]
        assert batch["step_attention_mask"][index].sum(dim=-1).tolist() == [len(step) for step in row["step_ids"]]
        assert rows[index]["reasoning"] in tokenizer.decode(row["teacher_ids"])


def test_training_prompts_are_the_pipeline_prompts(tiny_tokenizer, rows):
    tokenizer = with_answer_prompt(tiny_tokenizer)
    row = rows[0]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": row["query"]}], add_generation_prompt=True)
    size = len(answer_prompt_ids(tiny_tokenizer))
    assert chat["input_ids"] == tokenize_row(row, tokenizer, RowSettings(size, 2))["prompt_ids"]
    assert chat["input_ids"][-size:] == answer_prompt_ids(tiny_tokenizer)


@pytest.mark.parametrize("form", ["paper", "paper_beside_others", "prompt_completion", "conversational"])
def test_dataset_forms_give_the_same_tokens(parts, tiny_tokenizer, tmp_path, form):
    row = {"query": "1 + 1?", "reasoning": "1 + 1 = 2.", "answer": "2"}
    completion = "1 + 1 = 2. #### 2"
    forms = {
        "paper": row,
        "paper_beside_others": {**row, "prompt": "Solve the problem.", "completion": None},
        "prompt_completion": {"prompt": "1 + 1?", "completion": completion},
        "conversational": {
            "prompt": [{"role": "user", "content": "1 + 1?"}],
            "completion": [{"role": "assistant", "content": completion}],
        },
    }
    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(tmp_path / "run"),
        train_dataset=Dataset.from_list([forms[form]]),
        processing_class=tiny_tokenizer,
    )
    tokenizer = with_answer_prompt(tiny_tokenizer)
    settings = RowSettings(len(answer_prompt_ids(tiny_tokenizer)), 2)
    expected = tokenize_row({**row, "steps": ["1 + 1 = 2."]}, tokenizer, settings)
    got = trainer.train_dataset[0]
    assert {name: got[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "dataset", "message"),
    [
        ({"alpha": 0.5}, [{"query": "a", "reasoning": "b", "answer": "c"}], "needs alignment_encoder"),
        ({}, [{"question": "a", "answer": "c"}], "needs query and answer"),
        ({}, [{"query": "a", "reasoning": "b", "answer": ""}], "without query or answer"),
        ({"step_weight": 1.0}, [{"query": "a", "reasoning": "", "answer": "c"}], "without reasoning"),
        ({"max_length": 8}, [{"query": "a" * 30, "reasoning": "b", "answer": "c"}], "beyond max_length=8"),
        ({}, [], "is empty"),
        ({}, IterableDataset.from_generator(list), "train_dataset is empty"),
        (
            {},
            DatasetDict(train=Dataset.from_dict({"query": ["a"]})),
            "train_dataset holds the splits train",
        ),
    ],
)
def test_bad_input_is_named(parts, tiny_tokenizer, tmp_path, options, dataset, message):
    data = dataset
    if isinstance(dataset, list):
        data = Dataset.from_list(dataset) if dataset else Dataset.from_dict({"query": [], "answer": []})
    with pytest.raises(ValueError, match=message):
        SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path / "run", **options),
            train_dataset=data,
            processing_class=tiny_tokenizer,
        )


def test_a_tokenizer_is_needed_and_has_to_end_answers(parts, tiny_tokenizer, rows, tmp_path):
    model, endless = parts(), copy.deepcopy(tiny_tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="processing_class has no eos_token"):
        SemCoTDistillationTrainer(model=model, args=config(tmp_path), train_dataset=rows, processing_class=endless)
    # The host's folder has one.
    trainer = SemCoTDistillationTrainer(model=model, args=config(tmp_path), train_dataset=rows)
    assert trainer.processing_class.get_vocab() == tiny_tokenizer.get_vocab()
    model.config.host_name_or_path = None
    with pytest.raises(ValueError, match="processing_class is None and the model has no id or path"):
        SemCoTDistillationTrainer(model=model, args=config(tmp_path), train_dataset=rows)


def test_several_devices_of_one_process_give_their_losses_mean(parts, tiny_tokenizer, rows, tmp_path):
    """DataParallel hands over one loss for each device; here both are the one model."""

    class TwoReplicas(torch.nn.Module):
        def forward(self, **inputs):
            halves = [
                {name: value[part] if torch.is_tensor(value) else value for name, value in inputs.items()}
                for part in (slice(0, 2), slice(2, 4))
            ]
            outputs = [model(**half) for half in halves]
            return type(outputs[0])(
                loss=torch.stack([output.loss for output in outputs]),
                step_loss=torch.stack([output.step_loss for output in outputs]),
                logits=torch.cat([output.logits for output in outputs]),
            )

    trainer = SemCoTDistillationTrainer(
        model=parts(), args=config(tmp_path, step_weight=1.0), train_dataset=rows, processing_class=tiny_tokenizer
    )
    model = trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 0, 0, 0)])
    expected = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(trainer.compute_loss(TwoReplicas(), dict(batch)), expected)


def test_predictions_take_the_rows_that_evaluation_takes(parts, tiny_tokenizer, rows, tmp_path):
    trainer = SemCoTDistillationTrainer(
        model=parts(), args=config(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer
    )
    some = rows.select(range(4))
    predicted = trainer.predict(some).metrics["test_loss"]
    assert predicted == pytest.approx(trainer.evaluate(some)["eval_loss"], rel=1e-5)


def test_metrics_of_the_users_own_get_logits_and_labels(parts, tiny_tokenizer, rows, tmp_path):
    """The batches are of different widths; what the user computes of them is the answers' cross-entropy."""

    def cross_entropy(prediction):
        logits, labels = (torch.tensor(part) for part in (prediction.predictions, prediction.label_ids))
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
        )
        wanted = (labels[:, 1:] != -100).float()
        return {"own": (losses.view_as(wanted).sum(dim=1) / wanted.sum(dim=1)).mean().item()}

    # Answers of equal lengths in each batch, whose mean over tokens is that over rows.
    answers = ["yes", "yes", "a longer one", "a longer one", "no"]
    data = Dataset.from_list([{"query": row["query"], "answer": a} for row, a in zip(rows, answers, strict=False)])
    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(tmp_path, per_device_eval_batch_size=2),
        train_dataset=rows,
        eval_dataset=data,
        processing_class=tiny_tokenizer,
        compute_metrics=cross_entropy,
    )
    found = trainer.evaluate()
    assert found["eval_own"] == pytest.approx(found["eval_loss"], rel=1e-4)
    predicted = trainer.predict(data)
    assert predicted.predictions.shape[:2] == predicted.label_ids.shape


def test_a_second_training_logs_its_own_steps(parts, tiny_tokenizer, rows, tmp_path):
    args = config(tmp_path, max_steps=3, logging_steps=2)
    trainer = SemCoTDistillationTrainer(model=parts(), args=args, train_dataset=rows, processing_class=tiny_tokenizer)
    trainer.train()
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["answer_loss"] == pytest.approx(first["loss"], rel=1e-3)


def test_parts_of_the_evaluation_loss_weigh_rows_as_it_does(parts, tiny_tokenizer, rows, tmp_path):
    """Of five rows the last is a batch of its own."""
    trainer = SemCoTDistillationTrainer(
        model=parts(),
        args=config(tmp_path, per_device_eval_batch_size=4),
        train_dataset=rows,
        eval_dataset=rows.select(range(5)),
        processing_class=tiny_tokenizer,
    )
    found = trainer.evaluate()
    assert found["eval_answer_loss"] == pytest.approx(found["eval_loss"], abs=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5 must lie in \\[0, 1\\]"),
        ({"step_weight": -1.0}, "step_weight=-1.0 must lie in \\[0, inf\\)"),
        ({"projection_warmup": 1.0}, "projection_warmup=1.0"),
        ({"curriculum": 1.0}, "curriculum=1.0 must lie in \\[0, 1\\)"),
        ({"steps_per_token": 0}, "steps_per_token=0"),
        ({"alignment_view": "both"}, "alignment_view='both'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1: the losses of stage 2 do not support it"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0: the losses of stage 2 do not support it"),
        ({"words_column": "plan"}, "words_column='plan' is for words, which this training has none of: set words_num"),
    ],
)
def test_config_refuses_values_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_config_survives_a_round_trip(tmp_path):
    args = config(tmp_path, steps_per_token=3, model_init_kwargs='{"dtype": "float32"}')
    assert args.model_init_kwargs == {"dtype": "float32"}
    values = args.to_dict()
    assert values["steps_per_token"] == 3
    assert type(args)(**values).to_dict() == values


def test_an_encoder_of_another_width_is_refused(parts, tiny_lm, tiny_tokenizer, rows, tmp_path):
    encoder = build_alignment_encoder(tiny_lm(hidden_size=48, dtype=torch.float32), tiny_tokenizer, embedding_dim=8)
    with pytest.raises(ValueError, match="reads states of size 48, and the host has hidden_size=32: pass the encoder"):
        SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path, alpha=0.25),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            alignment_encoder=encoder,
        )


def test_an_encoder_without_use_is_refused(parts, tiny_tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match="alignment_encoder is given, and alpha=0.0 has no use for it: raise alpha"):
        SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            alignment_encoder="runs/encoder",
        )


def test_what_of_a_conversation_is_left_out_is_said(parts, tiny_tokenizer, tmp_path, caplog):
    texts = {"system": "Be brief.", "user": "Hi?"}
    row = {
        "prompt": [{"role": role, "content": text} for role, text in texts.items()],
        "completion": [{"role": "assistant", "content": "So. #### yes"}],
    }
    trainer = SemCoTDistillationTrainer(
        model=parts(), args=config(tmp_path), train_dataset=Dataset.from_list([row]), processing_class=tiny_tokenizer
    )
    assert "Be brief" not in tiny_tokenizer.decode(trainer.train_dataset[0]["prompt_ids"])
    assert "train_dataset: of a conversation the last user's message is the query" in caplog.text


def test_a_loss_function_of_the_users_own_is_refused(parts, tiny_tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func: stage 2 has its own losses. Leave it out"):
        SemCoTDistillationTrainer(
            model=parts(),
            args=config(tmp_path),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            compute_loss_func=lambda outputs, labels, **_: outputs.loss,
        )


def test_an_output_dir_that_would_overwrite_a_model(parts, tiny_folder, tiny_tokenizer, rows, tmp_path):
    files = {path: path.read_bytes() for path in tiny_folder.rglob("*") if path.is_file()}
    options = {"train_dataset": rows, "processing_class": tiny_tokenizer}
    for part in ("host", "generator"):
        with pytest.raises(ValueError, match=f"output_dir=.* is where the {part} comes from"):
            SemCoTDistillationTrainer(model=parts(), args=config(tiny_folder / part), **options)
    encoder = str(tmp_path / "encoder")
    with pytest.raises(ValueError, match="output_dir=.* is where the alignment encoder comes from"):
        SemCoTDistillationTrainer(model=parts(), args=config(encoder), alignment_encoder=encoder, **options)
    assert files == {path: path.read_bytes() for path in tiny_folder.rglob("*") if path.is_file()}


def test_checkpointing_by_fsdp_is_refused(parts, tiny_tokenizer, rows, tmp_path, monkeypatch):
    """The question cache's keys and values would be added a second time."""
    made = SemCoTDistillationTrainer.create_accelerator_and_postprocess

    def sharded(trainer):
        made(trainer)
        trainer.is_fsdp_enabled = True
        plugin = SimpleNamespace(activation_checkpointing=True)
        monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)

    monkeypatch.setattr(SemCoTDistillationTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match="fsdp_activation_checkpointing=true .*: set it to false, and gradient_chec"):
        SemCoTDistillationTrainer(parts(), config(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer)


def test_what_could_not_be_pushed_is_refused_before_training(parts, tiny_tokenizer, rows, tmp_path):
    pushing = {"push_to_hub": True, "hub_model_id": "lab/semcot", "include_host": False}
    with pytest.raises(ValueError, match="The host is in the folder .*: pass include_host=True"):
        SemCoTDistillationTrainer(
            model=parts(), args=config(tmp_path, **pushing), train_dataset=rows, processing_class=tiny_tokenizer
        )
