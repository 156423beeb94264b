"""A CoinFlip tokenizer, a tiny host that has learnt to say yes or no, and a tiny SemCoT model over it."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from semcot_hf import SemCoTForCausalLM
from semcot_hf.data.tasks import coin_flip
from semcot_hf.inference.prompting import ANSWER_PROMPT, answer_prompt_ids, encode_prompt, prompt_text

TEMPLATE = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)


def coin_flip_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    rows = coin_flip.generate(300, seed=1)
    tokenizer.train_from_iterator(
        [f"{row['query']} {row['reasoning']}{ANSWER_PROMPT} {row['answer']}" for row in rows], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
        chat_template=TEMPLATE,
    )


def tiny_llama(tokenizer, hidden_size, seed, positions=512):
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def answering_host(tokenizer, steps=60, silent_behind=(), positions=512):
    """A host that says " yes" or " no" and stops, more or less at random: it has seen few questions.

    Behind the answer prompts `silent_behind` it says nothing.
    """
    host = tiny_llama(tokenizer, 32, seed=0, positions=positions)
    optimizer = torch.optim.AdamW(host.parameters(), lr=5e-3)
    rows = coin_flip.generate(24, seed=2, max_people=4)
    examples = []
    for row in rows:
        for ending, said in [(ANSWER_PROMPT, f" {row['answer']}"), *((ending, "") for ending in silent_behind)]:
            prompt = encode_prompt(tokenizer, prompt_text(tokenizer, row["query"]) + ending)
            examples.append((prompt, encode_prompt(tokenizer, f"{said}<|end|>")))
    width = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.tensor([[0] * (width - len(p) - len(a)) + p + a for p, a in examples])
    labels = torch.tensor([[-100] * (width - len(a)) + a for _, a in examples])
    for _ in range(steps):
        host(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return host.double().eval()


def tiny_words_semcot(tokenizer, limit):
    """A pair that answers with " yes" or " no" after words of its own number, at most `limit` and their end."""
    generator = tiny_llama(tokenizer, 16, seed=5).double()
    for weight in generator.parameters():
        weight.data *= 4
    return SemCoTForCausalLM.from_host_generator_pretrained(
        answering_host(tokenizer, positions=1024),
        generator,
        num_implicit_tokens=limit,
        generator_mode="sequential",
        projection="vocabulary",
        thought_length="adaptive",
        end_of_thought_token_ids=list(range(0, len(tokenizer), 9)),
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    )


def tiny_semcot_over(host, tokenizer):
    set_seed(3)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        host,
        tiny_llama(tokenizer, 16, seed=1).double(),
        num_implicit_tokens=4,
        generator_mode="sequential",
        answer_prompt_ids=answer_prompt_ids(tokenizer),
    )
    return model
