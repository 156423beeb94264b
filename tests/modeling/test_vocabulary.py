"""projection="vocabulary": implicit tokens that are mixtures of the host's word embeddings."""

import pytest
import torch
from datasets import Dataset
from distillation_models import config, moved, snapshot

from semcot_hf import SemCoTDistillationTrainer, SemCoTForCausalLM
from semcot_hf.distillation.question_cache import QuestionCache
from semcot_hf.inference.prompting import with_answer_prompt

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

PROMPTS = torch.tensor([[0, 0, 11, 12, 13], [14, 15, 16, 17, 18]])
MASK = (PROMPTS > 0).long()


def by_hand(model, prompt, sequential, count=3):
    """Z (count, size) of one prompt, without cache, mask or batch."""
    words, host_words = model.generator.get_input_embeddings().weight, model.host.get_input_embeddings().weight

    def shares(states):
        return (states @ model.projection.weight.T).softmax(dim=-1)

    inputs = torch.cat([words[prompt], model.thought_embedding.expand(1 if sequential else count, -1)])
    if not sequential:
        return shares(model.generator(inputs_embeds=inputs[None]).last_hidden_state[0, -count:]) @ host_words
    made = []
    for _ in range(count):
        state = model.generator(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0, -1:]
        made.append(shares(state) @ host_words)
        inputs = torch.cat([inputs, shares(state) @ words])
    return torch.cat(made)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tokens_are_mixtures_of_words_and_so_is_what_is_fed_back(tiny_lm, tiny_semcot, family, mode):
    model = tiny_semcot(tiny_lm(family), tiny_lm(family, seed=1), generator_mode=mode, projection="vocabulary")
    tokens = model.implicit_embeddings(PROMPTS, MASK)
    for row in range(2):
        prompt = PROMPTS[row, MASK[row] == 1]
        torch.testing.assert_close(tokens[row], by_hand(model, prompt, mode == "sequential"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_the_distribution_starts_as_the_generators_own(tiny_lm, tiny_semcot, tied):
    generator = tiny_lm(seed=1, tie_word_embeddings=tied)
    head = generator.get_output_embeddings().weight.detach().clone()
    model = tiny_semcot(generator=generator, projection="vocabulary")
    assert torch.equal(model.projection.weight, head)
    assert model.projection.weight.data_ptr() != generator.get_output_embeddings().weight.data_ptr()


def test_a_sure_word_is_the_hosts_own_embedding_of_it(tiny_lm, tiny_semcot):
    """Also where a family scales its embeddings while looking them up."""
    host = tiny_lm("gemma3_text")
    model = tiny_semcot(host, tiny_lm("gemma3_text", seed=1), projection="vocabulary")
    state = torch.randn(1, 1, model.projection.in_features)
    with torch.no_grad():
        model.projection.weight.zero_()
        model.projection.weight[7] = 1e4 * state[0, 0]
    expected = host.get_input_embeddings()(torch.tensor([[7]]))
    torch.testing.assert_close(model.tokens_of(state), expected)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_tokens_are_read_back_as_the_likeliest_words_of_their_mixtures(tiny_lm, tiny_semcot, mode):
    model = tiny_semcot(tiny_lm(), tiny_lm(seed=1), generator_mode=mode, projection="vocabulary")
    words = model.host.get_input_embeddings().weight.detach()
    with torch.no_grad():
        ids, shares = model.implicit_words(PROMPTS, MASK)
        states = model.generator_states(*model._queries(PROMPTS, MASK), 3)
        expected = (states @ model.projection.weight.T).softmax(dim=-1)
        torch.testing.assert_close(model.implicit_embeddings(PROMPTS, MASK), expected @ words)
    assert ids.shape == shares.shape == (2, 3) and torch.equal(ids, expected.argmax(dim=-1))
    torch.testing.assert_close(shares, expected.amax(dim=-1).float())
    empty = model.implicit_words(PROMPTS, MASK, num_implicit_tokens=0)
    assert [part.shape for part in empty] == [(2, 0), (2, 0)]
    with pytest.raises(ValueError, match="projection='linear': these implicit tokens are no mixtures"):
        tiny_semcot().implicit_words(PROMPTS)


@pytest.mark.parametrize("include_host", [True, False])
def test_a_saved_model_makes_the_same_tokens_and_answers(tiny_folder, tmp_path, include_host):
    torch.manual_seed(0)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        str(tiny_folder / "host"), str(tiny_folder / "generator"), generator_mode="sequential", projection="vocabulary"
    )
    model.save_pretrained(tmp_path, include_host=include_host)
    again = SemCoTForCausalLM.from_pretrained(tmp_path)
    assert again.config.projection == "vocabulary"
    assert torch.equal(again.implicit_embeddings(PROMPTS, MASK), model.implicit_embeddings(PROMPTS, MASK))
    answers = [
        part.generate(PROMPTS, attention_mask=MASK, max_new_tokens=5, do_sample=False) for part in (model, again)
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_training_moves_the_distribution_and_no_word(parts, tiny_tokenizer, rows, tmp_path, mode):
    model = parts(generator_mode=mode, projection="vocabulary")
    args = config(tmp_path / "run", step_weight=1.0, max_steps=2)
    trainer = SemCoTDistillationTrainer(model=model, args=args, train_dataset=rows, processing_class=tiny_tokenizer)
    before = snapshot(model)
    trainer.train()
    frozen = {name for name in before if name.startswith("host.") or name == "generator.embed_tokens.weight"}
    changed = moved(model, before)
    assert not changed & frozen and "projection.weight" in changed and "thought_embedding" in changed


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_the_question_cache_gives_the_same_tokens(parts, tiny_tokenizer, mode):
    model = parts(generator_mode=mode, projection="vocabulary")
    prompts = [[11, 12, 13, 14], [15, 16, 17]]
    stored = QuestionCache(model, prompts, batch_size=2, budget=2**30, with_generator=True)
    for prompt in prompts:
        expected = model.implicit_embeddings(torch.tensor([prompt]))
        torch.testing.assert_close(stored.implicit_embeddings([prompt]), expected, rtol=1e-5, atol=1e-7)


def test_the_mixture_alone_learns_to_carry_the_answer(parts, tiny_tokenizer, tmp_path):
    """Each question's own tokens tell its answer, though but for the last step only projection and <thought> move."""
    model = parts(num_implicit_tokens=1, generator_mode="parallel", projection="vocabulary")
    rows = [{"query": f"Say {word}.", "reasoning": word, "answer": word, "steps": [word]} for word in ("yes", "no")]
    args = config(tmp_path / "run", max_steps=60, projection_warmup=0.98, learning_rate=3e-2, weight_decay=0.0)
    trainer = SemCoTDistillationTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows * 4), processing_class=tiny_tokenizer
    )
    trainer.train()
    model.eval()
    messages = [[{"role": "user", "content": row["query"]}] for row in rows]
    prompts = [
        with_answer_prompt(tiny_tokenizer).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in messages
    ]
    answers = [tiny_tokenizer(f" {row['answer']}", add_special_tokens=False)["input_ids"] for row in rows]
    with torch.no_grad():
        tokens = [model.implicit_embeddings(torch.tensor([prompt])) for prompt in prompts]
        losses = []
        for prompt, answer in zip(prompts, answers, strict=True):
            labels = torch.tensor([[-100] * len(prompt) + answer])
            ids = torch.tensor([prompt + answer])
            losses.append([model(ids, labels=labels, implicit_embeddings=own).loss.item() for own in tokens])
    for index, own in enumerate(losses):
        assert own[index] < own[1 - index] - 0.1, losses


def test_thought_starts_as_the_token_that_is_named(tiny_semcot):
    model = tiny_semcot(thought_token_id=5)
    assert torch.equal(model.thought_embedding, model.generator.get_input_embeddings().weight[5])
    with pytest.raises(ValueError, match="thought_token_id=-1: the generator knows"):
        tiny_semcot(thought_token_id=-1)
