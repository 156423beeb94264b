"""Requests with `escalation`, by both engines: answers, routes and usage as `generate`'s; what is refused."""

import contextlib
import copy
import json
import threading

import httpx2
import pytest
import torch
from embeds_engine import EmbedsEngine
from served import running

from semcot_hf.cli.arguments import parse
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.inference.templates import change_few_shot
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.engine import TransformersEngine
from semcot_hf.serve.jobs import Job, RequestError
from semcot_hf.serve.launch import app_of, signal_problem_of
from semcot_hf.serve.protocol import ChatRequest
from semcot_hf.serve.running import RunningBatch
from semcot_hf.serve.service import Service

# Those of which the server makes a confidence, with their typical size.
SIGNALS = {
    "answer_probability": 0.05,
    "min_token_probability": 0.02,
    "thought_entropy": 5.0,
    "thought_ended": 0.5,
    "host_probability": 0.05,
    "host_entropy": 5.0,
    "question_tokens": 20.0,
}
TEXTS = ["How many apples has Ann?", "Bob has 3.", "Ann gives one apple to Bob, who has 12 apples.", "2?"]
NEW, REASONING, END = 9, 6, 9


@pytest.fixture(scope="module")
def model(tiny_lm, tiny_semcot, tiny_tokenizer):
    made = tiny_semcot(tiny_lm(eos_token_id=END), answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    made.config.escalation = Escalation(1.0, max_reasoning_tokens=REASONING).to_dict()
    return made


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def url(model, tokenizer, engine):
    with answering(engine, model, tokenizer, max_answer_tokens=100) as address:
        yield address


@contextlib.contextmanager
def answering(engine, model, tokenizer, **options):
    """Serve a model by an engine, "vllm" for a stand-in of it; yield the address."""
    config = ServeConfig(model="tiny", engine=engine, **options)
    with contextlib.ExitStack() as stack:
        urls = None
        if engine == "vllm":
            urls = [stack.enter_context(running(EmbedsEngine(model.host, tokenizer, max_logprobs=-1).app))]
        yield stack.enter_context(running(app_of(model, tokenizer, config, urls)))


def ids_of(tokenizer, text):
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]


def expected(model, tokenizer, prompt, escalation):
    ids, route, confidence = generated(model, prompt, escalation)
    return tokenizer.decode(ids, skip_special_tokens=True), route, confidence


def generated(model, prompt, escalation):
    """Return the answer's tokens without its end, the route and the confidence of `generate`."""
    rule = escalation
    if isinstance(escalation, float):
        rule = Escalation(escalation, max_reasoning_tokens=REASONING)
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, escalation=rule, return_dict_in_generate=True, do_sample=False
    )
    new = [token for token in out.sequences[0, len(prompt) :].tolist() if token != END]
    return new, out.route[0], float(out.confidence)


def threshold_of(model, tokenizer):
    sure = sorted(expected(model, tokenizer, ids_of(tokenizer, text), 0.0)[2] for text in TEXTS)
    return (sure[1] + sure[2]) / 2


def ask(url, path="chat/completions", **body):
    return httpx2.post(f"{url}/v1/{path}", json={"temperature": 0, "max_tokens": NEW, **body}, timeout=60)


def test_a_batch_of_prompts(model, tokenizer, url):
    prompts, threshold = [ids_of(tokenizer, text) for text in TEXTS], threshold_of(model, tokenizer)
    body = ask(url, "completions", prompt=prompts, escalation=threshold).json()
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        text, route, confidence = expected(model, tokenizer, prompt, threshold)
        assert (choice["text"], choice["route"]) == (text, route)
        assert choice["confidence"] == pytest.approx(confidence, abs=1e-5)
    assert len({choice["route"] for choice in body["choices"]}) == 2
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts)) and body["usage"]["implicit_tokens"] == 3 * 4
    plain = ask(url, "completions", prompt=prompts).json()
    assert "route" not in plain["choices"][0]
    replaced = sum(choice["route"] == "explicit" for choice in body["choices"])
    assert body["usage"]["completion_tokens"] > plain["usage"]["completion_tokens"] and replaced == 2
    assert plain["choices"][0]["logprobs"] is body["choices"][0]["logprobs"] is None
    told = ask(url, "completions", prompt=prompts, escalation=threshold, logprobs=2).json()
    for prompt, choice in zip(prompts, told["choices"], strict=True):
        ids, found = generated(model, prompt, threshold)[0], choice["logprobs"]
        assert found["tokens"] == [tokenizer.decode([token]) for token in ids]
        assert len(found["top_logprobs"]) == len(found["token_logprobs"]) == len(ids)


