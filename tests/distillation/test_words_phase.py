"""The words phase of stage 2: what it trains, its rows, its place among the steps, resuming, and what follows it."""

import math

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from distillation_models import config, make_model, moved, snapshot
from peft import LoraConfig
from torch.utils.data import BatchSampler
from transformers import AutoTokenizer

from semcot_hf import SemCoTDistillationTrainer, SemCoTForCausalLM
from semcot_hf.distillation.data import tokenize_row
from semcot_hf.distillation.model import prepare_tokenizer
from semcot_hf.distillation.phases import steps_per_epoch
from semcot_hf.inference.answering import Answer
from semcot_hf.inference.prompting import prompt_text

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

ADAPTIVE = dict(
    projection="vocabulary",
    thought_length="adaptive",
    num_implicit_tokens=12,
    mixture_top_k=4,
    starts_with_thought_token=False,
    end_of_thought_token_ids=[2],
)
LORA = dict(r=8, lora_alpha=16, target_modules="all-linear")


@pytest.fixture(scope="module")
def sums():
    rows = []
    for a in range(2, 8):
        for b in range(1, 5):
            text = f"{a}+{b}={a + b}"
            reasoning = f"We add {a} and {b}: {a} + {b} = {a + b}."
            row = {"query": f"{a} and {b}?", "reasoning": reasoning, "condensed_reasoning": text}
            rows.append({**row, "answer": str(a + b)})
    return Dataset.from_list(rows)


def words_trainer(folder, output_dir, rows, fields=None, peft_config=None, eval_dataset=None, **options):
    defaults = {"words_max_steps": 3, "words_column": "condensed_reasoning", "num_train_epochs": 0, "max_steps": -1}
    options = {**defaults, **options}
    return SemCoTDistillationTrainer(
        model=make_model(folder, **{**ADAPTIVE, **(fields or {})}),
        args=config(output_dir, **options),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(folder / "host"),
        peft_config=peft_config,
    )


def test_only_the_words_phase_trains_only_the_generator(tiny_folder, sums, tmp_path):
    trainer = words_trainer(tiny_folder, tmp_path, sums, words_max_steps=60, learning_rate=1e-2)
    before = snapshot(trainer.model)
    trainer.model.host.register_forward_pre_hook(lambda *_: pytest.fail("the host runs in the words phase"))
    trainer.train()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert moved(trainer.model, before) == trained
    assert not any(name.startswith("host.") for name in trained) and "projection.weight" in trained
    losses = [entry["words_loss"] for entry in trainer.state.log_history if "words_loss" in entry]
    assert len(losses) == trainer.state.max_steps == 60 and losses[-1] < 0.5 * losses[0]
    assert not any("answer_loss" in entry for entry in trainer.state.log_history)


def test_the_loss_is_the_model_s_own(tiny_folder, sums, tmp_path, tiny_tokenizer):
    trainer = words_trainer(tiny_folder, tmp_path, sums)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 7)])
    row = batch["thought_input_ids"][0][batch["thought_targets"][0] != -100]
    assert tiny_tokenizer.decode(row) == "2+1=3<eos> 3<eos>" or tiny_tokenizer.decode(row) == " 2+1=3<eos> 3<eos>"
    read = tiny_tokenizer.decode(batch["thought_input_ids"][0])
    assert "<eos>\nAnswer: 3<eos>" in read
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    model = trainer.model
    prompts = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    thought = {name: batch[name] for name in ("thought_input_ids", "thought_targets")}
    torch.testing.assert_close(model(**prompts, labels=batch["labels"]).loss, loss)
    model.train()
    trainer.state.max_steps = 3
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), model(**prompts, **thought).loss)


