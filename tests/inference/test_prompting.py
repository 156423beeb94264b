"""Prompts: one rendering for training and generation, for tokenizers with and without a chat template."""

import copy

import pytest

from semcot_hf.inference.prompting import (
    answer_prompt_ids,
    chat_template_of,
    encode_prompt,
    prompt_text,
    with_answer_prompt,
)


@pytest.fixture
def plain_tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    return tokenizer


def test_chat_template_gets_the_answer_prompt_once(tiny_tokenizer):
    tokenizer = with_answer_prompt(with_answer_prompt(tiny_tokenizer))
    text = prompt_text(tokenizer, "How many?")
    assert text == prompt_text(tiny_tokenizer, "How many?") + "\nAnswer:"
    assert tiny_tokenizer.chat_template != tokenizer.chat_template
    finished = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "2"}]
    assert "Answer" not in tokenizer.apply_chat_template(finished, tokenize=False)


def test_without_a_template_the_paper_form_is_used(plain_tokenizer):
    assert prompt_text(plain_tokenizer, "How many?") == "Question: How many?"
    tokenizer = with_answer_prompt(plain_tokenizer, "\n Answer:")
    assert prompt_text(tokenizer, "How many?") == "Question: How many?\n Answer:"


def test_a_tokenizer_that_begins_with_bos_keeps_doing_so(plain_tokenizer):
    from tokenizers.processors import TemplateProcessing

    plain_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", plain_tokenizer.bos_token_id)]
    )
    ids = encode_prompt(plain_tokenizer, prompt_text(plain_tokenizer, "How many?"))
    assert ids == plain_tokenizer("Question: How many?")["input_ids"]
    assert "bos_token" in chat_template_of(plain_tokenizer)


@pytest.mark.parametrize("answer_prompt", ["\nAnswer:", "\n It's \\ {{ odd }}:", ""])
def test_answer_prompt_ids_end_every_prompt(tiny_tokenizer, answer_prompt):
    ids = answer_prompt_ids(tiny_tokenizer, answer_prompt)
    tokenizer = with_answer_prompt(tiny_tokenizer, answer_prompt)
    full = encode_prompt(tokenizer, prompt_text(tokenizer, "A word"))
    assert full[len(full) - len(ids) :] == ids
    assert tokenizer.decode(ids) == answer_prompt


def test_an_answer_prompt_that_melts_into_the_question_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}A"
    with pytest.raises(ValueError, match="answer_prompt='nn'"):
        answer_prompt_ids(tokenizer, "nn")


def test_of_several_templates_the_default_one_is_used(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {"default": tiny_tokenizer.chat_template, "tool_use": "{{ messages }}"}
    expected = with_answer_prompt(tiny_tokenizer)
    made = with_answer_prompt(with_answer_prompt(tokenizer))
    assert made.chat_template == {"default": expected.chat_template, "tool_use": "{{ messages }}"}
    assert prompt_text(made, "How many?") == prompt_text(expected, "How many?")
    tokenizer.chat_template = {"tool_use": "{{ messages }}"}
    with pytest.raises(ValueError, match=r"named \['tool_use'\] but none named 'default'"):
        with_answer_prompt(tokenizer)
