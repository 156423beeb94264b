"""What random calls are made of: pairs of tiny models, padded prompts, implicit tokens, logits processors."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from slow_rows import Row
from torch import Tensor
from transformers.generation import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

ANSWER = [7, 8]
OPEN, CLOSE = [5, 6], [9]
WORDS = {"generator_mode": "sequential", "projection": "vocabulary"}
ENDS = list(range(10, 320, 7))
ADAPTIVE = {**WORDS, "thought_length": "adaptive", "end_of_thought_token_ids": ENDS, "num_implicit_tokens": 5}
THOUGHT_PROMPT = {"thought_prompt_ids": [[20, 21, 22, 5, 6], [9, 23]], "question_marker_ids": [OPEN, CLOSE]}
STATEFUL = {"num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
STATEFUL |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
# (host, its configuration, generator, its configuration, fields of SemCoTConfig).
PAIRS: list[tuple[str, dict, str, dict, dict]] = [
    ("llama", {}, "llama", {}, {}),
    ("qwen2", {}, "gpt2", {}, {"generator_mode": "sequential"}),
    ("mistral", {"sliding_window": 6}, "qwen3", {}, {"state_offset": -1}),
    ("gpt2", {}, "llama", {}, ADAPTIVE),
    ("gemma3_text", {"sliding_window": 6}, "llama", {}, {**ADAPTIVE, "mixture_top_k": 3}),
    ("llama", {}, "qwen2", {}, {**ADAPTIVE, **THOUGHT_PROMPT, "starts_with_thought_token": False, "mixture_top_k": 2}),
    ("phi", {}, "mistral", {"sliding_window": 6}, {**WORDS, **THOUGHT_PROMPT, "mixture_temperature": 0.7}),
    ("gpt_neox", {}, "gemma3_text", {"sliding_window": 6}, {"generator_mode": "sequential"}),
    ("qwen3", {}, "llama", {"hidden_size": 32}, {"projection": "identity", "answer_prompt_ids": []}),
    ("olmo2", {}, "olmo", {}, {**WORDS, "mixture_top_k": 1, "starts_with_thought_token": False}),
    ("llama", {"dtype": torch.float32}, "gpt_neox", {"dtype": torch.float32}, ADAPTIVE),
    ("qwen2", {"dtype": torch.bfloat16}, "llama", {"dtype": torch.bfloat16}, {}),
    ("gemma2", {"sliding_window": 6, "dtype": torch.float32}, "llama", {"dtype": torch.float32}, {}),
    ("mistral", {"sliding_window": 6}, "llama", {}, {**ADAPTIVE, "mixture_top_k": 0}),
    ("qwen3_5_text", STATEFUL, "llama", {}, {}),
    ("llama", {}, "qwen3_5_text", STATEFUL, {"generator_mode": "sequential"}),
    ("llama", {"tie_word_embeddings": True}, "qwen2", {"dtype": torch.bfloat16}, {"generator_mode": "sequential"}),
    ("gemma", {}, "phi", {}, {**WORDS, "state_offset": 0, "mixture_top_k": 5, "mixture_temperature": 2.0}),
    ("qwen3", {}, "llama", {}, {**WORDS, "word_feedback": True, "mixture_top_k": 3}),
    ("llama", {}, "gpt2", {}, {**ADAPTIVE, "word_feedback": True}),
    ("llama", {}, "qwen2", {}, {"generator_mode": "sequential", "separate_generator_tokenizer": True}),
    ("gpt2", {}, "llama", {}, {"separate_generator_tokenizer": True}),
    ("qwen2", {}, "llama", {}, {**WORDS, "mixture_top_k": 4, "separate_generator_tokenizer": True}),
]
# Largest difference of logits that rounding explains.
TOLERANCES = {torch.float64: 2e-5, torch.float32: 2e-3, torch.bfloat16: 0.5}


def tolerance(model: Any) -> float:
    """Return the largest difference of a model's logits that rounding explains."""
    # Recurrent layers compute in float32 whatever their weights are in.
    rounded = 2e-3 if model.host._is_stateful or model.generator._is_stateful else 0.0
    return max(rounded, TOLERANCES[model.host.dtype], TOLERANCES[model.generator.dtype])


class Pool:
    """The tiny models of `PAIRS`, made when they are first drawn.

    Args:
        tiny_lm, tiny_semcot: the fixtures.
        tokenizers: of hosts and of generators, where they are not the same.
    """

    def __init__(self, tiny_lm: Any, tiny_semcot: Any, tokenizers: tuple[Any, Any]) -> None:
        self.make = tiny_lm, tiny_semcot
        self.tokenizers = dict(zip(("host_tokenizer", "generator_tokenizer"), tokenizers, strict=True))
        self.models: dict[int, Any] = {}

    def draw(self, rng: random.Random) -> tuple[int, Any]:
        """Return the number of a pair and its model."""
        place = rng.randrange(len(PAIRS))
        if place not in self.models:
            tiny_lm, tiny_semcot = self.make
            host, of_host, generator, of_generator, fields = PAIRS[place]
            words = tiny_lm(host, seed=place, **of_host)
            reader = tiny_lm(generator, seed=50 + place, **{"hidden_size": 16, **of_generator})
            fields = {"answer_prompt_ids": ANSWER, **fields}
            tokenizers = self.tokenizers if fields.pop("separate_generator_tokenizer", False) else {}
            self.models[place] = tiny_semcot(words, reader, **fields, **tokenizers)
            self.models[place].requires_grad_(False)
        return place, self.models[place]