def test_a_taught_generator_writes_its_words_and_stops(tiny_folder, sums, tmp_path):
    trainer = words_trainer(
        tiny_folder,
        tmp_path,
        sums,
        words_max_steps=300,
        learning_rate=1e-2,
        weight_decay=0.0,
        fields={"mixture_top_k": 1},
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    model = SemCoTForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": query}], add_generation_prompt=True, tokenize=False)
        for query in sums["query"][:6]
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    said = model.implicit_text(batch["input_ids"], batch["attention_mask"], tokenizer=tokenizer)
    right = sum(a.strip() == b for a, b in zip(said, sums["condensed_reasoning"][:6], strict=True))
    assert right >= 4, said


def test_both_phases_in_one_run(tiny_folder, sums, tmp_path):
    """Steps add up, each phase has its own schedule, and adaptive thoughts are trained through the host."""
    trainer = words_trainer(
        tiny_folder,
        tmp_path,
        sums,
        words_max_steps=4,
        words_learning_rate=2e-2,
        max_steps=5,
        num_train_epochs=3,
        lr_scheduler_type="linear",
        projection_warmup=0.4,
        words_weight=0.5,
    )
    before = snapshot(trainer.model.host)
    trainer.train()
    assert trainer.state.max_steps == trainer.state.global_step == 9
    log = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    rates = [entry["learning_rate"] for entry in log]
    expected = [2e-2 * share for share in (1, 0.75, 0.5, 0.25)] + [1e-2 * share for share in (1, 0.8, 0.6, 0.4, 0.2)]
    assert rates == pytest.approx(expected)
    assert ["answer_loss" in entry for entry in log] == [False] * 4 + [True] * 5
    for entry in log[4:]:
        assert entry["loss"] == pytest.approx(entry["answer_loss"] + 0.5 * entry["words_loss"], abs=1e-3)
    assert not moved(trainer.model.host, before)


def test_the_warmup_counts_from_the_end_of_the_words(tiny_folder, sums, tmp_path):
    trainer = words_trainer(tiny_folder, tmp_path, sums, words_max_steps=2, max_steps=5, projection_warmup=0.4)
    trainer.state.max_steps = 7
    frozen = []
    for step in range(7):
        trainer.state.global_step = step
        frozen.append(trainer._in_warmup())
    assert frozen == [False, False, True, True, False, False, False]


@pytest.mark.parametrize("kill", [2, 4])
def test_resuming_gives_the_same_bits(tiny_folder, sums, tmp_path, kill):
    """From a checkpoint in the words phase (2) and from one behind it (4)."""
    options = dict(words_max_steps=3, max_steps=3, save_strategy="steps", save_steps=1, learning_rate=1e-2)
    whole = words_trainer(tiny_folder, tmp_path / "whole", sums, **options)
    whole.train()
    first = words_trainer(tiny_folder, tmp_path / "cut", sums, **options)
    first.train()
    resumed = words_trainer(tiny_folder, tmp_path / "cut", sums, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{kill}"))
    assert resumed.state.global_step == 6
    assert not moved(resumed.model, snapshot(whole.model))


def test_adapters_leave_the_lm_head_as_it_is(tiny_folder, sums, tmp_path):
    trainer = words_trainer(
        tiny_folder, tmp_path, sums, peft_config=LoraConfig(**LORA), max_steps=2, num_train_epochs=1
    )
    before = snapshot(trainer.model)
    trainer.train()
    changed = moved(trainer.model, before)
    assert changed and all("lora_" in name for name in changed)
    trained = words_trainer(tiny_folder, tmp_path, sums, peft_config=LoraConfig(**LORA), train_projection=True)
    assert trained.model.projection.weight.requires_grad


def test_evaluation_reports_both_losses_and_the_end_of_the_words(tiny_folder, sums, tmp_path):
    trainer = words_trainer(
        tiny_folder,
        tmp_path,
        sums.select(range(16)),
        eval_dataset=sums.select(range(16, 24)),
        words_max_steps=3,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=100,
        save_strategy="steps",
        save_steps=100,
        load_best_model_at_end=True,
        eval_generations=4,
        generation_max_new_tokens=3,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in entries] == [3, 7]
    for entry in entries:
        assert entry["eval_loss"] == pytest.approx(entry["eval_answer_loss"], abs=1e-4)
        assert math.isfinite(entry["eval_words_loss"]) and 0 <= entry["eval_accuracy"] <= 1
        assert 0 <= entry["eval_thoughts_ended"] <= 1 and 0 <= entry["eval_thought_length"] <= 12
        assert 0 <= entry["eval_thoughts_right"] <= 1
    best = min(entries, key=lambda entry: entry["eval_loss"])["step"]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")


def test_evaluation_counts_thoughts_that_end_on_the_right_answer(tiny_folder, sums, tmp_path, monkeypatch):
    def answers(self, queries, batch_size):
        assert self.keeps_thoughts
        texts = ["1+1=2", f"1+1=2; 2+0={sums[16]['answer']}", None, "nothing"]
        return [Answer("", 1, 0.0, True, implicit_tokens=4, thought=text) for text in texts]

    monkeypatch.setattr("semcot_hf.distillation.trainer.Answerer.answers", answers)
    rows = sums.select([16, 16, 16, 16])
    assert rows[0]["answer"] != "2"
    options = {"words_max_steps": 1, "eval_generations": 4}
    trainer = words_trainer(tiny_folder, tmp_path, sums.select(range(16)), eval_dataset=rows, **options)
    metrics = trainer.evaluate()
    assert metrics["eval_thoughts_right"] == 0.25 and metrics["eval_thought_length"] == 4
    assert metrics["eval_accuracy"] == 0 and metrics["eval_thoughts_ended"] == 1


def test_columns_made_from_the_reasoning(tiny_folder, sums, tmp_path, tiny_tokenizer):
    for column, said in (("equations", "2+1=3"), ("plan", "2+1"), ("reasoning", "We add 2 and 1: 2 + 1 = 3.")):
        trainer = words_trainer(
            tiny_folder, tmp_path, sums, words_column=column, fields={"num_implicit_tokens": 60, **({})}
        )
        row = trainer.train_dataset[0]
        words = row["thought_ids"][: row["thought_ids"].index(2)]
        assert tiny_tokenizer.decode(words).strip() == said


def test_epochs_count_the_rows_with_words(tiny_folder, sums, tmp_path):
    rows = sums.map(lambda row, index: {"condensed_reasoning": "" if index < 10 else "1+1"}, with_indices=True)
    alone = words_trainer(tiny_folder, tmp_path, rows, words_max_steps=0, words_num_train_epochs=2)
    assert alone.args.words_max_steps == 8 and len(alone.train_dataset) == 14
    both = words_trainer(tiny_folder, tmp_path, rows, words_max_steps=0, words_num_train_epochs=2, max_steps=3)
    assert both.args.words_max_steps == 12 and len(both.train_dataset) == 24
    with pytest.raises(ValueError, match="train_dataset is a stream.*Set words_max_steps"):
        words_trainer(
            tiny_folder, tmp_path, rows.to_iterable_dataset(), words_max_steps=0, words_num_train_epochs=1, max_steps=3
        )


@pytest.mark.parametrize("epochs", [2, 2.5, 0.3])
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"dataloader_drop_last": True, "gradient_accumulation_steps": 3}],
)
def test_epochs_of_the_words_have_as_many_steps_as_others(tiny_folder, sums, tmp_path, options, epochs):
    rows, options = sums.select(range(17)), {"words_max_steps": 0, **options}
    words = words_trainer(tiny_folder, tmp_path, rows, words_num_train_epochs=epochs, **options)
    others = words_trainer(tiny_folder, tmp_path, rows, num_train_epochs=epochs, words_weight=1.0, **options)
    *_, steps = others.set_initial_training_values(others.args, others.get_train_dataloader())
    assert words.args.words_max_steps == steps


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rows", [17, 24, 32])
def test_an_epoch_has_the_batches_that_accelerate_gives_a_process(tmp_path, monkeypatch, drop_last, rows):
    args = config(tmp_path, gradient_accumulation_steps=2, dataloader_drop_last=drop_last)
    monkeypatch.setattr(type(args), "world_size", 3)
    batches = BatchSampler(range(rows), args.train_batch_size, drop_last)
    of_a_process = len(BatchSamplerShard(batches, num_processes=3, process_index=0))
    assert steps_per_epoch(rows, args) == math.ceil(of_a_process / 2)
    assert steps_per_epoch(1, args) == 1


