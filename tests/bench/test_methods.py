"""The bench's methods: each held to its definition, and each learns a toy task."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf.bench.catalogue import BENCH_METHODS, SOFT_WORDS, UNTRAINED, chosen
from semcot_hf.bench.methods import coconut, codi, icot, semcot, simcot, training
from semcot_hf.bench.methods.finetuning import TextModel
from semcot_hf.bench.methods.latents import LatentModel
from semcot_hf.bench.methods.pause import PauseModel
from semcot_hf.bench.methods.token_rows import BenchRow, tokenize_rows
from semcot_hf.bench.methods.training import TrainingSetup, fit
from semcot_hf.bench.tasks.pretraining import fresh_model
from semcot_hf.data.tasks import facts
from semcot_hf.demo import HOST_PATH
from semcot_hf.evaluation import answer_questions
from semcot_hf.inference.prompting import ANSWER_PROMPT, answer_prompt_ids, pad_left, prompt_text

WORDS = {"Ann": "red", "Bob": "blue", "Cal": "green", "Dan": "pink"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(HOST_PATH)


def tiny(tokenizer, seed=0):
    """Random weights, wide enough for every input token to matter."""
    torch.manual_seed(seed)
    model = fresh_model(tokenizer, 2, 32).eval()
    for weight in model.parameters():
        weight.data.mul_(8 if weight.dim() > 1 else 1)
    return model


def letter_rows(count=6):
    return facts.generate(count, seed=3, min_steps=2, max_steps=4)


def prompts_of(tokenizer, rows):
    made = [tokenizer(prompt_text(tokenizer, row["query"]) + ANSWER_PROMPT)["input_ids"] for row in rows]
    return pad_left(made, tokenizer.pad_token_id)


def test_rows_are_the_tokens_of_the_whole_text(tokenizer):
    for row, made in zip(letter_rows(), tokenize_rows(tokenizer, letter_rows()), strict=True):
        assert tokenizer.decode(made.prompt) == prompt_text(tokenizer, row["query"])
        assert made.reasoning == tokenizer(row["reasoning"], add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode(step).strip() for step in made.steps] == row["steps"]
        assert tokenizer.decode(made.answer) == f"{ANSWER_PROMPT} {row['answer']}<|end|>"


# Latents


@torch.no_grad()
def think_slowly(model, ids, mask, count):
    """Coconut's recurrence without a cache: the whole input again for each latent."""
    embeds = model.get_input_embeddings()(ids)
    latents = []
    for _ in range(count):
        where = (mask.cumsum(dim=1) - 1).clamp(min=0)
        states = model.host.base_model(inputs_embeds=embeds, attention_mask=mask, position_ids=where).last_hidden_state
        latents.append(model.feed(states[:, -1]))
        embeds = torch.cat([embeds, latents[-1][:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.stack(latents, dim=1)


def test_latents_are_fed_back_as_without_a_cache_and_padding_changes_nothing(tokenizer):
    model = codi.CodiModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 4).eval()
    ids, mask = prompts_of(tokenizer, letter_rows())
    tail = len(model.config.answer_prompt_ids)
    slow = think_slowly(model, ids[:, :-tail], mask[:, :-tail], 4)
    torch.testing.assert_close(model.implicit_embeddings(ids, mask), slow, atol=1e-5, rtol=1e-4)
    alone = torch.cat([model.implicit_embeddings(row[kept.bool()][None]) for row, kept in zip(ids, mask, strict=True)])
    torch.testing.assert_close(alone, slow, atol=1e-5, rtol=1e-4)


def test_coconuts_first_latent_is_the_last_hidden_state_of_the_question_at_the_size_of_words(tokenizer):
    host = tiny(tokenizer)
    model = coconut.CoconutModel(host, answer_prompt_ids(tokenizer))
    ids, _ = prompts_of(tokenizer, letter_rows(1))
    states = host(ids[:, : -len(model.config.answer_prompt_ids)], output_hidden_states=True).hidden_states[-1]
    first = model.implicit_embeddings(ids)[:, 0]
    torch.testing.assert_close(first, model.scale * states[:, -1], atol=1e-5, rtol=1e-4)
    # At the size of word embeddings.
    assert first.norm() < 2 * host.get_input_embeddings().weight.norm(dim=1).mean() < 0.8 * states[:, -1].norm()


def test_generation_reads_the_latents_before_the_answer_prompt(tokenizer):
    host = tiny(tokenizer)
    model = LatentModel(host, answer_prompt_ids(tokenizer), 3).eval()
    ids, mask = prompts_of(tokenizer, letter_rows())
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(ids, mask, **options)
    latents = model.implicit_embeddings(ids, mask)
    assert torch.equal(model.generate(ids, mask, implicit_embeddings=latents, **options), made)
    alone = host.generate(ids, attention_mask=mask, **options)
    assert torch.equal(model.generate(ids, mask, num_implicit_tokens=0, **options), alone)
    for row in range(len(ids)):
        own = ids[row][mask[row].bool()][None]
        tail = len(model.config.answer_prompt_ids)
        words = host.get_input_embeddings()(own)
        inputs = torch.cat([words[:, :-tail], latents[row : row + 1], words[:, -tail:]], dim=1)
        assert torch.equal(host.generate(inputs_embeds=inputs, **options)[0], made[row, ids.shape[1] :])
    other = model.generate(ids, mask, implicit_embeddings=torch.randn_like(latents) * 3, **options)
    assert not torch.equal(other, made)


def test_latent_loss_equals_the_loss_without_a_cache(tokenizer):
    model = LatentModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 2)
    rows = tokenize_rows(tokenizer, letter_rows(4))
    loss, latents, _ = model.latent_loss([row.prompt for row in rows], [row.answer for row in rows], 2)
    terms = []
    for index, row in enumerate(rows):
        words = model.get_input_embeddings()(torch.tensor([row.prompt + row.answer]))
        cut = len(row.prompt)
        inputs = torch.cat([words[:, :cut], latents[index : index + 1], words[:, cut:]], dim=1)
        logits = model.host(inputs_embeds=inputs).logits[0, cut + 1 : -1]
        terms += torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="none").tolist()
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


