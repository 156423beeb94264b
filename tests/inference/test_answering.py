"""Tests of batched answers, controls and latency on tiny models."""

import copy
import json
import logging

import pytest
import torch
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_semcot_over

from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation import ControlTokens, answer_questions, evaluate, measure_latency
from semcot_hf.evaluation.controls import derangement, noise_like
from semcot_hf.inference import prompting
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import with_answer_prompt
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.modeling.escalation_semcot import Escalation

QUERIES = [row["query"] for row in coin_flip.generate(9, seed=4, split="test")]


@pytest.fixture(scope="module")
def tokenizer():
    return coin_flip_tokenizer()


@pytest.fixture(scope="module")
def host(tokenizer):
    return answering_host(tokenizer)


@pytest.fixture(scope="module")
def model(host, tokenizer):
    return tiny_semcot_over(host, tokenizer)


def encode_prompts(*args, **kwargs):
    return list(prompting.encode_prompts(*args, **kwargs))


def outputs(*args, **kwargs):
    return [answer.output for answer in answer_questions(*args, **{"max_new_tokens": 8, **kwargs})]


@pytest.mark.parametrize("method", ["no_cot", "cot", "semcot"])
def test_batches_answer_as_one_by_one_does_in_the_order_of_the_questions(model, tokenizer, method):
    single = answer_questions(model, tokenizer, QUERIES, method=method, batch_size=1, max_new_tokens=8)
    batched = answer_questions(model, tokenizer, QUERIES, method=method, batch_size=4, max_new_tokens=8)
    assert [(a.output, a.new_tokens, a.finished) for a in single] == [
        (a.output, a.new_tokens, a.finished) for a in batched
    ]
    assert len({a.output for a in single}) > 1


def test_a_model_is_put_into_evaluation_mode_wherever_it_trains(model, tokenizer):
    try:
        for part in (model, model.generator):
            model.eval()
            part.train()
            outputs(model, tokenizer, QUERIES[:1], method="semcot")
            assert not any(module.training for module in model.modules())
    finally:
        model.eval()


def test_no_cot_and_cot_are_the_hosts_own(model, host, tokenizer):
    for method in ("no_cot", "cot"):
        assert outputs(model, tokenizer, QUERIES, method=method) == outputs(host, tokenizer, QUERIES, method=method)


def test_the_cot_instruction_stands_after_the_question_of_explicit_cot_alone(model, tokenizer):
    chat = [{"role": "user", "content": QUERIES[0]}]
    for method in ("cot", "no_cot", "semcot"):
        told, plain = (
            list(Answerer(model, tokenizer, AnswerSettings(method=method, cot_instruction=text)).prompts(queries))
            for text, queries in (("It ends up.", [QUERIES[0], chat]), (None, [f"{QUERIES[0]}\nIt ends up.", chat]))
        )
        assert told[0] == told[1]
        assert (told[0] == plain[0]) == (method == "cot") and (told[1] == plain[1]) == (method != "cot")


def test_an_instruction_stands_at_the_end_of_what_the_user_says_last():
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]
    told = prompting.with_instruction(chat, "c")
    assert told[1] == chat[1] and told[0]["content"] == [*chat[0]["content"], {"type": "text", "text": "c"}]
    assert prompting.with_instruction([], "c") == []


def test_evaluation_names_the_cot_instruction_and_refuses_it_where_it_misleads(model, host, tokenizer, tmp_path):
    rows, options = coin_flip.generate(2, split="test"), {"max_new_tokens": 2, "latency_samples": 0, "progress": False}
    options["controls"] = False
    told = {**options, "output_dir": str(tmp_path), "methods": ["cot"], "cot_instruction": "It ends up."}
    assert evaluate(host, tokenizer, rows, **told)["cot_instruction"] == "It ends up."
    assert "Explicit CoT was told: It ends up." in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="cot_instruction: 'It ends up.' there"):
        evaluate(host, tokenizer, rows, **{**told, "cot_instruction": "Think."})
    with pytest.raises(ValueError, match="is of the method 'cot', got methods=\\('no_cot',\\)"):
        evaluate(host, tokenizer, rows, **{**told, "methods": ["no_cot"]})
    for escalating in ({"methods": ["cot", "semcot", "escalated"], "escalate": "0.5"}, {"signals": ["thought_ended"]}):
        with pytest.raises(ValueError, match="escalation asks questions alone"):
            evaluate(model, tokenizer, rows, cot_instruction="Think.", **options, **escalating)


