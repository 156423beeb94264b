"""Escalated answers of `Answerer`, `evaluate` and `generate_file`: routes, signals and records, as one by one."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from evaluation_models import answering_host, coin_flip_tokenizer, tiny_llama, tiny_semcot_over

from semcot_hf import SemCoTForCausalLM, build_alignment_encoder
from semcot_hf.cli.main import main
from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation import evaluate
from semcot_hf.evaluation.report import markdown_report
from semcot_hf.inference.answering import Answerer, answer_questions
from semcot_hf.inference.escalating import alignment_similarity, escalation_argument
from semcot_hf.inference.generate_file import GenerateConfig, generate_file
from semcot_hf.inference.prompting import answer_prompt_ids
from semcot_hf.inference.question_file import read_questions
from semcot_hf.inference.settings import AnswerSettings
from semcot_hf.modeling.escalation_semcot import Escalation

ROWS = coin_flip.generate(10, seed=4, split="test")
QUERIES = [row["query"] for row in ROWS]
SIGNALS = ["answer_probability", "thought_entropy", "agreement", "host_entropy", "similarity"]
OPTIONS = dict(batch_size=4, max_new_tokens=6, progress=False, command="test", latency_samples=0, controls=False)


@pytest.fixture(scope="module")
def tokenizer():
    return coin_flip_tokenizer()


@pytest.fixture(scope="module")
def host(tokenizer):
    return answering_host(tokenizer)


@pytest.fixture(scope="module")
def model(host, tokenizer):
    return tiny_semcot_over(host, tokenizer)


@pytest.fixture(scope="module")
def words(host, tokenizer):
    generator = tiny_llama(tokenizer, 16, seed=5).double()
    for weight in generator.parameters():
        weight.data *= 4
    return SemCoTForCausalLM.from_host_generator_pretrained(
        host,
        generator,
        num_implicit_tokens=5,
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        mixture_top_k=2,
        end_of_thought_token_ids=[tokenizer.eos_token_id],
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    )


@pytest.fixture(scope="module")
def threshold(model, tokenizer):
    """A threshold between the confidences of the answers."""
    made = answer_questions(model, tokenizer, QUERIES, signals=["answer_probability"], max_new_tokens=6)
    ordered = sorted(answer.confidence for answer in made)
    return (ordered[4] + ordered[5]) / 2


def test_settings_are_passed_in_one_way(model, tokenizer, monkeypatch):
    """transformers deprecates a configuration beside single settings."""
    told = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(f"transformers.generation.utils.logger.{name}", lambda text, *_, **__: told.append(text))
    for options in ({"method": "escalated", "escalation": 1.0}, {"signals": ["answer_probability"]}):
        answer_questions(model, tokenizer, QUERIES[:2], max_new_tokens=4, **options)
    assert not [text for text in told if "deprecated" in text]


@pytest.mark.parametrize("which", ["model", "words"])
def test_escalated_answers_are_those_of_the_methods(which, tokenizer, request, threshold):
    semcot = request.getfixturevalue(which)
    implicit = answer_questions(
        semcot, tokenizer, QUERIES, method="semcot", max_new_tokens=6, signals=["host_entropy"]
    )
    cot = answer_questions(semcot, tokenizer, QUERIES, method="cot", max_new_tokens=9)
    rule = Escalation(threshold, max_reasoning_tokens=9)
    settings = AnswerSettings(method="escalated", escalation=rule, max_new_tokens=6)
    answerer = Answerer(semcot, tokenizer, settings)
    assert answerer.extra == semcot.config.num_implicit_tokens + 9
    made = answerer.answers(QUERIES, batch_size=4)
    for own, direct, reasoned in zip(made, implicit, cot, strict=True):
        assert own.confidence == pytest.approx(direct.signals["answer_probability"], abs=1e-5)
        assert own.route == ("explicit" if own.confidence < threshold else "implicit")
        expected = reasoned if own.route == "explicit" else direct
        assert (own.output, own.new_tokens, own.finished) == (
            expected.output,
            expected.new_tokens,
            expected.finished,
        )
        assert own.implicit_tokens == direct.implicit_tokens and own.thought_ended == direct.thought_ended
        assert direct.route == "implicit" and direct.signals["host_entropy"] > 0
    alone = [answerer.answers([query])[0] for query in QUERIES]
    assert [(a.output, a.route) for a in alone] == [(a.output, a.route) for a in made]
    plain = answer_questions(semcot, tokenizer, QUERIES, method="semcot", max_new_tokens=6)
    assert [a.output for a in plain] == [a.output for a in implicit]
    assert [(a.implicit_tokens, a.thought_ended) for a in plain] == [
        (a.implicit_tokens, a.thought_ended) for a in implicit
    ]
    assert plain[0].signals is None and plain[0].route is None


def test_answers_that_are_cut_off_are_not_finished(model, tokenizer, monkeypatch):
    """Also where rows of other routes are longer, so that end-of-sequence tokens pad them."""
    padded_by_ends = copy.deepcopy(tokenizer)
    padded_by_ends.pad_token = tokenizer.eos_token
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [tokenizer.eos_token_id])
    made = answer_questions(model, tokenizer, QUERIES, signals=["answer_probability"], max_new_tokens=6)
    sure = sorted(answer.confidence for answer in made)
    rule = Escalation((sure[4] + sure[5]) / 2, max_reasoning_tokens=9)
    options = {"method": "escalated", "escalation": rule, "max_new_tokens": 6}
    for own in (tokenizer, padded_by_ends):
        made = answer_questions(model, own, QUERIES, **options)
        told = {(answer.route, answer.new_tokens, answer.finished) for answer in made}
        assert told == {("implicit", 6, False), ("explicit", 9, False)}


def test_a_question_that_fills_the_context_shortens_no_others_reasoning(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.generation_config, "suppress_tokens", [tokenizer.eos_token_id])
    rule = Escalation(1.0, max_reasoning_tokens=400)
    settings = AnswerSettings(method="escalated", escalation=rule, max_new_tokens=6)
    queries = [QUERIES[0], " flips" * 150, QUERIES[1]]
    answerer = Answerer(model, tokenizer, settings)
    lengths = [len(ids) - len(model.config.answer_prompt_ids) for ids in answerer.prompts(queries)]
    made = answerer.answers(queries)
    assert [answer.new_tokens for answer in made] == [400, 512 - lengths[1], 400] and lengths[1] > 150
    assert not any(answer.finished for answer in made)
    assert [answer.output for answer in made] == [answerer.answers([query])[0].output for query in queries]


def test_the_limit_of_reasoning_is_the_options_or_else_the_rules(model, tokenizer, monkeypatch):
    rule = Escalation(0.5, max_reasoning_tokens=6)
    monkeypatch.setattr(model.config, "escalation", rule.to_dict())
    for escalation in (True, 0.5, rule, rule.to_dict()):
        for asked, used in ((None, 6), (9, 9)):
            settings = AnswerSettings(method="escalated", escalation=escalation, max_reasoning_tokens=asked)
            assert Answerer(model, tokenizer, settings).rule == replace(rule, max_reasoning_tokens=used)
    assert model.config.escalation == rule.to_dict()
    monkeypatch.setattr(model.config, "escalation", None)
    for asked, used in ((None, 8), (9, 9)):
        settings = AnswerSettings(method="escalated", escalation=0.5, max_new_tokens=8, max_reasoning_tokens=asked)
        assert Answerer(model, tokenizer, settings).rule.max_reasoning_tokens == used


def test_errors_name_the_limit_that_was_set(model, tokenizer):
    for options, name in (
        (dict(max_new_tokens=9_000), "max_new"),
        (dict(max_reasoning_tokens=9_000), "max_reasoning"),
    ):
        answerer = Answerer(model, tokenizer, AnswerSettings(method="cot", **options))
        end = f"9000 new tokens are more than the context of 512: shorten the question or lower {name}_tokens"
        assert answerer.context_problem([5] * 10).endswith(end)


def test_a_router_makes_no_tokens(model, tokenizer):
    router = {"signals": ["host_probability"], "calibration": None, "threshold": 0.0, "sends": "at_once"}
    rule = Escalation(0.5, router=router)
    made = answer_questions(model, tokenizer, QUERIES[:3], method="escalated", escalation=rule, max_new_tokens=6)
    direct = answer_questions(model, tokenizer, QUERIES[:3], method="no_cot", max_new_tokens=6)
    assert [(a.output, a.route, a.implicit_tokens) for a in made] == [(a.output, "at_once", 0) for a in direct]
    assert {*made[0].signals} == {"host_probability", "host_entropy", "question_tokens"}


def test_similarity(host, model, tokenizer):
    """The cosine of f(implicit tokens) and f(question), with the question as the encoder reads text."""
    encoder = build_alignment_encoder(host, tokenizer, embedding_dim=8)
    answerer = Answerer(model, tokenizer, AnswerSettings(signals=["similarity"], max_new_tokens=2))
    answerer.signal_functions["similarity"] = alignment_similarity(model, encoder)
    made = answerer.answers(QUERIES[:3])
    for query, answer in zip(QUERIES, made, strict=False):
        ids = list(answerer.prompts([query]))[0]
        tokens = model.implicit_embeddings(torch.tensor([ids]))
        question = tokenizer.decode(ids[: -len(model.config.answer_prompt_ids)])
        thought = encoder({"inputs_embeds": tokens, "attention_mask": torch.ones(1, 4)})["sentence_embedding"]
        expected = torch.cosine_similarity(thought.cpu(), encoder.encode([question], convert_to_tensor=True).cpu())
        assert answer.signals["similarity"] == pytest.approx(float(expected.detach()), abs=1e-5)
    with pytest.raises(ValueError, match="similarity.*alignment encoder"):
        answer_questions(model, tokenizer, QUERIES[:1], signals=["similarity"], max_new_tokens=2)
    other = build_alignment_encoder(tiny_llama(tokenizer, 16, seed=0), tokenizer, embedding_dim=8)
    with pytest.raises(ValueError, match="states of size 16, and the host has hidden_size=32"):
        alignment_similarity(model, other)


def test_evaluation_stores_routes_and_signals(words, host, tokenizer, tmp_path, threshold):
    encoder = tmp_path / "encoder"
    build_alignment_encoder(host, tokenizer, embedding_dim=8).save(str(encoder))
    config = dict(OPTIONS, methods=["no_cot", "semcot"], output_dir=tmp_path / "run", alignment_encoder=str(encoder))
    report = evaluate(words, tokenizer, ROWS, escalate=threshold, signals=SIGNALS, **config)
    assert [row["method"] for row in report["rows"]] == ["no_cot", "semcot", "escalated"]

    def records(name):
        lines = (tmp_path / "run" / f"predictions-{name}.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda record: record["index"])

    semcot, escalated = records("semcot"), records("escalated")
    for record, other in zip(semcot, escalated, strict=True):
        assert {*record["signals"]} >= {*SIGNALS, "min_token_probability", "thought_ended"}
        assert all(isinstance(value, float) and math.isfinite(value) for value in record["signals"].values())
        assert other["confidence"] == pytest.approx(record["signals"]["answer_probability"], abs=1e-5)
        assert other["route"] == ("explicit" if other["confidence"] < threshold else "implicit")
    share = sum(record["route"] == "explicit" for record in escalated) / len(escalated)
    assert report["rows"][-1]["share_explicit"] == share and report["rows"][-1]["share_at_once"] == 0
    assert f"SemCoT, escalated: {100 * share:.1f} % of the answers by explicit reasoning" in markdown_report(report)
    assert "signals" not in records("no_cot")[0]
    # A finished run is read again; without signals it is another run.
    again = evaluate(words, tokenizer, ROWS, escalate=threshold, signals=SIGNALS, **config)
    assert again["rows"] == report["rows"]
    with pytest.raises(ValueError, match="another run .*escalation.*signals"):
        evaluate(words, tokenizer, ROWS, **{**config, "alignment_encoder": None})


def test_an_encoder_that_the_rule_reads_belongs_to_the_run(model, host, tokenizer, tmp_path, monkeypatch):
    encoders = [tmp_path / name for name in "ab"]
    for encoder in encoders:
        build_alignment_encoder(host, tokenizer, embedding_dim=8).save(str(encoder))
    calibration = {"kind": "isotonic", "x": [-1.0, 1.0], "y": [0.0, 1.0]}
    rule = Escalation(0.5, signals=["similarity"], calibration=calibration)
    monkeypatch.setattr(model.config, "escalation", rule.to_dict())
    config = dict(OPTIONS, methods=["escalated"], output_dir=tmp_path / "run")
    first = evaluate(model, tokenizer, ROWS, **config, alignment_encoder=str(encoders[0]))
    assert evaluate(model, tokenizer, ROWS, **config, alignment_encoder=str(encoders[0]))["rows"] == first["rows"]
    with pytest.raises(ValueError, match="another run .alignment_encoder: "):
        evaluate(model, tokenizer, ROWS, **config, alignment_encoder=str(encoders[1]))


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"escalate": "2"}, "escalate='2': must be a threshold from 0 to 1"),
        ({"escalate": "often"}, "escalate='often'"),
        ({"escalate": "own"}, "semcot calibrate"),
        ({"signals": ["mood"]}, "signals has 'mood'"),
        ({"signals": ["agreement"], "methods": ["no_cot"]}, "is of the method 'semcot'"),
        ({"signals": ["agreement"], "methods": ["semcot"]}, "'agreement', but .* are no words"),
        ({"alignment_encoder": "encoder"}, "alignment_encoder='encoder' is for the .*: leave it out"),
        ({"alignment_encoder": "encoder", "escalate": "0.5"}, "alignment_encoder='encoder' is for the signal"),
    ],
    ids=str,
)
def test_bad_options_of_an_evaluation(model, tokenizer, options, problem):
    with pytest.raises(ValueError, match=problem):
        evaluate(model, tokenizer, ROWS, **{**OPTIONS, **options})


def test_models_without_escalation(host, tokenizer):
    with pytest.raises(ValueError, match="method='escalated': a model of type 'llama' has no_cot, cot"):
        answer_questions(host, tokenizer, QUERIES[:1], method="escalated")
    assert escalation_argument(True) is True
    with pytest.raises(ValueError, match="escalate=False"):
        escalation_argument(False)


def test_files(model, tokenizer, tmp_path, threshold, capsys):
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps({"query": query}) + "\n" for query in QUERIES))
    questions = read_questions(source, tmp_path / "answers.jsonl")
    summary = generate_file(model, tokenizer, questions, escalate=str(threshold), max_new_tokens=6, progress=False)
    expected = answer_questions(model, tokenizer, QUERIES, method="escalated", escalation=threshold, max_new_tokens=6)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    for row, answer in zip(rows, expected, strict=True):
        assert row["output"] == answer.output and row["output_route"] == answer.route
        assert row["output_confidence"] == pytest.approx(answer.confidence, abs=1e-5)
    assert summary.escalated == sum(answer.route == "explicit" for answer in expected)
    assert f"{summary.escalated} by explicit reasoning and 0 at once" in str(summary)
    with pytest.raises(ValueError, match="escalate='0.5' belongs to method='escalated'"):
        generate_file(model, tokenizer, questions, escalate="0.5", method="cot")
    routes = [row["output_route"] for row in rows]
    longer = dict(max_new_tokens=6, max_reasoning_tokens=9)
    generate_file(model, tokenizer, questions, escalate="1", progress=False, overwrite=True, **longer)
    expected = answer_questions(model, tokenizer, QUERIES, method="cot", max_new_tokens=9)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == [answer.output for answer in expected]
    with pytest.raises(ValueError, match="max_reasoning_tokens=0 must lie"):
        GenerateConfig(max_reasoning_tokens=0)
    # The command's flag stands alone for the checkpoint's rule.
    model.config.includes_host = True
    model.config.escalation = Escalation(threshold, max_reasoning_tokens=6).to_dict()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model.config.escalation = None
    arguments = ["--input", str(source), "--max_new_tokens", "6", "--dtype", "float64"]
    output = tmp_path / "own.jsonl"
    main(["generate", "--model", str(tmp_path / "model"), "--output", str(output), "--escalate", *arguments])
    assert [json.loads(line)["output_route"] for line in output.read_text().splitlines()] == routes
    assert "by explicit reasoning" in capsys.readouterr().out