@pytest.mark.parametrize("by", ["transformers", "vllm"])
def test_worked_examples_are_for_the_host_before_a_thought(tiny_lm, tiny_semcot, tokenizer, by):
    """Not for the host alone, nor for the generator, in whose context they would not fit."""
    generator = tiny_lm(hidden_size=16, max_position_embeddings=60)
    model = tiny_semcot(tiny_lm(eos_token_id=END), generator, answer_prompt_ids=answer_prompt_ids(tokenizer)).eval()
    shown = change_few_shot(model, tokenizer, [{"query": "1 and 2?" * 4, "words": "1+2", "answer": "3"}] * 3)
    assert len(model.config.few_shot_ids) > 60
    options = dict(max_new_tokens=NEW, do_sample=False)
    with answering(by, model, shown) as address:
        for count, template in ((3, shown), (0, tokenizer)):
            ids = torch.tensor([ids_of(template, "Why?")])
            expected = model.generate(ids, num_implicit_tokens=count, **options)[0, ids.shape[1] :]
            chat = {"messages": [{"role": "user", "content": "Why?"}], "implicit_tokens": count}
            body = ask(address, **chat).json()
            assert body["choices"][0]["message"]["content"] == tokenizer.decode(expected, skip_special_tokens=True)
            assert body["usage"]["prompt_tokens"] == ids.shape[1]
            if count:
                long = ask(address, messages=[{"role": "user", "content": "Why? " * 14}], implicit_tokens=count)
                assert "more than the generator's context of 60" in long.json()["error"]["message"]
    answerer = Answerer(model, shown, AnswerSettings(max_new_tokens=4))
    prompts = list(answerer.prompts(["Why?", "Why? " * 14]))
    assert answerer.context_problem(prompts[0]) is None
    assert "more than the generator's context of 60" in answerer.context_problem(prompts[1])


@pytest.mark.parametrize("escalation", [True, 0.0])
def test_a_stream_starts_when_the_route_is_decided(model, tokenizer, url, escalation):
    chat = {"messages": [{"role": "user", "content": TEXTS[0]}], "escalation": escalation}
    text, route, _ = expected(model, tokenizer, ids_of(tokenizer, TEXTS[0]), float(escalation))
    whole = ask(url, **chat).json()["choices"][0]
    assert (whole["message"]["content"], whole["route"]) == (text, route)
    lines = [line for line in ask(url, stream=True, **chat).text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == text
    assert chunks[-1]["route"] == route and all("route" not in chunk for chunk in chunks[:-1])


@pytest.mark.parametrize(
    "body, problem",
    [
        ({"escalation": 1.5}, "escalation"),
        ({"escalation": "often"}, "escalation"),
        ({"escalation": 0.5, "n": 2}, "n=2 answers cannot be asked for"),
        ({"escalation": 0.5, "prompt": "no answer prompt"}, "must end on the answer prompt"),
    ],
    ids=str,
)
def test_what_is_refused(url, body, problem):
    content = {} if "prompt" in body else {"messages": [{"role": "user", "content": "?"}]}
    answer = ask(url, "completions" if "prompt" in body else "chat/completions", **content, **body)
    assert answer.status_code == 400 and problem in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "rule, escalates, problem",
    [
        (None, False, "does not escalate"),
        (None, True, "semcot calibrate"),
        (
            {
                "threshold": 0.5,
                "signals": ["agreement"],
                "calibration": {"kind": "isotonic", "x": [0], "y": [1]},
            },
            True,
            "'agreement', but it takes a second answer",
        ),
        (
            {
                "threshold": 0.5,
                "signals": ["thought_ended"],
                "calibration": {"kind": "isotonic", "x": [0], "y": [1]},
            },
            True,
            "'thought_ended', but all thoughts of thought_length='fixed'",
        ),
    ],
    ids=["no-escalation", "no-rule", "agreement", "no-such-signal"],
)
def test_rules_that_the_server_cannot_follow(model, tokenizer, monkeypatch, rule, escalates, problem):
    monkeypatch.setattr(model.config, "escalation", rule)
    config, known = ServeConfig(model="tiny"), signal_problem_of(model) if escalates else None
    service = Service(model.config, tokenizer, config, makes_tokens=True, can_be_read=False, signal_problem=known)
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "?"}], "escalation": True})
    with pytest.raises(RequestError, match=problem) as raised:
        service.jobs(request, lambda job, event: None)
    assert raised.value.status == 400