def test_a_configuration_serves_several_trainings(tiny_folder, sums, tmp_path):
    args = config(
        tmp_path, words_num_train_epochs=2, words_column="condensed_reasoning", num_train_epochs=0, max_steps=-1
    )
    given = args.to_dict()
    for rows, steps in ((24, 12), (8, 4)):
        trainer = SemCoTDistillationTrainer(
            model=make_model(tiny_folder, **ADAPTIVE),
            args=args,
            train_dataset=sums.select(range(rows)),
            processing_class=AutoTokenizer.from_pretrained(tiny_folder / "host"),
        )
        assert trainer.args.words_max_steps == steps and args.to_dict() == given


def test_a_stream_of_rows(tiny_folder, sums, tmp_path):
    trainer = words_trainer(tiny_folder, tmp_path, sums.to_iterable_dataset(), words_column=None, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 5


def test_a_stream_of_rows_for_the_words_alone(tiny_folder, sums, tmp_path):
    streamed, listed = (
        words_trainer(tiny_folder, tmp_path, rows, words_max_steps=8, train_sampling_strategy="sequential")
        for rows in (sums.to_iterable_dataset(), sums)
    )
    for trainer in (streamed, listed):
        trainer.train()
        assert trainer.state.global_step == trainer.state.max_steps == 8
    losses = [[row["words_loss"] for row in each.state.log_history[:-1]] for each in (streamed, listed)]
    assert losses[0] == pytest.approx(losses[1]) and len(losses[0]) == 8
    assert not moved(streamed.model, snapshot(listed.model))


def test_the_first_rows_of_a_stream_are_checked_for_words(tiny_folder, sums, tmp_path, caplog):
    stream = sums.to_iterable_dataset()
    with pytest.raises(ValueError, match="words_column='reasonning': 24 of the first 24 rows of train_dataset cannot"):
        words_trainer(tiny_folder, tmp_path, stream, words_column="reasonning", max_steps=2)
    fewer = sums.map(
        lambda row, index: {"condensed_reasoning": "" if index < 3 else row["condensed_reasoning"]}, with_indices=True
    )
    words_trainer(tiny_folder, tmp_path, fewer.to_iterable_dataset(), max_steps=2)
    assert "train_dataset: the words phase leaves out 3 of the first 24 rows (3 have no words" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_rows_become_the_examples_for_candidates(tiny_folder, sums, tmp_path, tiny_tokenizer, stream):
    """The host scores candidates after them: without the answer prompt, and without rows whose words do not fit."""
    rows = sums.map(
        lambda row, index: {"condensed_reasoning": "9" * 40 if index == 1 else row["condensed_reasoning"]},
        with_indices=True,
    )
    trainer = words_trainer(tiny_folder, tmp_path, rows.to_iterable_dataset() if stream else rows, max_steps=2)
    made = trainer.model.config.candidate_prompt
    before = tiny_tokenizer.decode(made["before"])
    shown = [rows[index] for index in (0, 2, 3, 4)]
    places = [before.index(row[name]) for row in shown for name in ("query", "condensed_reasoning")]
    assert places == sorted(places) and rows[1]["query"] not in before and rows[5]["query"] not in before
    ends = trainer.model.config.answer_prompt_ids
    assert ends and made["after"][-len(ends) :] != ends and made["end"] == [tiny_tokenizer("\n")["input_ids"][0]]
    trainer.train()
    trainer.save_model(str(tmp_path))
    model = SemCoTForCausalLM.from_pretrained(tmp_path)
    prompt = prompt_text(trainer.processing_class, "2 and 2?")
    ids = torch.tensor([tiny_tokenizer(prompt)["input_ids"]])
    assert model.generate(ids, max_new_tokens=2, num_candidates=3).shape == (1, ids.shape[1] + 2)
    # The host reads the examples, the question and a candidate.
    read = [*made["before"], *tiny_tokenizer("2 and 2?")["input_ids"], *made["after"], 5, 6, *made["end"]]
    logits = model.host(torch.tensor([read])).logits[0].log_softmax(dim=-1)
    expected = sum(float(logits[place - 1, read[place]]) for place in range(len(read) - 3, len(read)))
    found = model.thought_log_probabilities(ids[:, : -len(ends)], None, [[5, 6]])
    assert float(found) == pytest.approx(expected, abs=1e-3)
    other = words_trainer(tiny_folder, tmp_path / "own", rows, fields={"candidate_prompt": made}, words_max_steps=1)
    assert other.model.config.candidate_prompt == made


def test_training_rows_become_examples_that_the_host_is_shown(tiny_folder, sums, tmp_path):
    """In the saved checkpoint's chat template, in every process; the generator learns the words without them."""
    options = dict(words_max_steps=2, learning_rate=1e-2, max_steps=2, eval_generations=4, eval_strategy="no")
    shown, plain = (
        words_trainer(tiny_folder, tmp_path / name, sums, eval_dataset=sums, few_shot_examples=number, **options)
        for name, number in (("shown", 2), ("plain", 0))
    )
    assert plain.model.config.few_shot_ids is None
    # The words phase is the same for the generator; then the host reads the examples.
    for trainer in (shown, plain):
        trainer.train()
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (shown, plain)]
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5) and losses[0][2:] != losses[1][2:]
    shown.evaluate()
    shown.save_model(str(tmp_path / "saved"))
    model, tokenizer = (
        SemCoTForCausalLM.from_pretrained(tmp_path / "saved"),
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
    )
    ends = model.config.answer_prompt_ids
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "9 and 9?"}], tokenize=False, add_generation_prompt=True
    )
    for row in list(sums)[:2]:
        assert f"{row['query']}" in text and f"{row['condensed_reasoning']}\nAnswer: {row['answer']}" in text
    assert sums[2]["query"] not in text
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    bare = tokenizer(prompt_text(tokenizer, "9 and 9?", few_shot=False), add_special_tokens=False)["input_ids"]
    assert ids.shape[1] == len(bare) + len(model.config.few_shot_ids) and ids[0, -len(ends) :].tolist() == ends
    with torch.no_grad():
        tokens = [model.implicit_embeddings(part) for part in (ids, torch.tensor([bare]))]
    torch.testing.assert_close(*tokens)
    # Trained further, it keeps them, or takes others.
    for number, kept in ((0, True), (3, False)):
        further = SemCoTDistillationTrainer(
            model=str(tmp_path / "saved"),
            args=config(
                tmp_path / f"further{number}",
                words_max_steps=1,
                words_column="condensed_reasoning",
                num_train_epochs=0,
                max_steps=-1,
                few_shot_examples=number,
            ),
            train_dataset=sums,
        )
        assert (further.model.config.few_shot_ids == model.config.few_shot_ids) == kept
        assert prompt_text(further.processing_class, "9 and 9?").count("Answer:") == (3 if kept else 4)
    # The configuration follows the tokenizer.
    ids, bare_tokenizer = model.config.few_shot_ids, AutoTokenizer.from_pretrained(tiny_folder / "host")
    for given, expected in ((bare_tokenizer, None), (tokenizer, ids)):
        prepare_tokenizer(given, model.config, None)
        assert model.config.few_shot_ids == expected
    # Explicit reasoning, which teaches by its states, follows the question alone.
    rows = [
        tokenize_row(sums[3] | {"steps": []}, trainer.processing_class, trainer._settings)
        for trainer in (shown, plain)
    ]
    assert rows[0]["teacher_ids"] == rows[1]["teacher_ids"] and rows[0]["prompt_ids"] != rows[1]["prompt_ids"]
    with pytest.raises(ValueError, match="few_shot_examples=2 is for words, which this training has none of"):
        words_trainer(tiny_folder, tmp_path / "none", sums, words_max_steps=0, max_steps=2, few_shot_examples=2)


