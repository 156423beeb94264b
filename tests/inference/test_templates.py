"""Chat templates of checkpoints: another answer prompt, worked examples that can be taken out again, bad input."""

import argparse
import copy

import pytest
from conftest import CHAT_TEMPLATE
from tokenizers import normalizers

from semcot_hf.cli.arguments import load_model
from semcot_hf.inference.prompting import (
    answer_prompt_ids,
    chat_template_of,
    default_answer_prompt,
    encode_prompt,
    encode_prompts,
    encode_thought_prompts,
    prompt_text,
    with_answer_prompt,
)
from semcot_hf.inference.settings import ANSWER_METHODS
from semcot_hf.inference.templates import (
    change_answer_prompt,
    change_few_shot,
    few_shot_ids,
    few_shot_messages,
    without_few_shot,
)
from semcot_hf.modeling.checksums_semcot import tokenizer_checksum
from semcot_hf.modeling.few_shot_semcot import plain_ids

CHATML = (
    "{% for message in messages %}<user>{{ message.role + '\n' + message.content | trim + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<user>assistant\n{% endif %}"
)
# Beside SemCoT's own.
WITH_EXAMPLES = ("escalated", "words")


def test_a_model_answers_behind_another_answer_prompt(tiny_semcot, tiny_tokenizer, tmp_path, warnings_of):
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    own = with_answer_prompt(tiny_tokenizer)
    # As the trainers record it.
    model.config.tokenizer_checksum = tokenizer_checksum(own)
    changed = [change_answer_prompt(model, tokenizer, "\nSo it is:") for tokenizer in (own, tiny_tokenizer)]
    for tokenizer in changed:
        assert prompt_text(tokenizer, "How many?") == prompt_text(tiny_tokenizer, "How many?") + "\nSo it is:"
    assert prompt_text(own, "How many?").endswith("\nAnswer:")
    assert tiny_tokenizer.decode(model.config.answer_prompt_ids) == "\nSo it is:"
    before, melting = model.config.to_dict(), copy.deepcopy(tiny_tokenizer)
    melting.chat_template = "{{ messages[0].content }}A"
    with pytest.raises(ValueError, match="answer_prompt='nn'"):
        change_answer_prompt(model, melting, "nn")
    assert model.config.to_dict() == before
    # Such as one that composes accents.
    composing = copy.deepcopy(tiny_tokenizer)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(ValueError, match="is read as .* by this tokenizer"):
        change_answer_prompt(model, composing, "\nRe\u0301ponse:")
    assert model.config.to_dict() == before
    model.save_pretrained(tmp_path)
    changed[0].save_pretrained(tmp_path)
    loaded, _ = load_model(argparse.Namespace(model=str(tmp_path), dtype="auto", trust_remote_code=False))
    assert loaded.config.answer_prompt_ids == model.config.answer_prompt_ids
    assert not [warning for warning in warnings_of() if "tokenizer" in warning]


# What JSON, Jinja and chat templates give a meaning to.
EXAMPLES = [
    {"query": "2 and 'two'?", "words": "2+2", "answer": "4"},
    {"query": 'A "{{ 1 + 1 }}" {% raw %}\\n\n{#?#}', "words": "caf\u00e9 \U0001f600; 5-3", "answer": "x %} y"},
]


def shown_text(answer_prompt="\nAnswer:"):
    return [[row["query"], f"{row['words']}{answer_prompt} {row['answer']}"] for row in EXAMPLES]


@pytest.fixture(params=["template", "named", "plain", "bos", "joining", "chatml"])
def any_tokenizer(request, tiny_tokenizer, joining_tokenizer):
    if request.param == "joining":
        return joining_tokenizer
    if request.param == "chatml":
        tokenizer = copy.deepcopy(joining_tokenizer)
        tokenizer.chat_template = CHATML
        return tokenizer
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if request.param in ("plain", "bos"):
        tokenizer.chat_template = None
    if request.param == "bos":
        tokenizer.chat_template = "{{ bos_token }}" + chat_template_of(tokenizer)
    if request.param == "named":
        tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tools": "other"}
    return tokenizer


def test_hosts_are_shown_examples_that_can_be_taken_out_again(any_tokenizer, tiny_semcot):
    own = with_answer_prompt(any_tokenizer)
    prompt = default_answer_prompt(any_tokenizer)
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(any_tokenizer), escalation={"threshold": 0.5})
    model.config.tokenizer_checksum = tokenizer_checksum(own)
    shown = change_few_shot(model, own, EXAMPLES)
    assert model.config.tokenizer_checksum == tokenizer_checksum(shown) and model.config.escalation is None
    messages = few_shot_messages(shown)
    assert [message["content"] for message in messages] == sum(shown_text(prompt), [])
    block = model.config.few_shot_ids
    for query in ("2 and 'two'?", "How many", "Why?\n", [{"role": "user", "content": "And so?"}]):
        text, bare = prompt_text(shown, query), prompt_text(own, query)
        assert prompt_text(shown, query, few_shot=False) == bare
        chat = [{"role": "user", "content": query}] if isinstance(query, str) else query
        assert text == prompt_text(own, [*messages, *chat])
        ids, expected = encode_prompt(shown, text), encode_prompt(own, bare)
        place = next(i for i in range(len(ids)) if ids[i : i + len(block)] == block)
        assert ids[:place] + ids[place + len(block) :] == expected
    # Texts to train on have none.
    finished = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "2"}]
    assert shown.apply_chat_template(finished, tokenize=False) == own.apply_chat_template(finished, tokenize=False)
    assert without_few_shot(shown).chat_template == own.chat_template
    again = change_few_shot(model, shown, EXAMPLES[:1])
    assert [m["content"] for m in few_shot_messages(again)] == shown_text(prompt)[0]
    assert len(model.config.few_shot_ids) < len(block)
    none = change_few_shot(model, again, [])
    assert none.chat_template == own.chat_template and model.config.few_shot_ids is None
    assert model.config.tokenizer_checksum == tokenizer_checksum(own)


