"""The embedded engine under load: full queues, clients that leave, too little memory, steps that fail."""

import pytest
import torch
from asked import Asked, alone, engines, prompts_of
from transformers import DynamicCache

from semcot_hf.serve import running
from semcot_hf.serve.jobs import Piece, RequestError


@pytest.fixture
def engine_of(tiny_tokenizer):
    with engines(tiny_tokenizer) as make:
        yield make


def test_a_client_that_leaves_frees_its_place(tiny_lm, tiny_tokenizer, engine_of):
    engine = engine_of(tiny_lm(), tokens_per_batch=1)
    long, waits, short = (Asked(prompt, max_new_tokens=200, streamed=True) for prompt in prompts_of(3))
    short.job.max_new_tokens = 2
    for one in (long, waits, short):
        engine.submit(one.job)
    assert isinstance(long.events.get(timeout=60), Piece)
    engine.cancel(waits.job)
    engine.cancel(long.job)
    short.wait()
    assert long.job.completion_tokens < 200 and waits.job.completion_tokens == 0


def test_more_requests_than_the_queue_holds_are_refused(tiny_lm, tiny_tokenizer, engine_of):
    engine = engine_of(tiny_lm(), tokens_per_batch=1, max_queue=1)
    running, waiting, refused = (Asked(prompt, max_new_tokens=100, streamed=True) for prompt in prompts_of(3))
    engine.submit(running.job)
    running.events.get(timeout=60)
    engine.submit(waiting.job)
    with pytest.raises(RequestError, match="1 requests are waiting already") as full:
        engine.submit(refused.job)
    assert full.value.status == 429


def test_clients_that_have_left_do_not_fill_the_queue(tiny_lm, tiny_tokenizer, engine_of):
    engine = engine_of(tiny_lm(), tokens_per_batch=1, max_queue=1)
    running, waits, *left = (Asked(prompt, max_new_tokens=200, streamed=True) for prompt in prompts_of(4))
    engine.submit(running.job)
    running.next()
    for one in left:
        engine.submit(one.job)
        assert engine._number_waiting() == 1
        engine.cancel(one.job)
        assert engine._number_waiting() == 0 and not engine._waiting
    engine.submit(waits.job)
    engine.cancel(running.job)
    waits.wait()


def test_too_little_memory_halves_the_budget_and_loses_nothing(tiny_lm, tiny_tokenizer, engine_of, monkeypatch):
    model = tiny_lm()
    engine = engine_of(model, tokens_per_batch=4000)
    generate = engine._generated

    def small(ids, mask, thoughts):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(ids, mask, thoughts)

    monkeypatch.setattr(engine, "_generated", small)
    asked = [Asked(prompt, max_new_tokens=3) for prompt in prompts_of(8)]
    with engine._changed:
        for one in asked:
            engine._waiting.append(one.job)
        engine._changed.notify()
    for one in asked:
        assert one.wait() == [alone(model, tiny_tokenizer, one.job.prompt, 3)]
    assert engine.tokens_per_batch < 4000


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("place", ["first layer", "third tensor", "behind"])
def test_too_little_memory_to_join_leaves_running_answers(
    place, family, tiny_lm, tiny_semcot, tiny_tokenizer, engine_of, monkeypatch
):
    """The one that did not fit beside them is answered when they have ended."""
    window = {"sliding_window": 8} if family.startswith("gemma") else {}
    model = tiny_semcot(tiny_lm(family, **window))
    engine, calls = engine_of(model, tokens_per_batch=4000), []
    stacked, begin, select = running._stacked, engine._begin, DynamicCache.batch_select_indices

    def full(*given):
        calls.append(1)
        if (place, len(calls)) in (("first layer", 1), ("third tensor", 3)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stacked(*given)

    def begin_once(answers, logits):
        if place == "behind" and len(calls) == 4:
            calls.append(1)
            # Nor is there any for copies of what is to stay.
            monkeypatch.setattr(DynamicCache, "batch_select_indices", full_cache)
            raise torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(DynamicCache, "batch_select_indices", select)
        begin(answers, logits)

    def full_cache(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(running, "_stacked", full)
    monkeypatch.setattr(engine, "_begin", begin_once)
    short, long = prompts_of(1, longest=5)[0], prompts_of(1, seed=1, shortest=40)[0]
    first, second = Asked(short, count=3, max_new_tokens=100, streamed=True), Asked(long, count=2, max_new_tokens=4)
    engine.submit(first.job)
    first.next()
    engine.submit(second.job)
    assert first.wait() == [alone(model, tiny_tokenizer, short, 100, 3)]
    assert second.wait() == [alone(model, tiny_tokenizer, long, 4, 2)]
    assert engine.tokens_per_batch == 2000 and not second.job.crowded


def test_a_request_too_large_for_memory_fails_once_it_is_alone(tiny_lm, tiny_tokenizer, engine_of, monkeypatch):
    """Those behind it are answered, and the budget of all is halved for what did not fit beside others only."""
    model = tiny_lm()
    engine, tried = engine_of(model, tokens_per_batch=4000), []
    generate, prompts = engine._generated, prompts_of(3)

    def small(ids, mask, thoughts):
        if prompts[1] == ids[0, -len(prompts[1]) :].tolist():
            tried.append((len(engine._rows), len(ids)))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(ids, mask, thoughts)

    monkeypatch.setattr(engine, "_generated", small)
    first, large, behind = (Asked(prompt, max_new_tokens=100, streamed=True) for prompt in prompts)
    engine.submit(first.job)
    first.next()
    with engine._changed:
        engine._waiting.extend([large.job, behind.job])
        engine._changed.notify()
    with pytest.raises(RequestError, match="Memory is too small for this request") as failed:
        large.wait()
    # With the one behind it, then by itself, and when nothing else ran.
    assert failed.value.status == 503 and tried == [(1, 2), (1, 1), (0, 1)] and engine.tokens_per_batch == 1000
    for one, prompt in ((first, prompts[0]), (behind, prompts[2])):
        assert one.wait() == [alone(model, tiny_tokenizer, prompt, 100)]


def test_a_failing_step_fails_its_batch_and_the_engine_goes_on(tiny_lm, tiny_tokenizer, engine_of, monkeypatch):
    model = tiny_lm()
    engine = engine_of(model)

    def fails(tokens):
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "step", fails)
        asked = Asked(prompts_of(1)[0], max_new_tokens=3)
        engine.submit(asked.job)
        with pytest.raises(RequestError, match="the server's log has the reason") as failed:
            asked.wait()
        assert failed.value.status == 500
    asked = Asked(prompts_of(1)[0], max_new_tokens=3)
    engine.submit(asked.job)
    assert asked.wait() == [alone(model, tiny_tokenizer, asked.job.prompt, 3)]