# Definitions


def test_fine_tuning_supervises_what_follows_the_question_only(tokenizer):
    rows = tokenize_rows(tokenizer, letter_rows(3))
    host = tiny(tokenizer)
    loss = TextModel(host, lambda row, _: row.reasoning + row.answer)(rows, 0.0)
    terms = []
    for row in rows:
        text = row.reasoning + row.answer
        logits = host(torch.tensor([row.prompt + text])).logits[0, len(row.prompt) - 1 : -1]
        terms += torch.nn.functional.cross_entropy(logits, torch.tensor(text), reduction="none").tolist()
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_icot_removes_from_the_left_until_only_the_answer_is_left():
    row = BenchRow(prompt=[1], steps=[list(range(10)), list(range(10, 20))], answer=[99])
    assert icot.remaining(row, 0, 0) == [*range(20), 99]
    assert icot.remaining(row, 1, 2) == [*range(10, 20), 99]
    assert icot.remaining(row, 3, 0) == [99]
    offsets = [icot.removal_offset(value / 10_000) for value in range(10_000)]
    assert sum(offset == 0 for offset in offsets) / 10_000 == pytest.approx(1 - 2.718281828**-4, abs=1e-3)


def test_coconut_replaces_steps_by_latents_stage_by_stage(tokenizer):
    model = coconut.CoconutModel(tiny(tokenizer), answer_prompt_ids(tokenizer))
    rows = tokenize_rows(tokenizer, letter_rows(3))
    counts = []
    for progress in (0.0, 0.2, 0.3, 0.45, 0.9):
        _, latents = model.losses(rows, progress)
        counts.append(0 if latents is None else latents.shape[1])
    assert counts == [0, 2, 4, 6, 6] and model.config.num_implicit_tokens == 6
    assert coconut.remaining(rows[0], 4) == rows[0].answer


