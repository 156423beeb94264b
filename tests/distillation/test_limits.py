"""How long a row of stage 2 may be: what each model can read is checked at construction, and nothing is cut unsaid."""

import copy

import pytest
import torch
from datasets import Dataset
from distillation_models import config, make_model

from semcot_hf import SemCoTDistillationTrainer, build_alignment_encoder

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

REASONING = "yes no maybe so " * 10 + "yes"
# More than the 64 words by which a model measures its generator when it is made.
ROW = {"query": "Is it heads? " * 12, "reasoning": REASONING, "answer": "yes", "steps": [REASONING]}


@pytest.fixture
def prepare(parts, tiny_tokenizer, tmp_path):
    """Function (rows, model, **options) -> the trainer, as it is made."""

    def make(rows, model=None, encoder=None, processing_class=None, **options):
        return SemCoTDistillationTrainer(
            model=model or parts(),
            args=config(tmp_path, max_steps=1, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=processing_class or tiny_tokenizer,
            alignment_encoder=encoder,
        )

    return make


@pytest.mark.parametrize("column", ["query", "answer", "reasoning"])
def test_a_tokenizer_with_more_tokens_than_the_host_is_named_with_both_sizes(prepare, parts, tiny_tokenizer, column):
    row = {"query": "Is it heads?", "reasoning": "yes", "answer": "yes", "steps": ["yes"]}
    words = len(tiny_tokenizer)
    prepared = copy.deepcopy(tiny_tokenizer)
    size = parts().config.vocab_size
    prepared.add_tokens([f"<new{i}>" for i in range(size - words + 1)])
    added = f"<new{size - words}>"
    prepare([row], processing_class=prepared)
    message = rf"id {size}.*tokenizer has {size + 1} tokens.*vocabulary.*{size}"
    with pytest.raises(ValueError, match=message):
        # The step decoder reads the steps, the frozen host the reasoning.
        changed = {**row, column: added} | ({"steps": [added]} if column == "reasoning" else {})
        prepare([changed], processing_class=prepared, step_weight=1.0)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_the_generators_context_holds_query_and_tokens(prepare, tiny_lm, tiny_folder, parts, mode):
    trainer = prepare([ROW])
    query = len(trainer.train_dataset[0]["prompt_ids"]) - len(trainer.model.config.answer_prompt_ids)
    for context in (query + 2, query + 1):
        generator = tiny_lm("gpt2", hidden_size=16, dtype=torch.float32, max_position_embeddings=context)
        model = make_model(tiny_folder, generator=generator, generator_mode=mode)
        if context == query + 2:
            prepare([ROW], model).train()
            continue
        message = rf"train_dataset has a row of {query + 2} tokens \(query and 2 implicit tokens\), beyond the "
        with pytest.raises(ValueError, match=message + rf"generator's context of {context}.*starts 'Is it heads"):
            prepare([ROW], model)


def test_queries_are_measured_in_the_generators_own_tokens(
    prepare, tiny_lm, tiny_folder, tiny_tokenizer, char_tokenizer
):
    generator = tiny_lm("gpt2", hidden_size=16, dtype=torch.float32, max_position_embeddings=100)
    model = make_model(
        tiny_folder, generator=generator, host_tokenizer=tiny_tokenizer, generator_tokenizer=char_tokenizer
    )
    # One token a character.
    with pytest.raises(ValueError, match=r"a row of 1[5-9]\d tokens \(query and 2 implicit tokens\)"):
        prepare([ROW], model)
    prepare([{**ROW, "query": "Is it heads? " * 6}], model).train()


def test_the_step_decoders_context_holds_a_token_and_its_steps(
    prepare, tiny_lm, tiny_folder, tiny_tokenizer, tmp_path
):
    told = len(tiny_tokenizer(ROW["steps"][0], add_special_tokens=False)["input_ids"]) + 1
    for context in (told, told - 1):
        decoder = tiny_lm("gpt2", hidden_size=16, dtype=torch.float32, max_position_embeddings=context)
        decoder.save_pretrained(tmp_path / "decoder")
        options = {"step_weight": 1.0, "step_decoder": str(tmp_path / "decoder")}
        if context == told:
            prepare([ROW], **options).train()
            continue
        with pytest.raises(ValueError, match=rf"of {told} tokens .*beyond the step decoder's context of {context}"):
            prepare([ROW], **options)


def test_reasoning_beyond_the_host_has_no_mean_of_states(prepare, tiny_lm, tiny_semcot, tiny_tokenizer):
    size = len(tiny_tokenizer(ROW["reasoning"], add_special_tokens=False)["input_ids"])
    host = tiny_lm("gpt2", dtype=torch.float32, max_position_embeddings=size - 1, eos_token_id=2)
    model = tiny_semcot(host, tiny_lm("llama", hidden_size=16, dtype=torch.float32))
    message = rf"'mean_pooled' reads a reasoning of {size} tokens, beyond the host's context of {size - 1}.*'yes no"
    with pytest.raises(ValueError, match=message):
        prepare([{**ROW, "query": "Is it heads?"}], model, alpha=0.5, alignment_view="mean_pooled")


def test_reasoning_beyond_the_encoder_is_counted(prepare, parts, tiny_tokenizer, caplog):
    encoder = build_alignment_encoder(parts().host, tiny_tokenizer, embedding_dim=8)
    encoder.max_seq_length = 20
    prepare([ROW, {**ROW, "reasoning": "yes"}], encoder=encoder, alpha=0.5)
    assert "train_dataset: 1 of 2 reasonings are longer than 20 tokens and are truncated." in caplog.text
