"""`pipeline("text-generation")` over a SemCoT model: strings, chats, batches, streaming, against `generate`."""

from threading import Thread

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer, pipeline

from semcot_hf.inference.prompting import answer_prompt_ids, prompt_text, with_answer_prompt

QUESTIONS = ["How many apples has Ann now?", "Ann has three.", "Bob gives one apple to Ann. How many?"]
NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.fixture(scope="module")
def model(tiny_semcot, tiny_tokenizer):
    return tiny_semcot(answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))


@pytest.fixture(scope="module")
def pipe(model, tokenizer):
    return pipeline("text-generation", model=model, tokenizer=tokenizer)


def answer(model, tokenizer, text):
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(ids, generation_config=GenerationConfig(**NEW))
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def answers(model, tokenizer):
    found = [answer(model, tokenizer, prompt_text(tokenizer, question)) for question in QUESTIONS]
    assert len(set(found)) == 3
    return found


def test_a_chats_prompt_ends_on_the_answer_prompt(model, tokenizer):
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hm?"}], add_generation_prompt=True)["input_ids"]
    assert ids[-len(model.config.answer_prompt_ids) :] == model.config.answer_prompt_ids


def test_strings(pipe, tokenizer, answers):
    prompts = [prompt_text(tokenizer, question) for question in QUESTIONS]
    assert pipe(prompts[0], **NEW)[0]["generated_text"] == prompts[0] + answers[0]
    assert pipe(prompts[0], return_full_text=False, **NEW)[0]["generated_text"] == answers[0]
    assert [out[0]["generated_text"] for out in pipe(prompts, return_full_text=False, **NEW)] == answers


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batches_equal_one_by_one(pipe, tokenizer, answers, batch_size):
    prompts = [prompt_text(tokenizer, question) for question in QUESTIONS]
    outs = pipe(prompts, batch_size=batch_size, return_full_text=False, **NEW)
    assert [out[0]["generated_text"] for out in outs] == answers


def test_chats(pipe, answers):
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    out = pipe(chats[0], **NEW)[0]["generated_text"]
    assert out == [*chats[0], {"role": "assistant", "content": answers[0]}]
    outs = pipe(chats, batch_size=3, **NEW)
    assert [out[0]["generated_text"][-1]["content"] for out in outs] == answers


def test_a_chat_of_several_turns(pipe, model, tokenizer):
    chat = [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    out = pipe(chat, return_full_text=False, **NEW)[0]["generated_text"]
    assert out == answer(model, tokenizer, prompt_text(tokenizer, chat))


def test_several_answers_of_one_prompt(pipe, tokenizer):
    options = dict(max_new_tokens=6, do_sample=True, num_return_sequences=4)
    outs = pipe(prompt_text(tokenizer, QUESTIONS[0]), **options)
    assert len({out["generated_text"] for out in outs}) > 1 and len(outs) == 4


def test_implicit_tokens_can_be_turned_off(pipe, model, tokenizer, answers):
    prompt = prompt_text(tokenizer, QUESTIONS[0])
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    host = model.host.generate(ids, generation_config=GenerationConfig(**NEW))
    out = pipe(prompt, num_implicit_tokens=0, return_full_text=False, **NEW)[0]["generated_text"]
    assert out == tokenizer.decode(host[0, ids.shape[1] :], skip_special_tokens=True) != answers[0]


def test_text_streamer_prints_the_answer(pipe, tokenizer, answers, capsys):
    pipe(
        prompt_text(tokenizer, QUESTIONS[1]),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **NEW,
    )
    assert capsys.readouterr().out == answers[1] + "\n"


def test_iterator_streamer_yields_the_answer_while_it_is_made(pipe, tokenizer, answers):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30)
    chat = [{"role": "user", "content": QUESTIONS[2]}]
    thread = Thread(target=pipe, args=(chat,), kwargs={**NEW, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == answers[2]
    thread.join()


def test_an_empty_string_is_refused(pipe):
    with pytest.raises(ValueError, match="implicit tokens need input_ids"):
        pipe("", **NEW)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_escalation(pipe, model, tokenizer, answers, batch_size):
    """Answers that are not sure are the host's own reasoning after the prompt without the answer prompt."""
    prompts = [prompt_text(tokenizer, question) for question in QUESTIONS]
    ids = [tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"] for prompt in prompts]
    sure = [float(model.generate(row, escalation=0.0, return_dict_in_generate=True, **NEW).confidence) for row in ids]
    threshold = sum(sorted(sure)[:2]) / 2
    expected = list(answers)
    for row in (number for number, own in enumerate(sure) if own < threshold):
        question = ids[row][:, : -len(model.config.answer_prompt_ids)]
        out = model.host.generate(question, max_new_tokens=8, do_sample=False)
        expected[row] = tokenizer.decode(out[0, question.shape[1] :], skip_special_tokens=True)
    rule = {"threshold": threshold, "max_reasoning_tokens": 8}
    outs = pipe(prompts, batch_size=batch_size, return_full_text=False, escalation=rule, **NEW)
    assert [out[0]["generated_text"] for out in outs] == expected != answers
    out = pipe(prompts[0], return_full_text=False, escalation=rule, return_dict_in_generate=True, **NEW)[0]
    assert out["generated_text"] == expected[0] and out["confidence"] == pytest.approx(sure[0], abs=1e-5)