def test_codi_distils_the_state_before_the_answer_and_teaches_only_the_student(tokenizer):
    model = codi.CodiModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 2, hidden_weight=0.0)
    rows = tokenize_rows(tokenizer, letter_rows(3))
    plain, _ = model.losses(rows, 0.0)
    model.hidden_weight = 1.0
    assert model.losses(rows, 0.0)[0] > plain
    taught = [codi.taught_reasoning(row) for row in rows]
    reasoning = [words + row.answer for words, row in zip(taught, rows, strict=True)]
    _, _, output = model.latent_loss([row.prompt for row in rows], reasoning, 0)
    before = len(model.config.answer_prompt_ids) - 1
    states = codi._states(output, reasoning, [len(words) + before for words in taught])
    for index, row in enumerate(rows):
        ids = torch.tensor([row.prompt + taught[index] + row.answer[: before + 1]])
        alone = torch.stack(model.host(ids, output_hidden_states=True).hidden_states[1:])[:, 0, -1]
        torch.testing.assert_close(states[:, index], alone, atol=1e-5, rtol=1e-4)


def test_simcot_adds_a_decoder_that_tells_each_latents_step(tokenizer):
    base = codi.CodiModel(tiny(tokenizer), answer_prompt_ids(tokenizer), simcot.NUM_LATENTS)
    model = simcot.StepSupervised(base, tiny(tokenizer, 1), tokenizer.eos_token_id)
    rows = tokenize_rows(tokenizer, letter_rows(2))
    ids, mask = simcot.step_tensors(rows, simcot.NUM_LATENTS, tokenizer.eos_token_id, 0)
    told = [tokenizer.decode(step[kept.bool()]).strip() for step, kept in zip(ids[0], mask[0], strict=True)]
    assert told[: len(rows[0].steps)] == [f"{step}<|end|>" for step in letter_rows(2)[0]["steps"]]
    assert model(rows, 0.0) > base(rows, 0.0)
    model(rows, 0.0).backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())


def test_pause_is_one_learned_embedding_k_times(tokenizer):
    model = PauseModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 3)
    ids, mask = prompts_of(tokenizer, letter_rows(2))
    assert torch.equal(model.implicit_embeddings(ids, mask), model.pause.detach().expand(2, 3, -1))
    model(tokenize_rows(tokenizer, letter_rows(2)), 0.0).backward()
    assert model.pause.grad.abs().sum() > 0


