"""`Context`: which questions are too long for the models that read them, so that they do not fail those of a batch."""

import json

import pytest
import torch

from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.generate_file import generate_file
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.question_file import read_questions
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.inference.templates import change_few_shot
from semcot_hf.modeling.thought_prompt_semcot import candidate_prompt_fields

EXAMPLES = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "1+1=2"}] * 3
WORDS = {"generator_mode": "sequential", "projection": "vocabulary"}
# As Gemma's: a system message stands in the first question.
FOLDED = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ (system if loop.first else '') + message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def answered(tmp_path):
    """Function (model, tokenizer, queries, **options) -> rows of a file of questions with their answers."""

    def run(model, tokenizer, queries, **options):
        (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"query": query}) + "\n" for query in queries))
        questions = read_questions(tmp_path / "questions.jsonl", tmp_path / "answers.jsonl", overwrite=True)
        generate_file(model, tokenizer, questions, max_new_tokens=4, **options)
        return [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]

    return run


@pytest.fixture
def scoring(tiny_lm, tiny_semcot, tiny_tokenizer):
    """A model whose host scores candidate thoughts after worked examples."""
    made = candidate_prompt_fields(tiny_tokenizer, EXAMPLES)
    return tiny_semcot(
        generator=tiny_lm(hidden_size=16, seed=1, max_position_embeddings=1024),
        num_implicit_tokens=5,
        answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
        num_candidates=3,
        candidate_prompt=made,
        **WORDS,
    ).eval()


def test_a_question_too_long_for_the_candidate_prompt_gets_its_own_error(scoring, tiny_tokenizer, answered):
    queries = ["How many?", "apples " * 220, "How many apples?"]
    rows = answered(scoring, with_answer_prompt(tiny_tokenizer), queries)
    assert [row["output"] is None for row in rows] == [False, True, False]
    size = sum(len(scoring.config.candidate_prompt[name]) for name in ("before", "after", "end"))
    problem = f"a candidate prompt of {size} and a thought of 5 are more than the host's context of 256"
    assert problem in rows[1]["error"]
    assert answered(scoring, with_answer_prompt(tiny_tokenizer), queries[::2]) == rows[::2]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]], ids=["alone", "system"])
def test_what_counts_is_what_the_host_reads(scoring, tiny_tokenizer, system):
    """To the token; a system message is no part of it."""
    answerer = Answerer(scoring, with_answer_prompt(tiny_tokenizer), AnswerSettings(max_new_tokens=1))
    chats = [[*system, {"role": "user", "content": "How?" + " a" * number}] for number in range(198, 208)]
    found = []
    for prompt in answerer.prompts(chats):
        ids = torch.tensor([prompt[: -len(scoring.config.answer_prompt_ids)]])
        problem = answerer.context_problem(prompt)
        try:
            scoring.thought_log_probabilities(ids, None, [[5] * 5])
        except ValueError:
            assert problem is not None
            found.append(True)
        else:
            assert problem is None
            found.append(False)
    assert {*found} == {True, False}


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"num_candidates": 1}, {}),
        ({"num_implicit_tokens": 0}, {}),
        ({"method": "no_cot"}, {}),
        ({"method": "generator"}, {}),
        ({}, {"candidate_host_weight": 0.0}),
        ({}, {"num_candidates": 1}),
        ({}, {"candidate_prompt": None}),
    ],
)
def test_a_candidate_prompt_that_is_not_read_counts_for_nothing(scoring, tiny_tokenizer, answered, settings, fields):
    for name, value in fields.items():
        setattr(scoring.config, name, value)
    [row] = answered(scoring, with_answer_prompt(tiny_tokenizer), ["apples " * 220], **settings)
    assert "error" not in row and row["output"]


def test_worked_examples_count_where_a_prompt_shows_them(tiny_lm, tiny_semcot, tiny_tokenizer, answered):
    """Templates without system role show none beside a system message: nothing is to be left out of these prompts."""
    tokenizer = with_answer_prompt(tiny_tokenizer)
    tokenizer.chat_template = FOLDED + tokenizer.decode(answer_prompt_ids(tiny_tokenizer))
    generator = tiny_lm(hidden_size=16, seed=1, max_position_embeddings=60)
    model = tiny_semcot(generator=generator, answer_prompt_ids=answer_prompt_ids(tiny_tokenizer))
    shown = change_few_shot(model, tokenizer, [{"query": "1 and 2?" * 4, "words": "1+2", "answer": "3"}])
    system = {"role": "system", "content": "Be brief. "}
    chats = [[system, {"role": "user", "content": text}] for text in ("How many?", "Why? " * 14)]
    rows = answered(model, shown, [*chats, "Why?"])
    assert [row["output"] is None for row in rows] == [False, True, False]
    assert "more than the generator's context of 60" in rows[1]["error"]
