"""Losses of the bench's methods against their definitions, one row at a time, without cache, padding or batches."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.bench.catalogue import BENCH_METHODS
from semcot_hf.bench.methods import coconut, codi, icot, lrt, queries, simcot, training
from semcot_hf.bench.methods.finetuning import TextModel, train_cot, train_no_cot
from semcot_hf.bench.methods.latents import LatentModel
from semcot_hf.bench.methods.pause import PauseModel, PromptTuningModel
from semcot_hf.bench.methods.softcot import SoftCoTModel
from semcot_hf.bench.methods.token_rows import tokenize_rows
from semcot_hf.bench.methods.training import TrainingSetup
from semcot_hf.bench.tasks.pretraining import fresh_model
from semcot_hf.data.tasks import facts
from semcot_hf.demo import HOST_PATH
from semcot_hf.inference.prompting import answer_prompt_ids
from semcot_hf.training.operations import OperationCounter


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


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Questions with fewer steps than latents, as many, and more."""
    # One step a person, and one that names the town.
    made = [facts.generate(1, seed=3, min_steps=people, max_steps=people)[0] for people in (1, 5, 7)]
    return tokenize_rows(tokenizer, made)


# The slow path


def written(host, row, latents, text):
    """Return each token's cross-entropy (length,), and the states of all layers (layers, 1 + length, hidden).

    The states begin at the input before the text. `latents` is a list of (hidden,).
    """
    words = host.get_input_embeddings()
    inputs = torch.cat([words(torch.tensor(row.prompt)), *(latent[None] for latent in latents)])
    start = len(inputs) - 1
    inputs = torch.cat([inputs, words(torch.tensor(text))])
    output = host(inputs_embeds=inputs[None], use_cache=False, output_hidden_states=True)
    terms = F.cross_entropy(output.logits[0, start:-1], torch.tensor(text), reduction="none")
    return terms, torch.stack(output.hidden_states[1:])[:, 0, start:]


def latents_of(host, row, count, feed=lambda state: state):
    """Return latents one by one, each from the last hidden state of the whole input so far."""
    latents = []
    for _ in range(count):
        inputs = host.get_input_embeddings()(torch.tensor(row.prompt))
        inputs = torch.cat([inputs, *(latent[None] for latent in latents)])
        state = host.base_model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0, -1]
        latents.append(feed(state))
    return latents


def codi_slowly(host, projection, rows, count):
    """Return teacher's, student's and hidden-state loss as written in the paper, and the student's latents."""
    teacher_terms, student_terms, distances, latents = [], [], [], []
    pairs = []
    for row in rows:
        # Without the last step, which states the answer.
        reasoning = [token for step in row.steps[:-1] for token in step]
        terms, states = written(host, row, [], reasoning + row.answer)
        teacher_terms.append(terms)
        latents.append(latents_of(host, row, count, projection))
        # The answer prompt is the first part of the answer's tokens; its last one comes before the answer itself.
        prompt = len(row.answer) - len(row.answer[row.answer.index(COLON) + 1 :])
        teacher = states[:, len(reasoning) + prompt].detach()
        terms, states = written(host, row, latents[-1], row.answer)
        student_terms.append(terms)
        pairs.append((states[:, prompt], teacher))
    for layer in range(len(pairs[0][0])):
        student, teacher = (torch.stack([pair[index][layer] for pair in pairs]) for index in (0, 1))
        apart = (student - teacher).abs()
        smooth = torch.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean()
        scale = ((teacher - teacher.mean()) ** 2).sum().div(teacher.numel() - 1).sqrt()
        distances.append(smooth / scale)
    return torch.cat(teacher_terms).mean(), torch.cat(student_terms).mean(), torch.stack(distances).mean(), latents