def test_few_words_and_a_small_generator_for_examples(tiny_folder, sums, tmp_path, caplog):
    """Rows count for the generator's context without the examples; fewer of these are told."""
    words_trainer(tiny_folder, tmp_path, sums.select(range(3)), few_shot_examples=5)
    assert "few_shot_examples=5: only 3 of the first thousand rows" in caplog.text
    model = make_model(tiny_folder, **ADAPTIVE)
    model.config.generator_config.n_positions = model.config.generator_config.max_position_embeddings = 40
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=config(
            tmp_path, words_max_steps=1, words_column="condensed_reasoning", num_train_epochs=0, few_shot_examples=4
        ),
        train_dataset=sums,
        processing_class=AutoTokenizer.from_pretrained(tiny_folder / "host"),
    )
    assert len(trainer.model.config.few_shot_ids) > 40


def test_an_equation_before_an_answer_that_is_no_number(tiny_folder, sums, tmp_path):
    """A set of multiple choice with an equation in one of its reasonings."""
    rows = sums.map(lambda row: {"answer": "A"})
    trainer = words_trainer(tiny_folder, tmp_path, rows, words_column=None)
    assert trainer._settings.thoughts.column == "condensed_reasoning"
    with pytest.raises(ValueError, match="words_column='equations': 24 of 24 rows.*24 have no words"):
        words_trainer(tiny_folder, tmp_path, rows, words_column="equations")