def test_a_clients_limit_holds_for_reasoning(model, tokenizer, url):
    prompt = ids_of(tokenizer, TEXTS[0])
    for asked, limit in ((4, 4), (100, REASONING), (None, REASONING)):
        rule = Escalation(1.0, max_reasoning_tokens=limit)
        choice = ask(url, "completions", prompt=[prompt], escalation=True, max_tokens=asked).json()["choices"][0]
        assert (choice["text"], choice["route"]) == expected(model, tokenizer, prompt, rule)[:2]


def test_the_servers_own_rule(model, tokenizer, engine):
    """It holds for requests without the field, where it can be followed."""
    prompt = ids_of(tokenizer, TEXTS[0])
    with answering(engine, model, tokenizer, escalate="own") as address:
        (choice,) = ask(address, "completions", prompt=[prompt]).json()["choices"]
        assert (choice["text"], choice["route"]) == expected(model, tokenizer, prompt, 1.0)[:2]
        (choice,) = ask(address, "completions", prompt=[prompt], escalation=0.0).json()["choices"]
        assert (choice["text"], choice["route"]) == expected(model, tokenizer, prompt, 0.0)[:2]
        for options in ({"escalation": False}, {"n": 2}, {"prompt": "no answer prompt"}, {"implicit_tokens": 0}):
            answer = ask(address, "completions", **{"prompt": [prompt], **options})
            assert answer.status_code == 200 and "route" not in answer.json()["choices"][0]
    for flags, asked in ((["--escalate"], "own"), (["--escalate", "0.9"], "0.9"), ([], None)):
        assert parse("semcot serve", (ServeConfig,), ["--model", "tiny", *flags])[0].escalate == asked
    with pytest.raises(ValueError, match="escalate='often'"):
        ServeConfig(model="tiny", escalate="often")
    plain = copy.deepcopy(model)
    plain.config.escalation = None
    with pytest.raises(ValueError, match="escalate='own'.*semcot calibrate"):
        app_of(plain, tokenizer, ServeConfig(model="tiny", escalate="own"))


def test_requests_in_progress_do_not_fill_the_queue(model, tokenizer, monkeypatch):
    started, held = threading.Event(), threading.Event()

    def start(self, jobs):
        started.set()
        held.wait(60)

    monkeypatch.setattr(TransformersEngine, "_start", start)
    engine = TransformersEngine(model, tokenizer, max_queue=1)
    first, between, waiting, refused = (Job([1, 2], lambda event: None) for _ in range(4))
    engine.submit(first)
    assert started.wait(60)
    between.begun = True
    engine._put_back([between])
    engine.submit(waiting)
    with pytest.raises(RequestError, match="1 requests are waiting"):
        engine.submit(refused)
    held.set()
    engine.close()


