"""The embedded engine: its answers are `generate`'s, whoever else is answered; a bad request fails alone."""

import pytest
import torch
from asked import Asked, alone, engines, prompts_of

from semcot_hf.serve.choosing import Chooser
from semcot_hf.serve.engine import TransformersEngine
from semcot_hf.serve.jobs import AnswerText, RequestError, Sampling, held_back
from semcot_hf.serve.running import RunningBatch, can_join


@pytest.fixture
def engine_of(tiny_tokenizer):
    with engines(tiny_tokenizer) as make:
        yield make


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma3_text"])
def test_answers_are_those_of_generate_alone(family, tiny_lm, tiny_semcot, tiny_tokenizer, engine_of):
    window = {"sliding_window": 8} if family.startswith("gemma") else {}
    host = tiny_lm(family, eos_token_id=7, **window)
    model = tiny_semcot(host)
    assert can_join(host)
    engine = engine_of(model, tokens_per_batch=400)
    asked = []
    for number, prompt in enumerate(prompts_of(24)):
        count = (3, 0, 2)[number % 3]
        asked.append(Asked(prompt, count=count, max_new_tokens=2 + number % 9, streamed=number % 2 == 0))
        engine.submit(asked[-1].job)
    for one in asked:
        job = one.job
        assert one.wait() == [alone(model, tiny_tokenizer, job.prompt, job.max_new_tokens, job.count)]
        assert job.implicit_tokens == job.count
        assert job.completion_tokens <= job.max_new_tokens
        assert one.reasons == (["length"] if job.completion_tokens == job.max_new_tokens else ["stop"])


def test_thoughts_of_different_lengths_join_one_batch(tiny_lm, tiny_semcot, tiny_tokenizer, engine_of):
    host = tiny_lm()
    model = tiny_semcot(
        host,
        tiny_lm(hidden_size=32, seed=5),
        num_implicit_tokens=6,
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        end_of_thought_token_ids=list(range(0, 320, 4)),
    )
    model.generator_tokenizer = tiny_tokenizer
    engine = engine_of(model)
    asked = [Asked(prompt, count=6, max_new_tokens=5, wants_thought=True) for prompt in prompts_of(12)]
    for one in asked:
        engine.submit(one.job)
    for one in asked:
        assert one.wait() == [alone(model, tiny_tokenizer, one.job.prompt, 5)]
        ids = torch.tensor([one.job.prompt])
        assert one.job.thought == model.implicit_text(ids)[0]
        assert one.job.implicit_tokens == int((model.implicit_words(ids)[0] >= 0).sum())
    assert len({one.job.implicit_tokens for one in asked}) > 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_worked_examples_are_read_once(family, tiny_lm, tiny_semcot, tiny_tokenizer, engine_of, read_columns):
    """Also where thoughts of different lengths join a batch; hosts with sliding windows read each prompt whole."""
    window = {"sliding_window": 8} if family.startswith("gemma") else {}
    examples, answer = [50, 51, 52, 9, 53, 50, 61, 62, 63], [9]
    model = tiny_semcot(
        tiny_lm(family, eos_token_id=7, **window),
        num_implicit_tokens=6,
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        end_of_thought_token_ids=list(range(0, 320, 4)),
        answer_prompt_ids=answer,
        few_shot_ids=examples,
    )
    prompts = [[3, *examples, *body, *answer] for body in prompts_of(12)]
    prompts[5] = [3, *prompts_of(1, seed=1)[0], *answer]
    expected = [alone(model, tiny_tokenizer, prompt, 5) for prompt in prompts]
    model._prompt_caches, widths = None, read_columns(model)
    engine = engine_of(model)
    asked = [Asked(prompt, count=6, max_new_tokens=5) for prompt in prompts]
    asked[0].job.max_new_tokens = 50
    for one in asked[:2]:
        engine.submit(one.job)
    for number, one in enumerate(asked[2:], 2):
        asked[number - 1].wait()
        engine.submit(one.job)
    found = [one.wait()[0] for one in asked]
    assert found[0].startswith(expected[0]) and found[1:] == expected[1:]
    assert len({one.job.implicit_tokens for one in asked}) > 2
    read = [width for width in widths if width > 1]
    if window:
        assert min(read) > 1 + len(examples)
    else:
        # The examples; each prompt without them, but for the one that has none.
        wanted = [len(one.job.prompt) + one.job.implicit_tokens for one in asked]
        assert read[0] == 1 + len(examples) and sorted(read)[-1] <= max(wanted)
        assert sum(read[1:]) <= sum(wanted) - 11 * (1 + len(examples)) + 8


