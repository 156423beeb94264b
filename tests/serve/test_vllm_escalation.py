"""Escalation by the front of vLLM: engines that fail between its parts, clients that leave, signals that it lacks."""

import contextlib
import time

import httpx2
import pytest
import torch
from embeds_engine import EmbedsEngine
from served import running

from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.launch import app_of

QUESTION, NEW, REASONING, TOKENS = "How many apples has Ann?", 7, 4, 3
CONFIG = {"model": "tiny", "engine": "vllm"}
ENTROPY = Escalation(
    0.5,
    router={
        "signals": ["host_entropy"],
        "calibration": {"kind": "isotonic", "x": [0.0], "y": [0.5]},
        "threshold": 0.9,
        "sends": "at_once",
    },
).to_dict()


@pytest.fixture
def model(tiny_lm, tiny_semcot, tiny_tokenizer):
    made = tiny_semcot(tiny_lm(), num_implicit_tokens=TOKENS, answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    made.config.escalation = Escalation(1.0, max_reasoning_tokens=REASONING).to_dict()
    return made


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


def prompt_of(tokenizer):
    chat = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def expected(model, tokenizer):
    prompt = prompt_of(tokenizer)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, escalation=True, do_sample=False)
    return tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)


def ask(url, timeout=60, **body):
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": NEW, "temperature": 0, **body}
    return httpx2.post(f"{url}/v1/chat/completions", json={"escalation": True, **body}, timeout=timeout)


@contextlib.contextmanager
def fronted(model, tokenizer, *engines, **options):
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(running(engine.app)) for engine in engines]
        yield stack.enter_context(running(app_of(model, tokenizer, ServeConfig(**CONFIG, **options), urls)))


@pytest.mark.parametrize("part", ["implicit", "explicit"])
def test_engines_that_die_in_the_middle(model, tokenizer, part):
    """Nothing of the implicit answer has been sent yet, so that another engine may take over; else it is 502."""
    prompt, wanted = prompt_of(tokenizer), expected(model, tokenizer)
    first, second = engines = [EmbedsEngine(model.host, tokenizer) for _ in range(2)]
    first.breaks_at = len(prompt) + (TOKENS if part == "implicit" else -len(model.config.answer_prompt_ids))
    with fronted(model, tokenizer, first) as url:
        assert ask(url).json()["choices"][0]["message"]["content"] == wanted
        first.breaks_after = 2
        broken = ask(url)
        assert (broken.status_code, broken.json()["error"]["code"]) == (502, "engine_unreachable")
        streamed = ask(url, stream=True).text
        assert '"code":"engine_unreachable"' in streamed.replace(" ", "") and "[DONE]" not in streamed
        first.breaks_after = None
        assert ask(url).json()["choices"][0]["route"] == "explicit"
        assert "semcot_running_answers 0.0" in httpx2.get(f"{url}/metrics").text
    with fronted(model, tokenizer, *engines) as url:
        first.breaks_after = 2 if part == "implicit" else 0
        answer = ask(url).json()
        assert answer["choices"][0]["message"]["content"] == wanted
        # The tokens of the broken answer do not count.
        assert answer["usage"]["completion_tokens"] == NEW + REASONING
        assert answer["usage"]["implicit_tokens"] == TOKENS
    assert [engine.open for engine in engines] == [0, 0]


def test_a_client_that_leaves_before_the_route_is_decided(model, tokenizer):
    engine = EmbedsEngine(model.host, tokenizer)
    with fronted(model, tokenizer, engine) as url:
        engine.held.clear()
        with pytest.raises(httpx2.TimeoutException):
            ask(url, timeout=0.5)
        start = time.monotonic()
        while "semcot_running_answers 0.0" not in httpx2.get(f"{url}/metrics", timeout=60).text:
            assert time.monotonic() - start < 60
            time.sleep(0.05)
        engine.held.set()
        asked = len(engine.asked)
        assert ask(url).json()["choices"][0]["route"] == "explicit"
        # The answer and its reasoning; none of the reasoning that nobody waits for.
        assert [body["max_tokens"] for body in engine.asked[asked:]] == [NEW, REASONING]
        assert engine.asked[asked - 1]["max_tokens"] == NEW


def test_the_entropy_of_the_host_takes_the_probabilities_of_all_tokens(model, tokenizer):
    model.config.escalation = ENTROPY
    few, every = (EmbedsEngine(model.host, tokenizer, max_logprobs=number) for number in (20, -1))
    with fronted(model, tokenizer, few) as url:
        error = ask(url)
        assert error.status_code == 400
        message = error.json()["error"]["message"]
        assert "'host_entropy', but the engine tells the probabilities of few tokens only" in message
        assert "127.0.0.1" not in message and error.json()["error"]["param"] == "escalation"
        assert ask(url, escalation=False).status_code == 200
    with fronted(model, tokenizer, every) as url:
        assert ask(url).json()["choices"][0]["route"] in ("implicit", "explicit")
    # Each engine must tell them.
    for engines in ([few], [every, few]):
        with pytest.raises(ValueError, match="escalate='own'.*'host_entropy'.*--max-logprobs -1"):
            with fronted(model, tokenizer, *engines, escalate="own"):
                pass


def test_log_probabilities_after_the_temperature_give_no_confidence(model, tokenizer):
    """vLLM has a mode for them; a confidence of them would be wrong without a word."""
    with fronted(model, tokenizer, EmbedsEngine(model.host, tokenizer, processed=True)) as url:
        error = ask(url)
        assert error.status_code == 400
        assert "'answer_probability', but the engine's log-probabilities are not the model's own" in error.text
        assert ask(url, escalation=None).status_code == 200


def test_answers_of_an_engine_without_log_probabilities_are_not_guessed(model, tokenizer, monkeypatch):
    engine = EmbedsEngine(model.host, tokenizer)
    with fronted(model, tokenizer, engine) as url:
        whole = engine._answer
        monkeypatch.setattr(engine, "_answer", lambda *a: [(text, None, *end) for text, _, *end in whole(*a)])
        assert ask(url).status_code == 502


def test_waiting_for_implicit_tokens_again_takes_no_place_in_the_queue(model, tokenizer):
    """The route is asked for first; a queue of one request is enough for both parts."""
    model.config.escalation = ENTROPY
    with fronted(model, tokenizer, EmbedsEngine(model.host, tokenizer, max_logprobs=-1), max_queue=1) as url:
        answer = ask(url).json()
        assert answer["usage"]["implicit_tokens"] == TOKENS
        metrics = httpx2.get(f"{url}/metrics").text
        assert 'semcot_phase_seconds_count{phase="queue"} 1.0' in metrics
        assert "semcot_waiting_requests 0.0" in metrics
