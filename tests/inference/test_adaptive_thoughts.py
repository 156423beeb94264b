"""Thoughts whose length the generator chooses, in answers, controls, files of questions and evaluations."""

import json

import pytest
import torch
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_llama

from semcot_hf import SemCoTForCausalLM
from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation import ControlTokens, answer_questions, evaluate
from semcot_hf.evaluation.controls import derangement
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.generate_file import generate_file
from semcot_hf.inference.prompting import answer_prompt_ids, encode_prompts
from semcot_hf.inference.question_file import read_questions
from semcot_hf.inference.settings import AnswerSettings

ROWS = coin_flip.generate(9, seed=4, split="test")
QUERIES = [row["query"] for row in ROWS]
LIMIT = 5


@pytest.fixture(scope="module")
def tokenizer():
    return coin_flip_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model whose thoughts have several lengths, one of them the limit."""
    host = answering_host(tokenizer, positions=1024)
    generator = tiny_llama(tokenizer, 16, seed=5).double()
    for weight in generator.parameters():
        weight.data *= 4
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        host,
        generator,
        num_implicit_tokens=LIMIT,
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        mixture_top_k=2,
        end_of_thought_token_ids=[419],
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    )
    words = [model.implicit_words(torch.tensor([prompt]))[0][0].tolist() for prompt in prompts_of(tokenizer)]

    def lengths(end):
        return {row.index(end) if end in row else LIMIT for row in words}

    end = max({word for row in words for word in row}, key=lambda word: (LIMIT in lengths(word), len(lengths(word))))
    model.config.end_of_thought_token_ids = [end]
    assert len(lengths(end)) > 2 and LIMIT in lengths(end)
    return model


def prompts_of(tokenizer):
    return list(encode_prompts(tokenizer, QUERIES, method="semcot"))


@pytest.fixture(scope="module")
def alone(model, tokenizer):
    """(text, number of implicit tokens) of each question, by the model's own `generate`."""
    made = []
    for prompt in prompts_of(tokenizer):
        ids = torch.tensor([prompt])
        out = model.generate(ids, max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
        made.append((text, model.implicit_embeddings(ids).shape[1]))
    return made


def test_batched_answers_and_their_thoughts(model, tokenizer, alone):
    for size in (1, 4):
        answers = answer_questions(model, tokenizer, QUERIES, method="semcot", batch_size=size, max_new_tokens=6)
        assert [(answer.output, answer.implicit_tokens) for answer in answers] == alone
        assert [answer.thought_ended for answer in answers] == [count < LIMIT for _, count in alone]
    answers = answer_questions(model, tokenizer, QUERIES, method="no_cot", max_new_tokens=6)
    assert {(answer.implicit_tokens, answer.thought_ended) for answer in answers} == {(None, True)}


def test_a_shared_prefix(model, tokenizer, alone):
    queries = [
        [{"role": "system", "content": "Answer with yes or no. " * 8}, {"role": "user", "content": q}] for q in QUERIES
    ]
    answerer = Answerer(model, tokenizer, AnswerSettings(method="semcot", max_new_tokens=6))
    prompts = list(answerer.prompts(queries))
    own = [answer for _, part in answerer.parts(prompts, range(9)) for answer in part]
    answerer.share_prefix(prompts)
    assert len(answerer.prefix) > 16
    shared = [answer for _, part in answerer.parts(prompts, range(9)) for answer in part]
    assert [(a.output, a.implicit_tokens) for a in shared] == [(a.output, a.implicit_tokens) for a in own]
    assert len({a.implicit_tokens for a in own}) > 1


def test_controls_keep_their_lengths(model, tokenizer, alone):
    counts = torch.tensor([count for _, count in alone])
    control = ControlTokens(model, prompts_of(tokenizer), batch_size=4, seed=7)
    others = derangement(9, 7)
    tokens, mask = control.embeddings("other_question", [3, 0])
    assert torch.equal(mask.sum(dim=1), counts[[others[3], others[0]]])
    assert torch.equal(tokens, control.tokens[[others[3], others[0]]])
    mean, mask = control.embeddings("mean", [1, 2])
    assert torch.equal(mask.sum(dim=1), counts[[1, 2]])
    last = int(counts.max()) - 1
    torch.testing.assert_close(mean[0, last], control.tokens[counts > last, last].mean(dim=0), atol=1e-5, rtol=1e-5)
    noise, mask = control.embeddings("noise", [1, 2])
    torch.testing.assert_close(noise.norm(dim=-1), control.tokens[[1, 2]].norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(mask.sum(dim=1), counts[[1, 2]])


def test_reports_count_thoughts_without_end(model, tokenizer, alone, tmp_path):
    report = evaluate(
        model,
        tokenizer,
        ROWS,
        output_dir=tmp_path / "run",
        batch_size=4,
        max_new_tokens=6,
        progress=False,
        latency_samples=2,
    )
    row = next(row for row in report["rows"] if row["method"] == "semcot")
    open_ends = sum(count == LIMIT for _, count in alone)
    assert row["thoughts_not_ended"] == open_ends > 0
    assert row["implicit_tokens"] == sum(count for _, count in alone) / 9
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"SemCoT: {open_ends} of 9 thoughts were not ended at the limit of implicit tokens." in text
    assert [control["control"] for control in report["controls"]] == ["none", "other_question", "mean", "noise"]


def test_files(model, tokenizer, alone, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"query": query}) + "\n" for query in QUERIES))
    questions = read_questions(path, tmp_path / "answers.jsonl")
    summary = generate_file(model, tokenizer, questions, max_new_tokens=6, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row[questions.output_column] for row in rows] == [text for text, _ in alone]
    assert summary.thoughts_not_ended == sum(count == LIMIT for _, count in alone)
    assert "thoughts not ended" in str(summary)