def test_hosts_that_sequences_cannot_join_answer_batch_after_batch(tiny_lm, tiny_semcot, tiny_tokenizer, engine_of):
    host = tiny_lm(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    model = tiny_semcot(host)
    engine = engine_of(model)
    asked = [
        Asked(prompt, count=3 * (n % 2), max_new_tokens=2 + n, choices=1 + n % 2)
        for n, prompt in enumerate(prompts_of(6))
    ]
    for one in asked:
        engine.submit(one.job)
    for one in asked:
        expected = alone(model, tiny_tokenizer, one.job.prompt, one.job.max_new_tokens, one.job.count)
        assert one.wait() == [expected] * one.job.choices
    batch = RunningBatch(host)
    assert not batch.joins
    with pytest.raises(ValueError, match="LlamaForCausalLM: sequences cannot join a batch of this host"):
        batch.join(None, 1, [1], [3])


def test_penalties_of_the_models_own_config_apply(tiny_lm, tiny_tokenizer, engine_of):
    model = tiny_lm(dtype=torch.float32)
    prompt = prompts_of(1)[0]
    plain = alone(model, tiny_tokenizer, prompt, 12)
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    expected = alone(model, tiny_tokenizer, prompt, 12)
    assert expected != plain
    engine = engine_of(model)
    asked = Asked(prompt, max_new_tokens=12)
    engine.submit(asked.job)
    assert asked.wait() == [expected]
    assert model.generation_config.do_sample and model.generation_config.temperature == 0.7


def test_processors_are_looked_for_once_where_settings_need_none(tiny_lm, tiny_tokenizer, engine_of, monkeypatch):
    model, calls, prepared = tiny_lm(), [], Chooser._prepared
    monkeypatch.setattr(Chooser, "_prepared", lambda *given: calls.append(given) or prepared(*given))
    engine = engine_of(model)
    [prompt] = prompts_of(1)
    for sampling, wanted in (
        (Sampling(temperature=0.0), 1),
        (Sampling(temperature=0.0, seed=3), 1),
        (Sampling(temperature=0.0, repetition_penalty=1.9), 2),
        (Sampling(temperature=0.0, repetition_penalty=1.9), 3),
        (Sampling(temperature=0.0), 3),
    ):
        asked = Asked(prompt, max_new_tokens=8, sampling=sampling)
        engine.submit(asked.job)
        ids = torch.tensor([prompt])
        penalty = sampling.repetition_penalty or 1.0
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, repetition_penalty=penalty
        )
        text = tiny_tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        assert asked.wait() == [text] and len(calls) == wanted


def test_samples_depend_on_the_seed_alone(tiny_lm, tiny_tokenizer, engine_of):
    model = tiny_lm()
    engine = engine_of(model)
    prompts = prompts_of(4)

    def sample(seed, others):
        asked = Asked(prompts[0], choices=2, max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=seed))
        crowd = [Asked(prompt, max_new_tokens=5) for prompt in others]
        for one in [*crowd, asked]:
            engine.submit(one.job)
        return [one.wait() for one in [asked, *crowd]][0]

    first = sample(3, [])
    assert first == sample(3, prompts[1:]) and first[0] != first[1]
    assert first[1] == sample(4, [])[0]
    assert first != sample(5, [])


def test_stop_texts_end_answers_before_them(tiny_lm, tiny_tokenizer, engine_of):
    model = tiny_lm()
    prompt = prompts_of(1)[0]
    text = alone(model, tiny_tokenizer, prompt, 12)
    stop = text[5:8]
    engine = engine_of(model)
    for streamed in (False, True):
        asked = Asked(prompt, max_new_tokens=12, stops=("never seen", stop), streamed=streamed)
        engine.submit(asked.job)
        assert asked.wait() == [text[: text.index(stop)]]
        assert asked.reasons == ["stop"]
        assert asked.job.completion_tokens < 12


