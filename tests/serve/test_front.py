"""`load_front`: a checkpoint of whose host only the word embeddings are read."""

import pytest
import torch

from semcot_hf import SemCoTForCausalLM
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.serve.front import Front, load_front
from semcot_hf.serve.jobs import Job


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.mark.parametrize("layout", ["attached", "whole"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_front_reads_the_hosts_word_embeddings_only(layout, family, tiny_lm, tiny_semcot, tokenizer, tmp_path):
    tiny_lm(family).save_pretrained(tmp_path / "host")
    tiny_lm(hidden_size=16, seed=5).save_pretrained(tmp_path / "generator")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        str(tmp_path / "host"), str(tmp_path / "generator"), answer_prompt_ids=answer_prompt_ids(tokenizer)
    )
    model.save_pretrained(tmp_path / "model", include_host=layout == "whole")
    front = load_front(str(tmp_path / "model"))
    held = [name for name, value in front.host.named_parameters() if value.device.type != "meta" and value.dim() > 1]
    assert [name for name in held if "embed" not in name and "head" not in name] == []
    assert front.config.host_name_or_path == (str(tmp_path / "host"))
    jobs = [Job(list(range(5, 20)), lambda event: None, count=3) for _ in range(2)]
    made, slow = (Front(of, tokenizer).prompts(jobs) for of in (front, model))
    for one, whole in zip(made, slow, strict=True):
        torch.testing.assert_close(one, whole)


def test_a_plain_causal_lm_needs_no_front(tiny_lm, tmp_path):
    tiny_lm().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='llama', and makes no implicit tokens: serve it by `vllm serve`"):
        load_front(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "head"])
def test_candidates_that_the_host_would_choose_are_refused(tied, tiny_lm, tiny_semcot, tmp_path):
    """The front's host has no layers to score them; those that the generator chooses alone are made as ever."""
    host = tiny_lm(tie_word_embeddings=tied)
    fields = {"generator_mode": "sequential", "projection": "vocabulary", "thought_length": "adaptive"}
    model = tiny_semcot(
        host, num_implicit_tokens=5, end_of_thought_token_ids=list(range(0, 320, 7)), num_candidates=6,
        candidate_temperature=1.5, candidate_host_weight=0.5, **fields,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "by_host", include_host=True)
    wanted = "num_candidates=6 and candidate_host_weight=0.5: .*--engine transformers, or .*`semcot candidates`"
    with pytest.raises(ValueError, match=wanted):
        load_front(str(tmp_path / "by_host"))
    for name, number, weight in (("alone", 6, 0.0), ("one", 1, 0.5)):
        model.config.num_candidates, model.config.candidate_host_weight = number, weight
        model.save_pretrained(tmp_path / name, include_host=True)
        front = load_front(str(tmp_path / name))
        jobs = [Job([30 + n, *range(5, 20)], lambda event: None, count=5) for n in range(4)]
        for one, whole in zip(*(Front(of, None).prompts(jobs) for of in (front, model)), strict=True):
            torch.testing.assert_close(one, whole)