def test_semcot_is_the_models_generate(model, tokenizer):
    [prompt] = encode_prompts(tokenizer, QUERIES[:1], method="semcot")
    direct = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
    wanted = tokenizer.decode(direct, skip_special_tokens=True)
    assert outputs(model, tokenizer, QUERIES[:1], method="semcot") == [wanted]
    assert outputs(model, tokenizer, QUERIES, method="semcot", num_implicit_tokens=0) == outputs(
        model, tokenizer, QUERIES, method="no_cot"
    )


def test_tokens_count_up_to_the_end_of_sequence(model, tokenizer):
    answers = answer_questions(model, tokenizer, QUERIES, method="no_cot", max_new_tokens=8)
    for answer in answers:
        length = len(tokenizer(answer.output, add_special_tokens=False)["input_ids"])
        assert answer.finished and answer.new_tokens == length + 1 < 8
    cut = answer_questions(model, tokenizer, QUERIES, method="no_cot", max_new_tokens=1)
    assert {(answer.new_tokens, answer.finished) for answer in cut} == {(1, False)}


@pytest.mark.parametrize("limit", [20, 0])
def test_a_stop_string_counts_alike_in_any_batch(host, tokenizer, monkeypatch, limit):
    base = copy.deepcopy(tokenizer)
    base.chat_template, base.pad_token = None, base.eos_token
    stopped, other = (base(text, add_special_tokens=False)["input_ids"] for text in (" yes\nQuestion:", " no" * 15))

    def generate(input_ids, **_):
        made = [stopped, other][: len(input_ids)]
        width = max(map(len, made))
        made = [ids + [base.eos_token_id] * (width - len(ids)) for ids in made]
        return torch.cat([input_ids, torch.tensor(made)], dim=1)

    monkeypatch.setattr(host, "generate", generate)
    assert len(other) > len(stopped)
    for queries in (["A longer one?"], ["A longer one?", "B?"]):
        options = {"method": "no_cot", "max_new_tokens": limit or len(stopped)}
        first = answer_questions(host, base, queries, **options)[0]
        assert (first.output, first.new_tokens, first.finished) == (" yes", len(stopped), True)


@pytest.mark.parametrize("method", ["no_cot", "cot", "semcot", "escalated"])
@pytest.mark.parametrize("kind", [str, list])
def test_stop_texts_of_the_checkpoint_end_answers(model, tokenizer, monkeypatch, method, kind):
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [tokenizer.eos_token_id])
    options = {"method": method, "max_new_tokens": 12}
    if method == "escalated":
        options["escalation"] = Escalation(1.0, max_reasoning_tokens=12)
    endless = answer_questions(model, tokenizer, QUERIES, **options)
    stop = endless[0].output[3:5]
    monkeypatch.setattr(model.generation_config, "stop_strings", stop if kind is str else [stop, "no such text"])
    made = answer_questions(model, tokenizer, QUERIES, **options)
    for answer, whole in zip(made, endless, strict=True):
        place = whole.output.find(stop)
        assert answer.finished == (place >= 0)
        # As in `generate`, the text that ends it is part of the answer.
        assert whole.output.startswith(answer.output) and len(answer.output) >= min(place + len(stop), 12)
        assert (answer.new_tokens < 12) == answer.finished
    assert made[0].finished and made[0].new_tokens < 8


def test_stop_texts_of_checkpoint_and_settings_both_count(host, tokenizer, monkeypatch):
    monkeypatch.setattr(host.generation_config, "stop_strings", "a")
    for chat, stops in ((False, ["\nQuestion:", "a"]), (True, ["a"])):
        seen, generate = [], host.generate

        def watched(generation_config, seen=seen, generate=generate, **options):
            seen.append(generation_config.stop_strings or host.generation_config.stop_strings)
            return generate(generation_config=generation_config, **options)

        with monkeypatch.context() as changed:
            changed.setattr(host, "generate", watched)
            answer_questions(host, tokenizer, QUERIES[:1], method="no_cot", chat=chat, max_new_tokens=3)
        assert [[texts] if isinstance(texts, str) else texts for texts in seen] == [stops]


def test_a_special_token_as_stop_text_ends_an_answer(host, tokenizer, monkeypatch):
    """Answers are decoded without it."""
    monkeypatch.setattr(host.generation_config, "suppress_tokens", [tokenizer.eos_token_id])
    monkeypatch.setattr(host.generation_config, "stop_strings", ["<|user|>"])
    monkeypatch.setattr(host.generation_config, "forced_eos_token_id", tokenizer.convert_tokens_to_ids("<|user|>"))
    (answer,) = answer_questions(host, tokenizer, QUERIES[:1], method="no_cot", max_new_tokens=5)
    assert answer.finished and answer.new_tokens == 5 and "<|user|>" not in answer.output


