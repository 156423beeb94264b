"""Tests of `write_variant` on every layout of a checkpoint: what is written is loaded, weights stay."""

import pytest
import torch
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.calibration.candidates import Candidates, write_candidates
from semcot_hf.calibration.few_shot import write_few_shot
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.inference.templates import few_shot_messages

EXAMPLES = [{"query": "2 and 2?", "words": "2+2", "answer": "4"}]
WORDS = dict(
    generator_mode="sequential",
    projection="vocabulary",
    thought_length="adaptive",
    end_of_thought_token_ids=[2],
    num_implicit_tokens=4,
)


@pytest.mark.parametrize("vocabularies", [1, 2])
@pytest.mark.parametrize("include_host", [True, False])
def test_a_checkpoint_gets_examples_and_candidates(
    tiny_lm, tiny_tokenizer, char_tokenizer, tmp_path, vocabularies, include_host
):
    host, folder = tiny_lm(dtype=torch.float32), tmp_path / "model"
    host.save_pretrained(tmp_path / "host")
    host = type(host).from_pretrained(tmp_path / "host")
    generator, others = tiny_lm(dtype=torch.float32, seed=4), {}
    if vocabularies == 2:
        generator = tiny_lm(vocab_size=len(char_tokenizer), dtype=torch.float32, seed=4)
        others = {"host_tokenizer": tiny_tokenizer, "generator_tokenizer": char_tokenizer}
    answer = {"answer_prompt_ids": answer_prompt_ids(tiny_tokenizer)}
    model = SemCoTForCausalLM.from_host_generator_pretrained(host, generator, **WORDS, **others, **answer)
    model.save_pretrained(folder, include_host=include_host)
    with_answer_prompt(tiny_tokenizer).save_pretrained(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    write_few_shot(folder, EXAMPLES)
    write_candidates(folder, Candidates(3, 1.0))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    found, tokenizer = SemCoTForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert found.config.includes_host == include_host
    assert (found.config.num_candidates, found.config.candidate_host_weight) == (3, 1.0)
    assert [message["content"] for message in few_shot_messages(tokenizer)] == ["2 and 2?", "2+2\nAnswer: 4"]
    chat = [{"role": "user", "content": "3 and 3?"}]
    shown, bare = (
        torch.tensor([tokenizer.apply_chat_template(chat, add_generation_prompt=True, few_shot=shows)["input_ids"]])
        for shows in (True, False)
    )
    assert shown.shape[1] == bare.shape[1] + len(found.config.few_shot_ids)
    # The generator reads the prompt without the examples, as before.
    found.config.num_candidates = 1
    with torch.no_grad():
        torch.testing.assert_close(model.eval().implicit_embeddings(bare), found.implicit_embeddings(bare))
        torch.testing.assert_close(found.implicit_embeddings(bare), found.implicit_embeddings(shown))
    assert found.generate(shown, max_new_tokens=2, do_sample=False).shape[1] > shown.shape[1]