def decoded_slowly(decoder, latents, rows, end, count):
    """Return the mean cross-entropy of each latent's step with its end, read from the latent alone.

    Surplus steps join the last of `count` latents, which may come in a later stage of the curriculum.
    """
    terms = []
    for own, row in zip(latents, rows, strict=True):
        steps = [[*step, end] for step in row.steps]
        if len(steps) > count:
            steps = [*steps[: count - 1], [token for step in row.steps[count - 1 :] for token in step] + [end]]
        for latent, step in zip(own, steps, strict=False):
            inputs = torch.cat([latent[None], decoder.get_input_embeddings()(torch.tensor(step[:-1]))])
            logits = decoder(inputs_embeds=inputs[None], use_cache=False).logits[0]
            terms.append(F.cross_entropy(logits, torch.tensor(step), reduction="none"))
    return torch.cat(terms).mean()


COLON = AutoTokenizer.from_pretrained(HOST_PATH)("\nAnswer:", add_special_tokens=False)["input_ids"][-1]


def assert_same_loss_and_gradients(module, slow, fast):
    """Compare two losses, and their gradients in every parameter of `module`."""
    assert fast.item() == pytest.approx(slow.item(), rel=1e-4)
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    found = torch.autograd.grad(fast, parameters, allow_unused=True)
    expected = torch.autograd.grad(slow, parameters, allow_unused=True)
    for made, wanted in zip(found, expected, strict=True):
        assert (made is None or not made.any()) == (wanted is None or not wanted.any())
        if made is not None and wanted is not None:
            scale = wanted.abs().max().item() + 1e-6
            torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-3 * scale)


def test_fine_tuning_learns_reasoning_and_answer_or_the_answer_alone(tokenizer, rows):
    host = tiny(tokenizer)
    for text in (lambda row, _: row.answer, lambda row, _: row.reasoning + row.answer):
        slow = torch.cat([written(host, row, [], text(row, 0))[0] for row in rows]).mean()
        assert_same_loss_and_gradients(host, slow, TextModel(host, text)(rows, 0.0))


@pytest.mark.parametrize("gamma", [1.0, 20.0])
def test_codi_is_teacher_student_and_hidden_states(tokenizer, rows, gamma):
    model = codi.CodiModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 3, hidden_weight=gamma)
    teacher, student, hidden, _ = codi_slowly(model.host, model.projection, rows, 3)
    # No part is small enough to be missed.
    assert min(teacher.item(), student.item(), hidden.item()) > 0.1
    assert_same_loss_and_gradients(model, teacher + student + gamma * hidden, model(rows, 0.5))


def scaled(host):
    """Return a function that scales a state to the size of word embeddings, measured on the first 64 of them."""
    with torch.no_grad():
        words = host.get_input_embeddings()(torch.arange(64))
        states = host.base_model(inputs_embeds=words[None], use_cache=False).last_hidden_state
    factor = (words.square().mean() / states.square().mean()).sqrt()
    assert factor < 0.8
    return lambda state: state * factor


# progress: latents, steps in words that are gone (None: all).
STAGES = {0.0: (0, 0), 0.2: (2, 1), 0.3: (4, 2), 0.45: (6, 3), 0.6: (6, None), 0.99: (6, None)}


@pytest.mark.parametrize("progress", STAGES)
def test_coconut_learns_what_remains_after_its_latents(tokenizer, rows, progress):
    model = coconut.CoconutModel(tiny(tokenizer), answer_prompt_ids(tokenizer))
    count, gone = STAGES[progress]
    terms, feed = [], scaled(model.host)
    for row in rows:
        left = [] if gone is None else [token for step in row.steps[gone:] for token in step]
        terms.append(written(model.host, row, latents_of(model.host, row, count, feed), left + row.answer)[0])
    assert_same_loss_and_gradients(model, torch.cat(terms).mean(), model(rows, progress))