def test_wide_hosts_are_trained_by_adapters_in_codi(tokenizer):
    wide = fresh_model(tokenizer, 1, 256)
    trained = {name for name, weight in codi.add_lora(wide).named_parameters() if weight.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert all(weight.requires_grad for weight in codi.add_lora(tiny(tokenizer)).parameters())


def test_methods_are_chosen_by_name():
    assert chosen(["all"]) == list(BENCH_METHODS)
    with pytest.raises(ValueError, match="methods=\\['cott'\\]: choose among"):
        chosen(["cott"])


# Each learns


def toy_rows():
    """Which colour belongs to a name: told in words by the host, but not at once."""
    rows = []
    for name, word in WORDS.items():
        for other in WORDS:
            steps = [f"{name} {word}.", f"It ends in {word}."]
            rows.append(
                {
                    "query": f"Where is {other}? What colour is {name}?",
                    "reasoning": " ".join(steps),
                    "condensed_reasoning": f"{name} {word}.",
                    "answer": word,
                    "steps": steps,
                }
            )
    return rows


def toy_setup(tokenizer, host, folder, work, steps, rate):
    return TrainingSetup(
        host=host,
        generator=str(folder),
        tokenizer=tokenizer,
        train_rows=toy_rows(),
        num_implicit_tokens=2,
        steps_per_token=1,
        coconut=(2, 3),
        words_column="reasoning",
        words_limit=16,
        joint_share=0.0,
        steps=steps,
        batch_size=16,
        learning_rate=rate,
        seed=0,
        device="cpu",
        work_dir=work,
    )


@pytest.fixture(scope="module")
def toy_host(tokenizer, tmp_path_factory):
    """Folder of a host that has learned to reason in words."""
    folder = tmp_path_factory.mktemp("toy") / "host"
    torch.manual_seed(0)
    host = fresh_model(tokenizer, 2, 48)
    setup = toy_setup(tokenizer, host, folder, folder.parent / "work", 120, 5e-3)
    fit(TextModel(host, lambda row, _: row.reasoning + row.answer), tokenize_rows(tokenizer, toy_rows()), setup)
    host.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("steps", [3, 41])
def test_operations_are_those_of_all_steps(tokenizer, toy_host, tmp_path, steps):
    class Product(torch.nn.Module):
        """A forward and a backward product of (16, 8) by (8, 4)."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 4, bias=False)

        def forward(self, rows, progress):
            return self.layer(torch.ones(len(rows), 8)).sum()

    setup = toy_setup(tokenizer, None, toy_host, tmp_path, steps, 1e-3)
    assert fit(Product(), list(range(64)), setup)["operations"] == steps * 2 * (2 * 16 * 8 * 4)


def share_right(model, tokenizer, **options):
    rows = toy_rows()
    answers = answer_questions(model, tokenizer, [row["query"] for row in rows], max_new_tokens=24, **options)
    said = [answer.output.rpartition("Answer:")[2].strip() for answer in answers]
    return sum(text == row["answer"] for text, row in zip(said, rows, strict=True)) / len(rows)


# Tokens that are the same for every question cannot say which word belongs to a name.
@pytest.mark.parametrize("name", [name for name in BENCH_METHODS if name != "prompt_tuning"])
def test_each_method_learns_a_toy_task(name, tokenizer, toy_host, tmp_path):
    host = AutoModelForCausalLM.from_pretrained(toy_host)
    before = copy.deepcopy(host.state_dict())
    at_once = share_right(host, tokenizer, method="no_cot")
    # Adapters have less to turn than whole weights, and a proposer of random weights more to learn.
    steps = {"semcot_host_generator": 150, "lrt": 240, "semcot_proposer": 240}.get(name, 60)
    trained = BENCH_METHODS[name].train(toy_setup(tokenizer, host, toy_host, tmp_path, steps, 5e-3))
    options = {} if trained.answer_prompt is None else {"answer_prompt": trained.answer_prompt}
    right = share_right(trained.model, tokenizer, method=trained.answered_by, **options)
    assert right >= 0.9 > at_once, f"{name}: {at_once} before, {right} after"
    if name == UNTRAINED:
        assert not trained.trained and trained.trainable_parameters == trained.operations == 0 == len(trained.losses)
    else:
        assert trained.trainable_parameters > 0 and len(trained.losses) > 1 and trained.operations > 1e6
    if BENCH_METHODS[name].frozen_host:
        after = trained.model.host.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_prompt_tuning_teaches_a_frozen_host_what_needs_no_question(tokenizer, toy_host, tmp_path):
    host = AutoModelForCausalLM.from_pretrained(toy_host)
    before, word = copy.deepcopy(host.state_dict()), toy_rows()[0]["answer"]
    setup = toy_setup(tokenizer, host, toy_host, tmp_path, 60, 5e-2)
    setup = replace(setup, train_rows=[{**row, "answer": word} for row in toy_rows()])
    trained = BENCH_METHODS["prompt_tuning"].train(setup)
    answers = answer_questions(trained.model, tokenizer, [row["query"] for row in toy_rows()], method="semcot")
    assert {answer.output.rpartition("Answer:")[2].strip() for answer in answers} == {word}
    assert trained.trainable_parameters == 2 * host.config.hidden_size
    assert all(torch.equal(trained.model.host.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    "name", [name for name, method in BENCH_METHODS.items() if method.train.__module__ != semcot.__name__]
)
def test_weights_of_16_bits_are_trained_in_float32(name, tokenizer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    host = fresh_model(tokenizer, 1, 256).bfloat16()
    host.save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "generator")
    loss, trained_dtypes = training._ModuleTrainer.compute_loss, set()

    def watch(self, model, *args, **kwargs):
        trained_dtypes.update(weight.dtype for weight in model.parameters() if weight.requires_grad)
        return loss(self, model, *args, **kwargs)

    monkeypatch.setattr(training._ModuleTrainer, "compute_loss", watch)
    trained = BENCH_METHODS[name].train(toy_setup(tokenizer, host, tmp_path / "generator", tmp_path / "work", 2, 1e-3))
    assert trained_dtypes == {torch.float32}
    assert {weight.dtype for weight in getattr(trained.model, "host", trained.model).parameters()} == {torch.bfloat16}
    queries = [row["query"] for row in toy_rows()]
    assert len(answer_questions(trained.model, tokenizer, queries, method=trained.answered_by)) == len(queries)


@pytest.mark.parametrize("name", ["codi", "simcot_codi"])
def test_adapters_are_merged_before_anything_is_timed(name, tokenizer, tmp_path):
    torch.manual_seed(0)
    wide = fresh_model(tokenizer, 1, 256)
    before = copy.deepcopy(wide.state_dict())
    trained = BENCH_METHODS[name].train(toy_setup(tokenizer, wide, tmp_path, tmp_path, 2, 1e-2))
    after = trained.model.host.state_dict()
    assert after.keys() == before.keys() and not any("lora" in key for key in trained.model.state_dict())
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    assert changed == {key for key in before if key.endswith("_proj.weight")}
    assert trained.trainable_parameters > 1e5


def test_soft_words_are_words_of_any_length_that_the_librarys_words_phase_teaches(tokenizer, toy_host, tmp_path):
    # Rows of two to four words, some of several tokens.
    longer = {"red": "red it is", "blue": "blue", "green": "green on and on", "pink": "pink"}
    rows = [{**row, "short": f"{row['steps'][0].split()[0]} {longer[row['answer']]}"} for row in toy_rows()]
    sizes = {len(tokenizer(row["short"])["input_ids"]) for row in rows}
    assert len(sizes) > 1 and max(sizes) > 4
    setup = replace(
        toy_setup(tokenizer, AutoModelForCausalLM.from_pretrained(toy_host), toy_host, tmp_path, 160, 5e-3),
        train_rows=rows,
        words_column="short",
        words_limit=24,
    )
    before = copy.deepcopy(setup.host.state_dict())
    trained = BENCH_METHODS[SOFT_WORDS].train(setup)
    assert trained.seen_questions == 160 * 16 and trained.model.config.thought_length == "adaptive"
    prompts, mask = prompts_of(tokenizer, rows)
    said = trained.model.implicit_text(prompts, mask)
    assert sum(text.strip() == row["short"] for text, row in zip(said, rows, strict=True)) >= 0.9 * len(rows)
    after = trained.model.host.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    # The generator alone has learned its own answer too.
    assert share_right(trained.model, tokenizer, method="generator") >= 0.9


def test_soft_words_are_trained_through_the_host_where_asked(tokenizer, toy_host, tmp_path):
    host = AutoModelForCausalLM.from_pretrained(toy_host)
    setup = toy_setup(tokenizer, host, toy_host, tmp_path, 10, 5e-3)
    plain = BENCH_METHODS[SOFT_WORDS].train(setup).model.generator.state_dict()
    before = copy.deepcopy(host.state_dict())
    joint = BENCH_METHODS[SOFT_WORDS].train(replace(setup, joint_share=0.5))
    assert joint.seen_questions == 15 * 16 and joint.losses[-1][0] == 15
    after = joint.model.generator.state_dict()
    assert any(not torch.equal(after[name], plain[name]) for name in plain)
    assert all(torch.equal(joint.model.host.state_dict()[name], before[name]) for name in before)


def test_words_that_cannot_be_learned_are_refused_with_the_reason(tokenizer, toy_host, tmp_path):
    setup = toy_setup(tokenizer, AutoModelForCausalLM.from_pretrained(toy_host), toy_host, tmp_path, 2, 1e-3)
    with pytest.raises(ValueError, match="16 of 16 rows .* cannot be learned as words .*have more words than"):
        BENCH_METHODS[SOFT_WORDS].train(replace(setup, words_limit=2))
    rows = [{**row, "condensed_reasoning": ""} for row in toy_rows()[:9]] + toy_rows()[9:]
    with pytest.raises(ValueError, match="9 of 16 rows .*have no words"):
        BENCH_METHODS[SOFT_WORDS].train(replace(setup, train_rows=rows, words_column="condensed_reasoning"))
    with pytest.raises(ValueError, match="9 of 16 training rows have no condensed reasoning"):
        BENCH_METHODS["condensed"].train(replace(setup, train_rows=rows))


def test_every_training_of_semcot_is_told_its_precision(tokenizer, toy_host, tmp_path, monkeypatch):
    told = {}
    for made in (semcot.SemCoTAlignmentConfig, semcot.SemCoTDistillationConfig):

        def noted(*args, made=made, **options):
            told[made.__name__] = options["bf16"]
            return made(*args, **options)

        monkeypatch.setattr(semcot, made.__name__, noted)
    host = AutoModelForCausalLM.from_pretrained(toy_host)
    BENCH_METHODS["semcot"].train(toy_setup(tokenizer, host, toy_host, tmp_path, 1, 1e-3))
    # Left out, the trainers would take bfloat16 on a GPU, where those of the other methods do not.
    assert told == {"SemCoTAlignmentConfig": False, "SemCoTDistillationConfig": False}


# Options of each training of stage 2 that are not the paper's.
ABLATIONS = {
    "semcot": {},
    "semcot_no_encoder": {"alignment_view": "mean_pooled"},
    "semcot_no_alignment": {"alpha": 0.0},
    "semcot_no_warmup": {"projection_warmup": 0.0},
    "semcot_host_generator": {},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_differ_from_semcot_in_what_they_leave_out_alone(name, tokenizer, toy_host, tmp_path, monkeypatch):
    class Begins(Exception):
        """Stage 2 begins."""

    def begin(**options):
        raise Begins(options)

    monkeypatch.setattr(semcot, "SemCoTDistillationTrainer", begin)
    fresh_model(tokenizer, 1, 48).save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "generator")
    host = AutoModelForCausalLM.from_pretrained(toy_host)
    with pytest.raises(Begins) as begun:
        BENCH_METHODS[name].train(toy_setup(tokenizer, host, tmp_path / "generator", tmp_path, 1, 1e-3))
    options = begun.value.args[0]
    args, model, lora = options["args"], options["model"], options["peft_config"]
    paper = {"alpha": 0.25, "alignment_view": "embedding", "projection_warmup": 0.1}
    assert {option: getattr(args, option) for option in paper} == paper | ABLATIONS[name]
    assert (options["alignment_encoder"] is None) == (name in ("semcot_no_encoder", "semcot_no_alignment"))
    if name != "semcot_host_generator":
        assert model.generator.config.num_hidden_layers == 1 and lora is None
        return
    # A copy of the host, of which adapters are trained and whose states are read as they are.
    pairs = list(zip(model.generator.parameters(), host.base_model.parameters(), strict=True))
    assert all(torch.equal(own, other) and own is not other for own, other in pairs)
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (16, 32, {"q_proj", "v_proj"})
    assert model.config.projection == "identity"
