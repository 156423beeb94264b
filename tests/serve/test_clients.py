"""Clients of OpenAI's API over the embedded engine; tests/serve/test_real_vllm.py has them over vLLM."""

import api_clients
import pytest
from served import running
from transformers import AutoTokenizer
from word_models import answer_of, make_models

from semcot_hf import SemCoTForCausalLM
from semcot_hf.serve.config import ServeConfig
from semcot_hf.serve.launch import app_of

needs_clients = pytest.mark.skipif(not api_clients.PYTHON, reason="SEMCOT_CLIENTS is not set: make vllm-test")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a server, and the answers of `generate` with implicit tokens and without."""
    folder = tmp_path_factory.mktemp("clients")
    make_models(folder)
    model = SemCoTForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    answers = [
        [answer_of(model, tokenizer, question, api_clients.NEW_TOKENS, count) for question in api_clients.QUESTIONS]
        for count in (None, 0)
    ]
    assert len({tuple(found) for found in answers}) == 2
    with running(app_of(model, tokenizer, ServeConfig(model="tiny"))) as url:
        yield url, *answers


@pytest.mark.slow
def test_transformers_chat_shows_the_answer(served, tmp_path):
    url, answers, _ = served
    shown = api_clients.transformers_chat(url, "tiny", api_clients.QUESTIONS[0], tmp_path)
    assert shown == answers[0].strip()


@pytest.mark.slow
@needs_clients
def test_langchain_gets_the_answers(served):
    url, answers, alone = served
    assert api_clients.langchain(url, "tiny") == {"batch": answers, "stream": answers, "host alone": alone}


@pytest.mark.slow
@needs_clients
def test_lm_eval_gets_the_answers(served, tmp_path):
    url, answers, _ = served
    assert api_clients.lm_eval(url, "tiny", [answers[0], "another"], tmp_path) == (answers, 0.5)