def test_rows_without_words_are_counted(tiny_folder, sums, tmp_path, caplog):
    rows = sums.map(
        lambda row, index: {"condensed_reasoning": "" if index < 3 else row["condensed_reasoning"]}, with_indices=True
    )
    rows = rows.map(
        lambda row, index: {"condensed_reasoning": "9" * 40 if index == 5 else row["condensed_reasoning"]},
        with_indices=True,
    )
    trainer = words_trainer(tiny_folder, tmp_path, rows)
    assert "leaves out 4 of 24 rows (3 have no words" in caplog.text and "1 have more words than" in caplog.text
    trainer.train()
    trainer.evaluate(rows.select(range(3)))


def test_rows_without_words_do_not_lower_the_words_loss(tiny_folder, sums, tmp_path):
    fewer = sums.map(
        lambda row, index: {"condensed_reasoning": "" if index % 8 else row["condensed_reasoning"]}, with_indices=True
    )
    with_words = fewer.filter(lambda row: row["condensed_reasoning"])
    trainer = words_trainer(tiny_folder, tmp_path, sums, per_device_eval_batch_size=1)
    found, wanted = (trainer.evaluate(rows) for rows in (fewer, with_words))
    assert len(fewer) == 24 and len(with_words) == 3
    assert (
        found["eval_words_loss"] == pytest.approx(wanted["eval_words_loss"], rel=1e-4) and found["eval_words_loss"] > 1
    )