def test_hosts_that_sequences_cannot_join(tiny_lm, tiny_semcot, tokenizer, tiny_tokenizer):
    """Their finished rows stay in the batch until all are."""
    host = tiny_lm(eos_token_id=END, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    model = tiny_semcot(host, answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    threshold = threshold_of(model, tokenizer)
    model.config.escalation = Escalation(threshold, max_reasoning_tokens=REASONING).to_dict()
    assert not RunningBatch(host).joins
    prompts = [ids_of(tokenizer, text) for text in TEXTS]
    with running(app_of(model, tokenizer, ServeConfig(model="tiny"))) as address:
        choices = ask(address, "completions", prompt=prompts, escalation=True).json()["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        assert (choice["text"], choice["route"]) == expected(model, tokenizer, prompt, threshold)[:2]


def logistic(names, intercept=0.0):
    """Return a calibration of which each signal moves the confidence by about as much."""
    sizes = [SIGNALS[name] for name in names]
    return {
        "kind": "logistic",
        "coefficients": [(-1.0) ** place for place in range(len(names))],
        "intercept": intercept,
        "means": sizes,
        "scales": sizes,
    }


def router_of(sends):
    names = ["host_probability", "host_entropy", "question_tokens"]
    return {"signals": names, "calibration": logistic(names), "threshold": 0.5, "sends": sends}


def calibrated_model(tiny_lm, tiny_semcot, tiny_tokenizer, joins):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_semcot(
        tiny_lm(eos_token_id=END, **({} if joins else {"rope_parameters": rope})),
        tiny_lm("llama", hidden_size=32, seed=5),
        answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        end_of_thought_token_ids=list(range(0, 320, 4)),
        mixture_top_k=4,
        num_implicit_tokens=4,
    )
    assert RunningBatch(model.host).joins == joins
    return model


def calibrate(model, tokenizer, prompts, sends):
    """Give a model a rule by which its answers go different ways; return those of `generate` for each prompt alone."""
    names = [*SIGNALS]
    rule = Escalation(0.0, names, logistic(names), max_reasoning_tokens=REASONING)
    sure = sorted(expected(model, tokenizer, prompt, rule)[2] for prompt in prompts)
    rule.threshold = (sure[0] + sure[1]) / 2
    if sends is not None:
        router = router_of(sends)
        always = Escalation(0.0, router={**router, "threshold": float(sends == "explicit")})
        asked = sorted(expected(model, tokenizer, prompt, always)[2] for prompt in prompts)
        rule.router = {**router, "threshold": (asked[1] + asked[2]) / 2}
    model.config.escalation = rule.to_dict()
    wanted = [expected(model, tokenizer, prompt, rule) for prompt in prompts]
    assert sends is None or sends in [route for _, route, _ in wanted]
    assert len({route for _, route, _ in wanted}) > 1
    return wanted


def check_choices(choices, wanted):
    for (text, route, confidence), choice in zip(wanted, choices, strict=True):
        assert (choice["text"], choice["route"]) == (text, route)
        assert choice["confidence"] == pytest.approx(confidence, abs=1e-4)


@pytest.mark.parametrize(
    ("by", "joins"),
    [("transformers", True), ("transformers", False), ("vllm", True)],
    ids=["joins", "one-batch", "vllm"],
)
@pytest.mark.parametrize("sends", [None, "at_once", "explicit"])
@pytest.mark.parametrize("examples", [0, 1], ids=["zero-shot", "few-shot"])
def test_calibrated_rules(tiny_lm, tiny_semcot, tokenizer, tiny_tokenizer, by, joins, sends, examples):
    """Signals of thoughts and questions, and routers, as `generate` has them for each prompt alone."""
    model = calibrated_model(tiny_lm, tiny_semcot, tiny_tokenizer, joins)
    tokenizer = change_few_shot(model, tokenizer, [{"query": "1 and 2?", "words": "1+2", "answer": "3"}] * examples)
    prompts = [ids_of(tokenizer, text) for text in TEXTS]
    wanted = calibrate(model, tokenizer, prompts, sends)
    with answering(by, model, tokenizer) as address:
        body = ask(address, "completions", prompt=prompts, escalation=True).json()
        metrics = httpx2.get(f"{address}/metrics").text
    check_choices(body["choices"], wanted)
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    for kind in ("prompt", "implicit"):
        (counted,) = [
            line for line in metrics.splitlines() if line.startswith(f'semcot_tokens_total{{kind="{kind}"}}')
        ]
        assert float(counted.rpartition(" ")[2]) == body["usage"][f"{kind}_tokens"]


@pytest.mark.parametrize("joins", [True, False], ids=["joins", "one-batch"])
@pytest.mark.parametrize("sends", ["at_once", "explicit"])
def test_memory_that_runs_out_once_routes_are_decided(
    tiny_lm, tiny_semcot, tokenizer, tiny_tokenizer, monkeypatch, joins, sends
):
    model = calibrated_model(tiny_lm, tiny_semcot, tiny_tokenizer, joins)
    prompts = [ids_of(tokenizer, text) for text in TEXTS]
    wanted = calibrate(model, tokenizer, prompts, sends)
    whole, failures = RunningBatch.join, []

    def fail_after_joining(self, cache, width, lengths, rows):
        whole(self, cache, width, lengths, rows)
        # A prompt that is too large by itself is an error.
        if len(rows) > 1 and not failures:
            failures.append(rows)
            raise torch.OutOfMemoryError("told to")

    monkeypatch.setattr(RunningBatch, "join", fail_after_joining)
    with running(app_of(model, tokenizer, ServeConfig(model="tiny"))) as address:
        body = ask(address, "completions", prompt=prompts, escalation=True).json()
    assert len(failures) == 1
    check_choices(body["choices"], wanted)