def filling(answerer, room):
    """A question whose prompt leaves at most `room` new tokens of the context of 512, and how many it leaves."""
    for words in range(1, 600):
        question = " flips" * words
        left = 512 - answerer.num_implicit_tokens - len(next(answerer.prompts([question])))
        if left <= room:
            return question, left
    raise AssertionError("the context is larger")


@pytest.mark.parametrize("method", ["no_cot", "cot", "semcot"])
def test_a_question_that_fills_the_context_shortens_no_other_answer(model, tokenizer, monkeypatch, method):
    """Its own answer ends with the context, unfinished."""
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [tokenizer.eos_token_id])
    settings = AnswerSettings(method=method, max_new_tokens=20)
    answerer = Answerer(model, tokenizer, settings)
    long, room = filling(answerer, 12)
    queries = [QUERIES[0], long, QUERIES[1], long]
    alone = [answer_questions(model, tokenizer, [query], settings)[0] for query in queries]
    made = answer_questions(model, tokenizer, queries, settings)
    assert [(answer.new_tokens, answer.finished) for answer in made] == [(20, False), (room, False)] * 2
    assert [answer.output for answer in made] == [answer.output for answer in alone]
    beyond, _ = filling(answerer, 0)
    with pytest.raises(ValueError, match=r"question 1: a prompt of 5\d\d tokens.*more than the context of 512"):
        answer_questions(model, tokenizer, [QUERIES[0], beyond], settings)


def test_checkpoint_tokenizer_gives_the_same_prompts(tokenizer):
    for method in ("no_cot", "cot"):
        assert encode_prompts(with_answer_prompt(tokenizer), QUERIES, method=method) == encode_prompts(
            tokenizer, QUERIES, method=method
        )


def test_few_shot_prompts(tokenizer):
    shown = [{"query": "A?", "reasoning": "Since B.", "answer": "yes"}]
    texts = {
        method: tokenizer.decode(
            encode_prompts(tokenizer, ["C?"], method=method, few_shot=shown, chat=method == "cot")[0]
        )
        for method in ("no_cot", "cot")
    }
    assert texts["no_cot"] == "Question: A?\nAnswer: yes\nQuestion: C?\nAnswer:"
    assert texts["cot"] == "<|user|>A?<|end|><|assistant|>Since B.\nAnswer: yes<|end|><|user|>C?<|end|><|assistant|>"


@pytest.mark.parametrize("method", ["no_cot", "cot"])
def test_few_shot_examples_are_read_once_by_answers_and_evaluation(host, tokenizer, tmp_path, method):
    rows = coin_flip.generate(9, seed=4, split="test")
    shown = coin_flip.generate(2, seed=4, split="train")
    options = {"max_new_tokens": 8, "few_shot": shown, "chat": False}
    one_by_one = [outputs(host, tokenizer, [query], method=method, **options)[0] for query in QUERIES]
    columns = []

    def count(module, args, kwargs):
        given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        if given.shape[1] > 1:
            columns.append(given.shape[:2])

    hook = host.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        assert outputs(host, tokenizer, QUERIES, method=method, batch_size=4, **options) == one_by_one
        evaluate(
            host, tokenizer, rows, answer_type="yes_no", methods=(method,), batch_size=4, latency_samples=0,
            progress=False, output_dir=tmp_path / "run", **options,
        )  # fmt: skip
    finally:
        hook.remove()
    written = [json.loads(line) for line in (tmp_path / "run" / f"predictions-{method}.jsonl").open()]
    assert [row["output"] for row in sorted(written, key=lambda row: row["index"])] == one_by_one
    prefix = max(width for batch, width in columns if batch == 1)
    assert sum(1 for batch, width in columns if (batch, width) == (1, prefix)) == 2
    assert prefix > 60 and all(width < prefix for batch, width in columns if batch > 1)


def test_greedy_and_silent_with_a_host_that_samples_by_default(host, tokenizer, caplog, monkeypatch):
    wanted = outputs(host, tokenizer, QUERIES, method="cot")
    settings = {"do_sample": True, "temperature": 3.0, "top_p": 0.9, "top_k": 20, "min_p": 0.01}
    for name, value in settings.items():
        monkeypatch.setattr(host.generation_config, name, value)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        assert outputs(host, tokenizer, QUERIES, method="cot") == wanted
    assert not caplog.records


