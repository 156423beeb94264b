"""Thought prompts: what the generator reads around each question, its cached beginning, and the recipe "prompted"."""

import copy
import re
from pathlib import Path

import pytest
import torch
from slow_path import padded

from semcot_hf import SemCoTForCausalLM
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.modeling.thought_prompt_semcot import DEFAULT_THOUGHT_PROMPT, default_answer_prompt_ids

SHORT = [
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "Bob has 1."},
    {"role": "assistant", "content": "1"},
]
QUESTIONS = ["How many apples has Ann now?", " Ann gives one to Bob. ", "Bob?"]


def ids_of(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def make(tiny_lm, tiny_tokenizer):
    def make(family="llama", prompt=SHORT, **fields):
        changes = {"sliding_window": 12} if family == "gemma3_text" else {}
        return SemCoTForCausalLM.from_host_generator_pretrained(
            tiny_lm(),
            tiny_lm(family, 16, seed=1, max_position_embeddings=2048, **changes),
            recipe="prompted",
            tokenizer=tiny_tokenizer,
            thought_prompt=prompt,
            num_implicit_tokens=4,
            **fields,
        )

    return make


@torch.no_grad()
def thought_by_hand(model, tokenizer, question, prompt=SHORT):
    words, table = model.generator.get_input_embeddings(), model.host.get_input_embeddings()
    inputs, made = words(torch.tensor([ids_of(tokenizer, [*prompt, {"role": "user", "content": question}])])), []
    while len(made) < 4:
        state = model.generator(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -1]
        chosen = (state @ model.projection.weight.T).topk(8)
        if int(chosen.indices[0]) in model.config.end_of_thought_token_ids:
            break
        weights = chosen.values.softmax(dim=-1)
        made.append(weights @ table(chosen.indices))
        read = words(chosen.indices[0]) if model.config.word_feedback else weights @ words(chosen.indices)
        inputs = torch.cat([inputs, read[None, None]], dim=1)
    return torch.stack(made)


def prompts_of(tokenizer):
    tokenizer = with_answer_prompt(tokenizer)
    return [ids_of(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.mark.parametrize(
    ("family", "fields"), [("llama", {}), ("gpt2", {}), ("gemma3_text", {}), ("llama", {"word_feedback": False})]
)
def test_the_generator_reads_its_own_template(make, tiny_tokenizer, family, fields):
    model = make(family, **fields)
    assert model.config.word_feedback == (not fields)
    prompts = prompts_of(tiny_tokenizer)
    expected = [thought_by_hand(model, tiny_tokenizer, question) for question in QUESTIONS]

    def check():
        tokens, mask = model.implicit_embeddings(**padded(prompts), return_mask=True)
        for row, own in enumerate(expected):
            assert int(mask[row].sum()) == len(own)
            torch.testing.assert_close(tokens[row, : len(own)], own, atol=1e-6, rtol=1e-5)
            alone = model.implicit_embeddings(torch.tensor([prompts[row]]))[0]
            torch.testing.assert_close(alone, own, atol=1e-6, rtol=1e-5)

    with torch.no_grad():
        check()
        assert model._prompt_caches["generator"] is not None
        check()
    check()
    model.compile_generator(backend="eager")
    with torch.no_grad():
        check()


CHANGES = {
    "in place": lambda weight: weight.mul_(1.5),
    # As averages of weights are swapped in, and as DeepSpeed steps: torch counts no change of the parameter itself.
    "copied through data": lambda weight: weight.data.copy_(weight * 1.5),
    "in place through data": lambda weight: weight.data.mul_(1.5),
    "other data": lambda weight: setattr(weight, "data", weight * 1.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_new_weights_are_noticed(make, tiny_tokenizer, change):
    model, prompts = make(), prompts_of(tiny_tokenizer)[:1]
    with torch.no_grad():
        before = model.implicit_embeddings(torch.tensor(prompts))
        change(next(model.generator.parameters()))
        after = model.implicit_embeddings(torch.tensor(prompts))
        torch.testing.assert_close(
            after[0], thought_by_hand(model, tiny_tokenizer, QUESTIONS[0]), atol=1e-6, rtol=1e-5
        )
    assert after.shape != before.shape or not torch.allclose(after, before)


@torch.no_grad()
def test_each_weight_is_noticed(make, tiny_tokenizer):
    model = make()
    question = torch.tensor([[7, 8, 9]])

    def prompted():
        return model._prompted(question, None)[2].layers[-1].keys

    def fresh():
        model._prompt_caches = None
        return prompted()

    noticed = 0
    for weight in model.generator.parameters():
        before = prompted()
        weight.data.mul_(1.5)
        after = prompted()
        noticed += not torch.equal(after, before)
        assert torch.equal(after, fresh())
    assert noticed > 10


@torch.no_grad()
def test_adapters_that_are_switched_off_are_noticed(make):
    peft = pytest.importorskip("peft")
    model, question = make(), torch.tensor([[7, 8, 9]])
    plain = model._prompted(question, None)[2].layers[-1].keys
    model.generator.add_adapter(peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False))
    adapted = model._prompted(question, None)[2].layers[-1].keys
    model.generator.disable_adapters()
    assert torch.equal(model._prompted(question, None)[2].layers[-1].keys, plain)
    assert not torch.equal(adapted, plain)


@torch.no_grad()
def test_a_change_of_mode_reads_the_prompt_anew(make):
    """So that a single value is noticed, too, where it is changed between training and evaluation."""
    model, question = make().train(), torch.tensor([[7, 8, 9]])
    before = model._prompted(question, None)[2].layers[-1].keys
    model.generator.layers[0].mlp.up_proj.weight.data[0, 1] += 1
    after = model.eval()._prompted(question, None)[2].layers[-1].keys
    assert not torch.equal(after, before)


def test_system_messages_and_earlier_turns_are_no_question(make, tiny_tokenizer):
    model, tokenizer = make(), with_answer_prompt(tiny_tokenizer)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    made = model.implicit_embeddings(torch.tensor([ids_of(tokenizer, chat)]))[0]
    torch.testing.assert_close(made, thought_by_hand(model, tiny_tokenizer, QUESTIONS[0]), atol=1e-6, rtol=1e-5)
    # A prompt without the template's markers is read as it is.
    assert model.implicit_embeddings(torch.tensor([[40, 41, 42]])).isfinite().all()


def test_the_recipe(make, tiny_tokenizer, tmp_path):
    model = make(prompt=None)
    config = model.config
    assert (config.generator_mode, config.projection, config.thought_length) == (
        "sequential",
        "vocabulary",
        "adaptive",
    )
    assert (config.mixture_top_k, config.num_implicit_tokens, config.starts_with_thought_token) == (8, 4, False)
    assert config.answer_prompt_ids == answer_prompt_ids(tiny_tokenizer)
    assert {tiny_tokenizer.eos_token_id, *tiny_tokenizer("\n")["input_ids"]} <= set(config.end_of_thought_token_ids)
    examples = [message for message in DEFAULT_THOUGHT_PROMPT if message["role"] == "assistant"]
    assert len(examples) == 4
    for message in examples:
        for equation in message["content"].split("; "):
            left, right = equation.split("=")
            assert eval(left) == int(right)
    text = model.implicit_text(torch.tensor(prompts_of(tiny_tokenizer)[:1]))
    model.save_pretrained(tmp_path)
    again = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert again.implicit_text(torch.tensor(prompts_of(tiny_tokenizer)[:1]), tokenizer=tiny_tokenizer) == text


def test_answer_prompts_are_those_of_the_trainers(tiny_tokenizer, joining_tokenizer, char_tokenizer):
    for tokenizer in (tiny_tokenizer, joining_tokenizer, with_answer_prompt(tiny_tokenizer)):
        assert default_answer_prompt_ids(tokenizer) == answer_prompt_ids(tokenizer)


def test_a_generator_without_chat_template_reads_questions_and_thoughts(tiny_lm, joining_tokenizer):
    build = SemCoTForCausalLM.from_host_generator_pretrained
    parts = (tiny_lm(), tiny_lm(seed=1))
    model = build(*parts, recipe="prompted", tokenizer=joining_tokenizer, thought_prompt=SHORT, num_implicit_tokens=4)
    ids = joining_tokenizer("Question: a b?", add_special_tokens=False)["input_ids"]
    text = "Think.\n\nQuestion: Bob has 1.\nThought: 1\n\nQuestion: a b?\nThought:"
    before, after = model.config.thought_prompt_ids
    question, mask = model._questions(torch.tensor([ids]), None)
    assert joining_tokenizer.decode([*before, *question[0].tolist(), *after]) == text and mask is None
    assert model.implicit_embeddings(torch.tensor([ids])).isfinite().all()


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Question: Ann has 3. Question: How many now?", " Ann has 3. Question: How many now?"),
        ("Question: Ann has 3.\nQuestion: How many?", " Ann has 3.\nQuestion: How many?"),
        # Worked examples end on answers, behind the answer prompt.
        ("Question: Bob?\nAnswer: 1\n\nQuestion: How many?", " How many?"),
        ("Question: Bob?\nAnswer: 1\n\nQuestion: Ann has 3.\nQuestion: How many?", " Ann has 3.\nQuestion: How many?"),
        ("Be brief.\nQuestion: How many?", " How many?"),
    ],
)
def test_questions_of_plain_prompts_may_contain_the_words_before_them(tiny_lm, tiny_tokenizer, text, question):
    """In the form of hosts without a chat template, "Question:" is ordinary text."""
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        tiny_lm(), tiny_lm(seed=1), recipe="prompted", tokenizer=plain, thought_prompt=SHORT
    )
    prompts = [plain(prompt, add_special_tokens=False)["input_ids"] for prompt in (text, "Question: Bob?")]
    batch = padded(prompts)
    ids, mask = model._questions(batch["input_ids"], batch["attention_mask"])
    assert [plain.decode(row[real.bool()]) for row, real in zip(ids, mask, strict=True)] == [question, " Bob?"]
    made = model.config.candidate_prompt
    read, _ = model._questions(torch.tensor(prompts[:1]), None, [made["opening"], made["closing"]])
    assert plain.decode(read[0]) == question


def test_what_cannot_be_prompted(tiny_lm, tiny_tokenizer):
    parts = (tiny_lm(), tiny_lm(seed=1))
    build = SemCoTForCausalLM.from_host_generator_pretrained
    with pytest.raises(ValueError, match="recipe='prompt': must be one of"):
        build(*parts, recipe="prompt", tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match="tokenizer=None, and host or generator is a model without id or path"):
        build(*parts, recipe="prompted")
    long = [{"role": "user", "content": "Bob " * 300}]
    model = build(*parts, recipe="prompted", tokenizer=tiny_tokenizer, thought_prompt=long)
    with pytest.raises(ValueError, match="a thought prompt of .* more than the generator's context of 256"):
        model.implicit_embeddings(torch.tensor(prompts_of(tiny_tokenizer)[:1]))
    answerer = Answerer(model, with_answer_prompt(tiny_tokenizer), AnswerSettings(max_new_tokens=2))
    assert "a thought prompt of" in answerer.context_problem([5] * 30)


def test_the_snippets_of_the_documentation(tiny_lm, tiny_tokenizer, tmp_path, capsys):
    page = Path(__file__).parents[2] / "docs" / "soft-words.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[:3]
    assert 'recipe="prompted"' in code[0] and "implicit_thoughts" in code[2]
    for number, part in enumerate(("host", "generator")):
        tiny_lm(seed=number, max_position_embeddings=2048).save_pretrained(tmp_path / part)
        tiny_tokenizer.save_pretrained(tmp_path / part)
        code[0] = code[0].replace(re.search(r'"(Qwen/[^"]*)"', code[0])[1], str(tmp_path / part))
    exec("\n".join(code), names := {})
    assert names["mask"].sum() > 0 and names["model"].implicit_text(**names["prompt"])[0] in capsys.readouterr().out