def test_methods_without_thoughts_are_shown_no_examples(any_tokenizer, tiny_semcot):
    own = with_answer_prompt(any_tokenizer)
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(any_tokenizer))
    shown = change_few_shot(model, own, EXAMPLES)
    for method in ANSWER_METHODS:
        found, bare = (list(encode_prompts(t, ["How many?"], method=method))[0] for t in (shown, own))
        size = len(bare) + (len(model.config.few_shot_ids) if "semcot" in method or method in WITH_EXAMPLES else 0)
        assert len(found) == size and (found == bare) == (len(found) == len(bare))
    thought = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
    made = [list(encode_thought_prompts(t, ["How many?"], thought, answer_prompt="\nAnswer:")) for t in (shown, own)]
    assert made[0] == made[1]


def test_a_system_message_stands_before_the_examples(joining_tokenizer, tiny_semcot):
    tokenizer = copy.deepcopy(joining_tokenizer)
    tokenizer.chat_template = CHATML
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(tokenizer))
    shown = change_few_shot(model, tokenizer, EXAMPLES)
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    text = prompt_text(shown, chat)
    places = [text.index(part) for part in ("system\n", EXAMPLES[0]["query"], "user\nuser", "assistant\nassistant")]
    assert places == sorted(places)
    ids, block = encode_prompt(shown, text), model.config.few_shot_ids
    place = next(i for i in range(len(ids)) if ids[i : i + len(block)] == block)
    assert ids[:place] + ids[place + len(block) :] == encode_prompt(tokenizer, prompt_text(tokenizer, chat))


# As Qwen 2.5 (a system message of its own) and Gemma (it stands in the first question).
OWN_SYSTEM = "{% if messages[0].role != 'system' %}<user>system\nYou are helpful.<eos>\n{% endif %}" + CHATML
FOLDED = (
    "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}<user>{{ message.role + '\n' + (system if loop.first else '') + message.content }}"
    "<eos>\n{% endfor %}{% if add_generation_prompt %}<user>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("template", "shows"), [(CHATML, True), (OWN_SYSTEM, True), (FOLDED, False)])
def test_examples_can_be_taken_out_behind_any_system_message(joining_tokenizer, tiny_semcot, template, shows):
    """Where a template puts the system message into the first question, it shows no examples beside one."""
    tokenizer = copy.deepcopy(joining_tokenizer)
    tokenizer.chat_template = template
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(tokenizer))
    own = with_answer_prompt(tokenizer)
    shown = change_few_shot(model, own, [{"query": "5 and 5?", "words": "5+5", "answer": "10."}])
    block = model.config.few_shot_ids
    for system in (None, "Answer in English", "You are helpful.", "Be brief.", "5"):
        first = [] if system is None else [{"role": "system", "content": system}]
        chat = [*first, {"role": "user", "content": "Why?"}]
        found, bare = (encode_prompt(t, prompt_text(t, chat)) for t in (shown, own))
        if system is not None and not shows:
            assert found == bare
            continue
        taken = plain_ids(found, block)
        assert taken == bare and len(found) == len(bare) + len(block)
    assert without_few_shot(shown).chat_template == own.chat_template


def test_numbers_and_a_missing_answer_prompt(tiny_tokenizer, tiny_semcot):
    model = tiny_semcot(answer_prompt_ids=[])
    shown = change_few_shot(model, tiny_tokenizer, [{"query": 7, "words": "7-7", "answer": 0}])
    assert [message["content"] for message in few_shot_messages(shown)] == ["7", "7-7 0"]
    changed = change_answer_prompt(model, shown, "\nAnswer:")
    assert few_shot_messages(changed)[1]["content"] == "7-7\nAnswer: 0"
    assert few_shot_ids(changed) == model.config.few_shot_ids and few_shot_ids(tiny_tokenizer) is None


def test_examples_get_another_answer_prompt(tiny_tokenizer, tiny_semcot):
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    rows = [*EXAMPLES, {"query": "Why?", "words": "So\nAnswer: 3", "answer": "3"}]
    shown = change_few_shot(model, with_answer_prompt(tiny_tokenizer), rows)
    before = model.config.few_shot_ids
    changed = change_answer_prompt(model, shown, "\nSo it is:")
    contents = [m["content"] for m in few_shot_messages(changed)]
    assert contents == [*sum(shown_text("\nSo it is:"), []), "Why?", "So\nAnswer: 3\nSo it is: 3"]
    assert prompt_text(changed, "How many?").endswith("\nSo it is:") and model.config.few_shot_ids != before
    own = change_answer_prompt(model, changed, "\nAnswer:")
    assert own.chat_template == shown.chat_template and model.config.few_shot_ids == before


def test_examples_that_cannot_be_told_from_a_question_are_refused(tiny_tokenizer, tiny_semcot):
    model = tiny_semcot(answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    before = model.config.to_dict()
    for missing in ({"query": "2?", "words": "", "answer": "2"}, {"query": "2?", "words": "2"}):
        with pytest.raises(ValueError, match="examples has a row without (words|answer): .*Complete it"):
            change_few_shot(model, tiny_tokenizer, [*EXAMPLES, missing])
    counting = copy.deepcopy(tiny_tokenizer)
    counting.chat_template = "{{ messages | length }}" + CHAT_TEMPLATE
    with pytest.raises(ValueError, match="examples change the tokens"):
        change_few_shot(model, counting, EXAMPLES)
    assert model.config.to_dict() == before