def test_log_probabilities_are_those_of_the_hosts_logits(tiny_lm, tiny_tokenizer, engine_of):
    model = tiny_lm()
    engine = engine_of(model)
    prompt = prompts_of(1)[0]
    asked = Asked(prompt, max_new_tokens=4, top_logprobs=3)
    engine.submit(asked.job)
    asked.wait()
    tokens = [token for piece in asked.pieces for token in piece.tokens]
    ids = torch.tensor([[*prompt, *(token.token for token in tokens)]])
    with torch.no_grad():
        expected = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    assert len(tokens) == 4
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.token]), abs=1e-5)
        assert [pair[0] for pair in token.top] == row.topk(3).indices.tolist()


def test_one_bad_prompt_fails_alone(tiny_lm, tiny_semcot, tiny_tokenizer, engine_of):
    model = tiny_semcot(tiny_lm())
    engine = engine_of(model)
    for bad in ([], [320], [-1]):
        with pytest.raises(RequestError, match="ids from 0 to 319"):
            engine.submit(Asked(bad).job)
    prompts = prompts_of(5)
    prompts[2] = prompts[2] * 100
    asked = [Asked(prompt, count=3, max_new_tokens=3) for prompt in prompts]
    for one in asked:
        engine.submit(one.job)
    for number, one in enumerate(asked):
        if number == 2:
            with pytest.raises(RequestError, match="more than") as bad:
                one.wait()
            assert bad.value.status == 400
        else:
            assert one.wait() == [alone(model, tiny_tokenizer, one.job.prompt, 3)]


@pytest.mark.parametrize("joins", [True, False], ids=["joins", "one-batch"])
def test_an_answer_whose_token_cannot_be_chosen_fails_alone(joins, tiny_lm, tiny_tokenizer, engine_of, monkeypatch):
    """Amid others that are being decoded: its settings leave no probabilities at its third token."""
    rope = {} if joins else {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    model = tiny_lm(**rope)
    engine, draws, whole = engine_of(model), [], Chooser._drawn

    def drawn(self, scores):
        draws.append(1)
        return whole(self, scores * float("nan") if len(draws) == 3 else scores)

    monkeypatch.setattr(Chooser, "_drawn", drawn)
    prompts = prompts_of(2)
    good, bad = (
        Asked(prompt, max_new_tokens=6, sampling=Sampling(temperature=float(t))) for t, prompt in enumerate(prompts)
    )
    with engine._changed:
        engine._waiting.extend([good.job, bad.job])
        engine._changed.notify()
    assert good.wait() == [alone(model, tiny_tokenizer, prompts[0], 6)]
    with pytest.raises(RequestError, match="temperature=1.0.*leave no probabilities") as failed:
        bad.wait()
    assert failed.value.status == 400 and len(draws) == 3


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_temperatures_next_to_0_are_greedy(temperature, tiny_lm, tiny_tokenizer, engine_of):
    """Logits divided by them are no numbers; vLLM takes them so, too."""
    model = tiny_lm()
    engine, [prompt] = engine_of(model), prompts_of(1)
    asked = Asked(prompt, max_new_tokens=4, sampling=Sampling(temperature=temperature))
    engine.submit(asked.job)
    assert asked.wait() == [alone(model, tiny_tokenizer, prompt, 4)]


def test_a_closed_engine_fails_what_is_open(tiny_lm, tiny_tokenizer):
    engine = TransformersEngine(tiny_lm(), tiny_tokenizer)
    asked = Asked(prompts_of(1)[0], max_new_tokens=200, streamed=True)
    engine.submit(asked.job)
    asked.events.get(timeout=60)
    engine.close()
    with pytest.raises(RequestError, match="stopped"):
        asked.wait()
    with pytest.raises(RequestError, match="shutting down"):
        engine.submit(Asked(prompts_of(1)[0]).job)


def test_characters_of_several_tokens_are_sent_whole(tiny_tokenizer):
    ids = tiny_tokenizer("é 1 😀.", add_special_tokens=False)["input_ids"]
    assert len(ids) > len("é 1 😀.")
    text = AnswerText(tiny_tokenizer)
    parts = []
    for token in ids:
        text.add(token)
        parts.append(text.take())
    assert "".join(parts) == "é 1 😀." and all("\ufffd" not in part for part in parts)
    assert held_back("ab", ["bc", "abd"]) == 2