def test_bad_input(tiny_folder, sums, tmp_path):
    with pytest.raises(
        ValueError, match="words_max_steps=3.*needs a generator that writes words.*thought_length='fixed'"
    ):
        words_trainer(tiny_folder, tmp_path, sums, fields={"thought_length": "fixed"})
    with pytest.raises(ValueError, match="words_column='thoughts': 24 of 24 rows.*columns are"):
        words_trainer(tiny_folder, tmp_path, sums, words_column="thoughts")
    with pytest.raises(ValueError, match="24 have more words than num_implicit_tokens"):
        words_trainer(tiny_folder, tmp_path, sums, fields={"num_implicit_tokens": 3})
    with pytest.raises(ValueError, match="24 hold the end-of-thought token"):
        ends = [AutoTokenizer.from_pretrained(tiny_folder / "host")("+")["input_ids"][0]]
        words_trainer(tiny_folder, tmp_path, sums, fields={"end_of_thought_token_ids": ends})
    with pytest.raises(ValueError, match="num_implicit_tokens=1 leaves no room"):
        words_trainer(tiny_folder, tmp_path, sums, fields={"num_implicit_tokens": 1})
    with pytest.raises(ValueError, match="step_weight=1.0: steps are divided"):
        words_trainer(tiny_folder, tmp_path, sums, step_weight=1.0)
    with pytest.raises(ValueError, match="words_max_steps=-1"):
        words_trainer(tiny_folder, tmp_path, sums, words_max_steps=-1)
    with pytest.raises(ValueError, match="lr_scheduler_type=.*cannot start anew"):
        words_trainer(
            tiny_folder,
            tmp_path,
            sums,
            lr_scheduler_type="reduce_lr_on_plateau",
            eval_strategy="steps",
            eval_dataset=sums,
        ).train()