def test_out_of_memory_halves_the_batch(model, tokenizer, monkeypatch):
    wanted = outputs(model, tokenizer, QUERIES, method="semcot", batch_size=9)
    sizes, generate = [], model.generate

    def limited(**kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", limited)
    assert outputs(model, tokenizer, QUERIES, method="semcot", batch_size=9) == wanted
    assert sizes == [9, 4, 2, 2, 2, 2, 1]


def test_wrong_methods_are_refused(model, host, tokenizer):
    with pytest.raises(ValueError, match="method='semcot': a model of type 'llama' has no_cot, cot"):
        outputs(host, tokenizer, QUERIES, method="semcot")
    with pytest.raises(ValueError, match="few_shot has 1 examples"):
        outputs(model, tokenizer, QUERIES, method="cot", few_shot=[{"query": "", "reasoning": "", "answer": ""}])


def test_derangement_moves_every_question():
    for seed in range(20):
        others = derangement(11, seed)
        assert sorted(others) == list(range(11)) and all(i != other for i, other in enumerate(others))
    assert derangement(11, 1) == derangement(11, 1) != derangement(11, 2)


def test_control_embeddings(model, tokenizer):
    prompts = encode_prompts(tokenizer, QUERIES, method="semcot")
    tokens = ControlTokens(model, prompts, batch_size=4, seed=7)
    alone = torch.cat([model.implicit_embeddings(torch.tensor([prompt])) for prompt in prompts]).detach()
    torch.testing.assert_close(tokens.tokens, alone, rtol=0, atol=1e-9)
    others = derangement(len(prompts), 7)
    assert torch.equal(tokens.embeddings("other_question", [3, 0]), tokens.tokens[[others[3], others[0]]])
    torch.testing.assert_close(tokens.embeddings("mean", [2, 5]), alone.mean(dim=0).repeat(2, 1, 1), atol=1e-5, rtol=0)
    noise = tokens.embeddings("noise", [1, 8])
    torch.testing.assert_close(noise.norm(dim=-1), alone[[1, 8]].norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(noise, noise_like(tokens.tokens, 7)[[1, 8]])
    assert not torch.equal(noise, noise_like(tokens.tokens, 8)[[1, 8]])


def test_given_embeddings_are_what_the_host_reads(model, tokenizer):
    tokens = 20 * torch.randn(len(QUERIES), 4, 32, dtype=torch.float64, generator=torch.manual_seed(0))
    answers = outputs(
        model, tokenizer, QUERIES, method="semcot", batch_size=4, implicit_embeddings_for=lambda rows: tokens[rows]
    )
    for prompt, own, answer in zip(encode_prompts(tokenizer, QUERIES, method="semcot"), tokens, answers, strict=True):
        made = model.generate(torch.tensor([prompt]), implicit_embeddings=own[None], max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True) == answer
    assert answers != outputs(model, tokenizer, QUERIES, method="semcot")


def test_latency_interleaves_methods_and_leaves_the_warm_up_out(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("semcot_hf.evaluation.latency.synchronized_time", lambda device: now[0])

    def call(name, seconds):
        def run(batch):
            calls.append((name, tuple(batch)))
            # The first two calls, the warm-up, are slow.
            now[0] += 100 if len([c for c in calls if c[0] == name]) <= 2 else seconds * len(batch)

        return run

    measured = measure_latency(
        {"a": call("a", 1.0), "b": call("b", 3.0)}, ["q1", "q2", "q3"], device=torch.device("cpu")
    )
    assert [name for name, _ in calls[4:]] == ["a", "b", "b", "a", "a", "b"]
    assert [batch for _, batch in calls[4::2]] == [("q1",), ("q2",), ("q3",)]
    entry = {"batch_size": 1, "n": 3, "peak_memory_bytes": None}
    times = {name: dict.fromkeys(("median", "mean", "p95"), value) for name, value in (("a", 1.0), ("b", 3.0))}
    assert measured == {name: [{**entry, **times[name]}] for name in ("a", "b")}


def test_latency_tells_the_size_of_the_batches_that_ran():
    ran = []
    measured = measure_latency(
        {"a": lambda batch: ran.append(len(batch))}, list("12345"), device=torch.device("cpu"), batch_sizes=(64, 2)
    )
    assert [row["batch_size"] for row in measured["a"]] == [5, 2] and set(ran) == {5, 2}