def test_simcot_adds_the_decoders_loss_to_codis(tokenizer, rows):
    base = codi.CodiModel(tiny(tokenizer), answer_prompt_ids(tokenizer), simcot.NUM_LATENTS)
    model = simcot.StepSupervised(base, tiny(tokenizer, 1), tokenizer.eos_token_id)
    teacher, student, hidden, latents = codi_slowly(base.host, base.projection, rows, simcot.NUM_LATENTS)
    decoded = decoded_slowly(model.decoder, latents, rows, tokenizer.eos_token_id, simcot.NUM_LATENTS)
    assert decoded.item() > 0.1
    assert_same_loss_and_gradients(model, teacher + student + hidden + decoded, model(rows, 0.5))


@pytest.mark.parametrize(("progress", "count", "gone"), [(0.0, 0, 0), (0.1, 1, 1), (0.2, 2, 2), (0.6, 6, None)])
@pytest.mark.parametrize("expanded", [False, True])
def test_simcot_adds_the_decoders_loss_to_coconuts(tokenizer, rows, progress, count, gone, expanded):
    base = coconut.CoconutModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 1, simcot.NUM_LATENTS)
    # From an expanded Coconut on: 0.55, where its last stage begins.
    begins = {"begins": 0.55} if expanded else {}
    model = simcot.StepSupervised(base, tiny(tokenizer, 1), tokenizer.eos_token_id, **begins)
    terms, latents, feed = [], [], scaled(base.host)
    for row in rows:
        left = [] if gone is None else [token for step in row.steps[gone:] for token in step]
        latents.append(latents_of(base.host, row, count, feed))
        terms.append(written(base.host, row, latents[-1], left + row.answer)[0])
    slow = torch.cat(terms).mean()
    if count and not (expanded and progress < 0.55):
        slow = slow + decoded_slowly(model.decoder, latents, rows, tokenizer.eos_token_id, simcot.NUM_LATENTS)
    assert_same_loss_and_gradients(model, slow, model(rows, progress))


def test_pause_reads_the_same_learned_embedding_k_times(tokenizer, rows):
    model = PauseModel(tiny(tokenizer), answer_prompt_ids(tokenizer), 3)
    slow = torch.cat([written(model.host, row, [model.pause] * 3, row.answer)[0] for row in rows]).mean()
    assert_same_loss_and_gradients(model, slow, model(rows, 0.0))


def test_prompt_tuning_reads_k_learned_embeddings_of_a_frozen_host(tokenizer, rows):
    model = PromptTuningModel(tiny(tokenizer).bfloat16(), answer_prompt_ids(tokenizer), 3).train()
    words = model.host.get_input_embeddings().weight
    assert model.pause.dtype == torch.float32 and len({tuple(row.tolist()) for row in model.pause}) == 3
    assert all(any(torch.equal(row, word.float()) for word in words) for row in model.pause)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["pause"]
    assert not model.host.training
    model.host.float()
    slow = torch.cat([written(model.host, row, list(model.pause), row.answer)[0] for row in rows]).mean()
    assert_same_loss_and_gradients(model, slow, model(rows, 0.0))
    ids = torch.tensor([rows[0].prompt + answer_prompt_ids(tokenizer)])
    assert torch.equal(model.implicit_embeddings(ids, num_implicit_tokens=2)[0], model.pause[:2])
    with pytest.raises(ValueError, match="num_implicit_tokens=4: the model has 3"):
        model.implicit_embeddings(ids, num_implicit_tokens=4)


@pytest.mark.parametrize("progress", STAGES)
def test_staged_pause_is_coconut_with_a_learned_embedding_as_every_latent(tokenizer, rows, progress):
    model = coconut.StagedPauseModel(tiny(tokenizer), answer_prompt_ids(tokenizer))
    count, gone = STAGES[progress]
    terms = []
    for row in rows:
        left = [] if gone is None else [token for step in row.steps[gone:] for token in step]
        terms.append(written(model.host, row, [model.pause] * count, left + row.answer)[0])
    assert_same_loss_and_gradients(model, torch.cat(terms).mean(), model(rows, progress))