@dataclass
class Batch:
    """Prompts as they are passed, and without their padding."""

    prompts: list[list[int]]
    ids: Tensor
    mask: Tensor
    side: str


@dataclass
class Outcome:
    """What became of a call: `problem` says how it differs from the slow path, `refused` why it was refused."""

    seed: int
    about: str
    problem: str | None = None
    refused: str | None = None
    ties: int = 0

    def __str__(self) -> str:
        state = f"PROBLEM {self.problem}" if self.problem else f"refused {self.refused}" if self.refused else "same"
        return f"seed {self.seed}\t{state}\t{self.ties} ties\t{self.about}"


def draw_batch(rng: random.Random, markers: bool, completions: bool = False) -> Batch:
    """Draw prompts of different lengths and their padding, on either side or on both, or a hole in the text."""
    size = rng.choice([1, 1, 2, 3, 4])
    prefix = [rng.randrange(10, 320) for _ in range(rng.choice([0, 0, 0, 6]))]
    ends_on_answer = rng.random() < 0.85
    prompts = []
    for _ in range(size):
        body = [rng.randrange(10, 320) for _ in range(rng.randrange(1, 14))]
        if markers and rng.random() < 0.8:
            place = rng.randrange(len(body) + 1)
            body = [*body[:place], *OPEN, *body[place:], *CLOSE, *[rng.randrange(10, 320) for _ in range(2)]]
        tail = ANSWER if ends_on_answer or rng.random() < 0.3 else []
        prompts.append([*prefix, *body, *tail])
    side = rng.choice(["left"] * 8 + ["right", "both", "hole", "hole"])
    if completions:
        side = rng.choice(["left", "right", "both", "hole"])
    width = max(map(len, prompts)) + rng.choice([0, 0, 1, 4])
    pad = rng.choice([0, 0, 0, 99])
    ids = torch.full((size, width), pad)
    mask = torch.zeros(size, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        room = width - len(prompt)
        left = {"left": room, "right": 0, "both": rng.randrange(room + 1), "hole": 0}[side]
        places = list(range(left, left + len(prompt)))
        if side == "hole":
            # Behind the first token, as with a cached prefix.
            places = [0, *range(1 + room, width)]
        ids[row, places] = torch.tensor(prompt)
        mask[row, places] = 1
    return Batch(prompts, ids, mask, side if width > min(map(len, prompts)) else "none")


def draw_tokens(rng: random.Random, model: Any, size: int) -> dict[str, Any]:
    """Draw the arguments of implicit tokens: none, a number, or embeddings with or without a mask."""
    kind = rng.random()
    if kind < 0.45:
        return {}
    if kind < 0.7:
        return {"num_implicit_tokens": rng.choice([0, 1, 2, 4, 7])}
    made = torch.Generator().manual_seed(rng.randrange(10**6))
    count = rng.randrange(1, 5)
    host = model.get_input_embeddings().weight
    tokens = torch.randn(size, count, host.shape[1], generator=made).to(rng.choice([host.dtype, torch.float32]))
    if rng.random() < 0.5:
        return {"implicit_embeddings": tokens}
    mask = (torch.rand(size, count, generator=made) < 0.6).to(rng.choice([torch.long, torch.bool, torch.float32]))
    return {"implicit_embeddings": tokens, "implicit_attention_mask": mask}


def shown(options: dict[str, Any]) -> str:
    """Return options in short."""
    texts = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in options.items()}
    return " ".join(f"{name}={value if len(str(value)) < 30 else '...'}" for name, value in texts.items())


def rows_of(model: Any, batch: Batch, tokens: dict[str, Any]) -> list[Row]:
    """Return the rows of a batch for the slow path."""
    count = tokens.get("num_implicit_tokens")
    count = model.config.num_implicit_tokens if count is None else count
    given, mask = tokens.get("implicit_embeddings"), tokens.get("implicit_attention_mask")
    rows = []
    for place, prompt in enumerate(batch.prompts):
        own = None if given is None else given[place] if mask is None else given[place][mask[place].bool()]
        rows.append(Row(model, prompt, count, own))
    return rows


def draw_processor(rng: random.Random, ends: list[int] | None) -> tuple[dict[str, Any], Any]:
    """Draw an option that changes logits, and its processor as a function of the length of the prompt."""
    kind = rng.choice(["", "", "", "repetition", "ngram", "minimum", "bad", "suppress"])
    if kind == "repetition":
        return {"repetition_penalty": 1.6}, lambda width: RepetitionPenaltyLogitsProcessor(1.6)
    if kind == "ngram":
        return {"no_repeat_ngram_size": 2}, lambda width: NoRepeatNGramLogitsProcessor(2)
    if kind == "minimum" and ends:
        return (
            {"min_new_tokens": 3},
            lambda width: MinNewTokensLengthLogitsProcessor(width, 3, ends),
        )
    if kind == "bad":
        bad = [[token] for token in range(40, 200)]
        return {"bad_words_ids": bad}, lambda width: NoBadWordsLogitsProcessor(bad, ends)
    if kind == "suppress":
        some = list(range(100, 250))
        return {"suppress_tokens": some}, lambda width: SuppressTokensLogitsProcessor(some)
    return {}, None