@pytest.fixture(scope="module")
def other_model(tokenizer, char_tokenizer):
    """A model whose generator has other words than its host, and hands some of its thoughts over as text."""
    for seed in range(20):
        generator = tiny_llama(char_tokenizer, 16, seed=seed).double()
        generator.resize_token_embeddings(140)
        for weight in generator.parameters():
            weight.data *= 4
        model = SemCoTForCausalLM.from_host_generator_pretrained(
            answering_host(tokenizer, steps=4, positions=1024),
            generator,
            num_implicit_tokens=LIMIT,
            generator_mode="sequential",
            projection="vocabulary",
            thought_length="adaptive",
            mixture_top_k=3,
            end_of_thought_token_ids=[139],
            max_lost_probability=1.0,
            host_tokenizer=tokenizer,
            generator_tokenizer=char_tokenizer,
            answer_prompt_ids=answer_prompt_ids(tokenizer),
        )
        most = sorted(
            max(own.lost_probability.flatten().tolist(), default=0.0) for own in thoughts_of(model, tokenizer)
        )
        if most[3] < most[4]:
            model.config.max_lost_probability = (most[3] + most[4]) / 2
            return model
    raise AssertionError("no seed gives thoughts that lose enough")


def thoughts_of(model, tokenizer):
    with torch.no_grad():
        return [model.implicit_thoughts(torch.tensor([prompt])) for prompt in prompts_of(tokenizer)]


def test_what_the_host_lacks_is_reported(other_model, tokenizer, tmp_path):
    thoughts = thoughts_of(other_model, tokenizer)
    shares = [own.lost_probability.flatten().tolist() or [0.0] for own in thoughts]
    lost = [(sum(row) / len(row), max(row)) for row in shares]
    as_text = [own.as_text.item() for own in thoughts]
    assert sum(as_text) == 5
    options = dict(max_new_tokens=4, batch_size=4)
    answers = answer_questions(other_model, tokenizer, QUERIES, method="semcot", **options)
    assert [answer.thought_as_text for answer in answers] == as_text
    assert [answer.thought_ended for answer in answers] == [own.ended.item() for own in thoughts]
    assert [answer.implicit_tokens for answer in answers] == [own.embeddings.shape[1] for own in thoughts]
    for answer, own in zip(answers, lost, strict=True):
        assert answer.lost_probability == pytest.approx(own)
    report = evaluate(
        other_model, tokenizer, ROWS, output_dir=tmp_path / "run", progress=False, latency_samples=0, **options
    )
    row = next(row for row in report["rows"] if row["method"] == "semcot")
    mean, largest = sum(share for share, _ in lost) / 9, max(share for _, share in lost)
    assert row["lost_probability"] == {"mean": pytest.approx(mean), "max": pytest.approx(largest)}
    assert row["thoughts_as_text"] == 5
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"on average {100 * mean:.2f} % of a mixture are on words that the host lacks, at most" in text
    assert f"{100 * largest:.1f} % of one; 5 of 9 thoughts were handed over as text." in text
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"query": query}) + "\n" for query in QUERIES))
    summary = generate_file(
        other_model, tokenizer, read_questions(path, tmp_path / "answers.jsonl"), max_new_tokens=4, progress=False
    )
    assert (summary.thoughts_as_text, summary.lost_probability) == (5, pytest.approx((mean, largest)))
    assert "5 thoughts handed over as text" in str(summary)
