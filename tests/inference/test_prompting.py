"""Prompts: one rendering for training and generation, for tokenizers with and without a chat template."""

import copy

import pytest
from conftest import CHAT_TEMPLATE
from tokenizers import AddedToken

from semcot_hf.inference.prompting import (
    answer_prompt_ids,
    chat_template_of,
    choose_answer_prompt,
    default_answer_prompt,
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


def test_contents_in_parts_are_their_text(plain_tokenizer):
    """As transformers' pipelines pass them for some models."""

    def parts(text):
        return [{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}]

    chat = [("system", "Be brief."), ("user", " How many? "), ("assistant", "Two."), ("user", "Sure?")]
    tokenizer = with_answer_prompt(plain_tokenizer)
    expected = "\nBe brief.\nQuestion: How many?\nTwo.\nQuestion: Sure?\nAnswer:"
    for shown in (str, parts):
        messages = [{"role": role, "content": shown(text)} for role, text in chat]
        assert prompt_text(tokenizer, messages) == expected


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


TEMPLATES = {
    "chatml": "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}",
    "llama3": "{% for m in messages %}<bos>{{ m.role }}\n\n{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n\n{% endif %}",
    "three": "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>\n\n\n{% endif %}",
    "space": "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
    "spaces": "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:  {% endif %}",
    "special": CHAT_TEMPLATE,
    "plain": None,
}
EXPECTED = {"special": "\nAnswer:", "space": " Answer:", "spaces": " Answer:", "plain": " Answer:"}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("query", ["What is 2?", "Compute (2)", "Name it", "Twelve\n\n", "Odd "])
def test_the_default_answer_prompt_ends_every_prompt_of_a_tokenizer_that_joins(joining_tokenizer, template, query):
    tokenizer = copy.deepcopy(joining_tokenizer)
    tokenizer.chat_template = TEMPLATES[template]
    answer_prompt = default_answer_prompt(tokenizer)
    assert answer_prompt == EXPECTED.get(template, "Answer:")
    ids = answer_prompt_ids(tokenizer)
    prompted = with_answer_prompt(tokenizer)
    bare = encode_prompt(tokenizer, prompt_text(tokenizer, query))
    assert encode_prompt(prompted, prompt_text(prompted, query)) == bare + ids
    assert default_answer_prompt(prompted) == answer_prompt and answer_prompt_ids(prompted) == ids
    assert with_answer_prompt(prompted).chat_template == prompted.chat_template
    assert choose_answer_prompt(tokenizer, None, []) == answer_prompt
    assert choose_answer_prompt(prompted, None, ids) == answer_prompt


def test_where_no_default_answer_prompt_holds_the_error_says_what_to_pass(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}x"
    tokenizer.add_tokens([AddedToken("x\nAn", normalized=False), AddedToken("x An", normalized=False)])
    with pytest.raises(ValueError, match=r"answer_prompt=None: each of '\\nAnswer:'.*pass answer_prompt='...'"):
        default_answer_prompt(tokenizer)