def lrt_slowly(model, row, refines):
    """Return all latents of one row and the change of their proposals, from what the paper's parts are."""
    width = model.queries.shape[1]
    words = model.reader(model.host.get_input_embeddings()(torch.tensor(row.prompt)))
    for place in range(len(words)):
        angles = [place / 10_000 ** (2 * (index // 2) / width) for index in range(width)]
        wave = [math.cos(angle) if index % 2 else math.sin(angle) for index, angle in enumerate(angles)]
        words = torch.cat([words[:place], words[place : place + 1] + torch.tensor(wave), words[place + 1 :]])
    states = torch.cat([words, model.queries])[None]
    for layer in model.proposer.layers:
        states = layer(states)
    states = model.proposer.norm(states)[0]
    context, proposals = states[: len(row.prompt)], states[len(row.prompt) :]
    change = torch.zeros_like(proposals)
    if refines:
        # The refiner is trained behind the finished proposer.
        context, proposals = context.detach(), proposals.detach()
        for _ in range(4):
            state = model.refiner((proposals + change)[None], context[None])[0]
            change = torch.tanh(model.change(state)) * 0.5
    return list(model.writer(proposals + change)), change


@pytest.mark.parametrize("progress", [0.0, 0.49, 0.5, 0.99])
def test_lrt_learns_proposals_then_bounded_changes_of_them_for_a_frozen_host(tokenizer, rows, progress):
    torch.manual_seed(0)
    host = tiny(tokenizer)
    model = lrt.LrtModel(host, answer_prompt_ids(tokenizer)).train()
    torch.nn.init.normal_(model.change.weight)
    assert not any(weight.requires_grad for weight in host.parameters()) and not host.training
    terms, kept, changes, refines = [], [], [], progress >= 0.5
    for row in rows:
        latents, change = lrt_slowly(model, row, refines)
        # The answer alone is learned, behind 32 latents and behind the first four.
        assert len(latents) == 32
        terms.append(written(host, row, latents, row.answer)[0])
        kept.append(written(host, row, latents[:4], row.answer)[0])
        changes.append(change)
    assert all(change.abs().max() <= 0.5 for change in changes) and changes[0].any() == refines
    penalty = 0.01 * torch.stack(changes).square().mean()
    assert not refines or penalty > 1e-4
    loss = model(rows, progress)
    slow = torch.cat(terms).mean() / 2 + torch.cat(kept).mean() / 2 + penalty
    assert_same_loss_and_gradients(model, slow, loss)
    model(rows, progress).backward()
    moved = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved == ({"refiner", "change", "writer"} if refines else {"queries", "reader", "proposer", "writer"})


def test_lrt_keeps_the_first_four_of_its_queries(tokenizer, rows):
    torch.manual_seed(0)
    model = lrt.LrtModel(tiny(tokenizer), answer_prompt_ids(tokenizer)).eval()
    torch.nn.init.normal_(model.change.weight)
    for row in rows:
        ids = torch.tensor([row.prompt + answer_prompt_ids(tokenizer)])
        latents, _ = lrt_slowly(model, row, True)
        made = model.implicit_embeddings(ids)
        assert made.shape[1] == 4 == model.config.num_implicit_tokens
        torch.testing.assert_close(made[0], torch.stack(latents[:4]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="num_implicit_tokens=33: the model has 32 queries"):
        model.implicit_embeddings(ids, num_implicit_tokens=33)


def test_softcot_learns_a_projection_for_reasoning_and_answer(tokenizer, rows):
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        tiny(tokenizer), tiny(tokenizer, 1), num_implicit_tokens=3, answer_prompt_ids=[]
    ).eval()
    module, terms = SoftCoTModel(model), []
    assert [name for name, weight in module.named_parameters() if weight.requires_grad] == [
        "model.projection.weight",
        "model.projection.bias",
    ]
    thought = model.generator.get_input_embeddings().weight.mean(0)
    for row in rows:
        # The assistant reads the question and k <thought> tokens in one pass.
        read = model.generator.get_input_embeddings()(torch.tensor(row.prompt))
        read = torch.cat([read, thought.expand(3, -1)])
        states = model.generator(inputs_embeds=read[None], use_cache=False).last_hidden_state[0, -3:]
        text = row.reasoning + row.answer
        terms.append(written(model.host, row, list(model.projection(states)), text)[0])
    assert_same_loss_and_gradients(module, torch.cat(terms).mean(), module(rows, 0.0))


@pytest.mark.parametrize("fresh", [False, True])
def test_more_queries_in_training_than_at_inference_are_the_mean_of_both_losses(tokenizer, rows, fresh):
    host = tiny(tokenizer)
    generator = queries.fresh_reader(host) if fresh else tiny(tokenizer, 1)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        host, generator, num_implicit_tokens=2, answer_prompt_ids=answer_prompt_ids(tokenizer)
    ).eval()
    module, tail = queries.ManyQueries(model, 5), len(answer_prompt_ids(tokenizer))
    reads = model.generator.get_input_embeddings().weight
    if fresh:
        assert torch.equal(reads, host.get_input_embeddings().weight) and not reads.requires_grad
        assert len(model.generator.layers) == 2 and reads is not host.get_input_embeddings().weight
    terms = []
    for count in (5, 2):
        for row in rows:
            read = torch.cat([reads[torch.tensor(row.prompt)], model.thought_embedding.expand(count, -1)])
            states = model.generator(inputs_embeds=read[None], use_cache=False).last_hidden_state[0, -count:]
            # The answer prompt is given, not learned.
            terms.append(written(host, row, list(model.projection(states)), row.answer)[0][tail:])
    half = len(rows)
    slow = torch.cat(terms[:half]).mean() / 2 + torch.cat(terms[half:]).mean() / 2
    assert_same_loss_and_gradients(module, slow, module(rows, 0.0))


# Whole trainings


@pytest.fixture(autouse=True)
def count_operations_once(monkeypatch):
    """Counting takes longer than a step of so small a model."""
    monkeypatch.setattr(training, "OperationCounter", lambda: OperationCounter(1))


def a_setup(tokenizer, work, steps):
    return TrainingSetup(
        host=tiny(tokenizer),
        generator="",
        tokenizer=tokenizer,
        train_rows=facts.generate(8, seed=3, min_steps=5, max_steps=5),
        num_implicit_tokens=2,
        steps_per_token=1,
        coconut=(2, 3),
        words_column=None,
        words_limit=24,
        joint_share=0.0,
        steps=steps,
        batch_size=2,
        learning_rate=1e-5,
        seed=0,
        device="cpu",
        work_dir=work,
    )


@pytest.fixture
def texts_of_steps(monkeypatch):
    """Collect (prompt, continuation) pairs and the number of latents of every training step."""
    seen, loss = [], LatentModel.latent_loss

    def noted(self, prompts, continuations, count):
        seen.append((list(zip(prompts, continuations, strict=True)), count))
        return loss(self, prompts, continuations, count)

    monkeypatch.setattr(LatentModel, "latent_loss", noted)
    return seen


def test_icot_removes_eight_tokens_a_stage_and_all_in_the_last_quarter(tokenizer, tmp_path, texts_of_steps):
    steps, setup = 40, a_setup(tokenizer, tmp_path, 40)
    rows = {tuple(row.prompt): row for row in tokenize_rows(tokenizer, setup.train_rows)}
    longest = max(len(row.reasoning) for row in rows.values())
    icot.train_icot(setup)
    stages, jitters = math.ceil(longest / 8), []
    for step, (texts, count) in enumerate(texts_of_steps):
        assert count == 0
        due = min(stages, math.floor(step / steps / 0.75 * stages))
        for prompt, text in texts:
            row = rows[tuple(prompt)]
            reasoning, removed = len(row.reasoning), len(row.reasoning + row.answer) - len(text)
            assert text == (row.reasoning + row.answer)[removed:]
            if removed < reasoning:
                jitters.append(removed - 8 * due)
            else:
                # Everything is gone, by the stage or by its jitter.
                assert reasoning <= 8 * due + 3
            if step >= 0.75 * steps:
                assert removed == reasoning
    assert len(texts_of_steps) == steps and len({min(stages, int(s / 30 * stages)) for s in range(40)}) == stages + 1
    # P(0) = 1 - exp(-4): about one text in 55 loses one token more.
    assert {1} <= set(jitters) - {0} <= {1, 2} and jitters.count(0) > 0.9 * len(jitters)


@pytest.mark.parametrize(
    ("name", "column"), [("no_cot", None), ("cot", "reasoning"), ("condensed", "condensed_reasoning")]
)
def test_baselines_learn_the_answer_at_once_or_after_the_reasoning(name, column, tokenizer, tmp_path, texts_of_steps):
    setup, learned = a_setup(tokenizer, tmp_path, 4), {}
    for told, row in zip(setup.train_rows, tokenize_rows(tokenizer, setup.train_rows), strict=True):
        words = told[column] if column else ""
        learned[tuple(row.prompt)] = tokenizer(words, add_special_tokens=False)["input_ids"] + row.answer
    BENCH_METHODS[name].train(setup)
    assert len(texts_of_steps) == 4
    for texts, count in texts_of_steps:
        assert count == 0
        assert [text for _, text in texts] == [learned[tuple(prompt)] for prompt, _ in texts]


@pytest.mark.parametrize("name", ["coconut", "pause_staged"])
def test_curricula_have_the_setups_latents_per_step_and_stages(name, tokenizer, tmp_path, texts_of_steps, ages):
    # The graph's: one latent for each of six steps, unlike the default.
    setup = replace(a_setup(tokenizer, tmp_path, 12), coconut=(1, 6))
    rows = {tuple(row.prompt): row for row in tokenize_rows(tokenizer, setup.train_rows)}
    trained = BENCH_METHODS[name].train(setup)
    assert [count for _, count in texts_of_steps] == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6]
    assert trained.model.config.num_implicit_tokens == 6
    for texts, count in texts_of_steps:
        for prompt, text in texts:
            row = rows[tuple(prompt)]
            assert text == [token for step in row.steps[count:] for token in step] + row.answer
    # The last stage begins one step after the sixth latent.
    assert [max(found) for found in ages] == [1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["codi", "simcot_codi"])
def test_codi_is_trained_with_six_latents_and_gamma_1(name, tokenizer, tmp_path):
    # At a learning rate of 0 the loss of all rows is that of the model that comes back.
    setup = replace(a_setup(tokenizer, tmp_path, 1), batch_size=8, learning_rate=0.0)
    trained = BENCH_METHODS[name].train(setup)
    host, rows = trained.model.host, tokenize_rows(tokenizer, setup.train_rows)
    teacher, student, hidden, latents = codi_slowly(host, trained.model.projection, rows, 6)
    expected = teacher + student + hidden
    if name == "simcot_codi":
        expected = expected + decoded_slowly(host, latents, rows, tokenizer.eos_token_id, 6)
    assert hidden.item() > 0.1
    assert trained.losses == [(1, pytest.approx(expected.item(), rel=1e-3))]


@pytest.fixture
def ages(monkeypatch):
    """Collect the number of updates since the optimizer was reset, at every training step."""
    seen = []

    def note(optimizer, args, kwargs):
        seen.append({int(state["step"]) for state in optimizer.state.values() if "step" in state})

    handle = register_optimizer_step_post_hook(note)
    yield seen
    handle.remove()


def ages_of(stages):
    """Return the age after each step, for the stage of each step.

    >>> ages_of([0, 0, 1, 1, 1])
    [1, 2, 1, 2, 3]
    """
    made = []
    for index, stage in enumerate(stages):
        made.append(made[-1] + 1 if index and stage == stages[index - 1] else 1)
    return made


CURRICULA = {
    # Stages 1 to 3 (6 for SIM-CoT) are evenly spaced before 0.55, where the last begins.
    "coconut": (coconut.train_coconut, lambda progress: min(4, int(progress / 0.55 * 4))),
    "simcot_coconut": (simcot.train_simcot_coconut, lambda progress: min(7, int(progress / 0.55 * 7))),
    "pause_staged": (coconut.train_staged_pause, lambda progress: min(4, int(progress / 0.55 * 4))),
    "lrt": (lrt.train_lrt, lambda progress: int(progress >= 0.5)),
    "codi": (codi.train_codi, lambda progress: 0),
    "no_cot": (train_no_cot, lambda progress: 0),
    "cot": (train_cot, lambda progress: 0),
}


@pytest.mark.parametrize("name", [*CURRICULA, "icot"])
def test_optimizers_are_reset_where_a_stage_begins_and_nowhere_else(name, tokenizer, tmp_path, ages):
    setup = a_setup(tokenizer, tmp_path, 16)
    if name == "icot":
        stages = math.ceil(max(len(row.reasoning) for row in tokenize_rows(tokenizer, setup.train_rows)) / 8)
        train, stage = icot.train_icot, lambda progress: min(stages, int(progress / 0.75 * stages))
    else:
        train, stage = CURRICULA[name]
    train(setup)
    expected = ages_of([stage(step / 16) for step in range(16)])
    # A parameter without a gradient has no age, such as the projection while there are no latents.
    oldest = [max(found) for found in ages]
    assert oldest == expected
    assert (1 in expected[1:]) == (name in ("coconut", "simcot_coconut", "pause_staged", "lrt", "icot"))


@pytest.mark.parametrize("name", ["codi", "simcot_codi", "coconut"])
def test_learning_rates_follow_the_methods_schedule(name, tokenizer, tmp_path, monkeypatch):
    rates, step = [], torch.optim.lr_scheduler.LambdaLR.step

    def noted(self, *args):
        step(self, *args)
        rates.append(self.get_last_lr()[0])

    monkeypatch.setattr(torch.optim.lr_scheduler.LambdaLR, "step", noted)
    setup = a_setup(tokenizer, tmp_path, 10)
    BENCH_METHODS[name].train(setup)
    made = rates[-10:]
    # One step of warm-up, then nine to the end.
    shares = [step / 9 for step in range(10)]
    falling = (
        [1 - share for share in shares] if name == "coconut" else [(1 + math.cos(math.pi * s)) / 2 for s in shares]
    )
    assert made == pytest.approx([1e-5 * share for share in falling], abs=1e-12)


@pytest.mark.parametrize(("name", "begins"), [("simcot_codi", 0.0), ("simcot_coconut", 0.55)])
def test_simcots_decoder_starts_as_the_host_and_is_trained(name, begins, tokenizer, tmp_path, monkeypatch):
    made = []

    class Noted(simcot.StepSupervised):
        def __init__(self, *parts):
            super().__init__(*parts)
            assert self.begins == begins
            made.append((copy.deepcopy(self.decoder.state_dict()), self.decoder))

    monkeypatch.setattr(simcot, "StepSupervised", Noted)
    setup = a_setup(tokenizer, tmp_path, 3)
    before = copy.deepcopy(setup.host.state_dict())
    BENCH_METHODS[name].train(setup)
    [(start, decoder)] = made
    assert all(torch.equal(start[name], before[name]) for name in before)
    layer = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(decoder.state_dict()[layer], start[layer])
