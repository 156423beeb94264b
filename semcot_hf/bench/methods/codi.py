"""CODI (arXiv 2502.21074): one model distils its reasoning in words (teacher) into latents (student)."""

from collections.abc import Sequence
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...distillation.objectives import hidden_state_loss
from ...inference.prompting import answer_prompt_ids
from .latents import LatentModel, train_latents, word_embeddings
from .token_rows import BenchRow
from .training import Trained, TrainingSetup

NUM_LATENTS = 6
HIDDEN_WEIGHT = 1.0
LORA_RANK = 128


class CodiModel(LatentModel):
    """Latents fed back through a two-layer MLP and LayerNorm; teacher and student share the host's weights.

    Args:
        host, answer_prompt_ids: see `LatentModel`.
        num_latents: k.
        hidden_weight: weight gamma of the hidden-state loss (1 for GPT-2, 20 for models of 1B).
    """

    def __init__(
        self,
        host: PreTrainedModel,
        answer_prompt_ids: Sequence[int],
        num_latents: int = NUM_LATENTS,
        hidden_weight: float = HIDDEN_WEIGHT,
    ) -> None:
        super().__init__(host, answer_prompt_ids, num_latents)
        self.hidden_weight = hidden_weight
        words = word_embeddings(host).detach()
        width = words.shape[1]
        norm = nn.LayerNorm(width)
        # The default weight of 1 would make latents many times as large as word embeddings.
        nn.init.constant_(norm.weight, words.float().pow(2).mean().sqrt().item())
        self.projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), norm).to(words)

    def feed(self, state: Tensor) -> Tensor:
        """Return the projected state (batch, hidden)."""
        dtype = next(self.projection.parameters()).dtype
        return self.projection(state.to(dtype)).to(state.dtype)

    def losses(self, rows: Sequence[BenchRow], progress: float) -> tuple[Tensor, Tensor | None]:
        """Return CE(reasoning, answer) + CE(answer | latents) + gamma * hidden-state loss, and the latents."""
        prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
        taught = [taught_reasoning(row) for row in rows]
        reasoning = [words + row.answer for words, row in zip(taught, rows, strict=True)]
        teacher_loss, _, teacher = self.latent_loss(prompts, reasoning, 0)
        student_loss, latents, student = self.latent_loss(prompts, answers, self.config.num_implicit_tokens)
        # Index of the last token of the answer prompt.
        before = len(self.config.answer_prompt_ids) - 1
        teacher_states = _states(teacher, reasoning, [len(words) + before for words in taught])
        student_states = _states(student, answers, [before] * len(rows))
        hidden = hidden_state_loss(student_states, teacher_states)
        return teacher_loss + student_loss + self.hidden_weight * hidden, latents


def taught_reasoning(row: BenchRow) -> list[int]:
    """Return the teacher's reasoning: without its last step, which states the answer, if it has several.

    >>> taught_reasoning(BenchRow(prompt=[1], steps=[[11], [12, 13], [14]], answer=[7]))
    [11, 12, 13]
    >>> taught_reasoning(BenchRow(prompt=[1], steps=[[11]], answer=[7]))
    [11]
    """
    return [token for step in row.steps[: max(1, len(row.steps) - 1)] for token in step]


def _states(output: CausalLMOutputWithPast, texts: Sequence[list[int]], indices: Sequence[int]) -> Tensor:
    """Return the hidden states of all layers (layers, batch, hidden) at one token of each right-padded text."""
    states = torch.stack(cast(tuple[Tensor, ...], output.hidden_states)[1:])
    start = states.shape[2] - max(map(len, texts))
    columns = torch.tensor(indices, device=states.device) + start
    return states[:, torch.arange(states.shape[1], device=states.device), columns]


def add_lora(host: PreTrainedModel) -> PreTrainedModel:
    """Add adapters of rank 128, as CODI does, to a host wider than that rank, and freeze its weights."""
    if host.config.get_text_config().hidden_size <= LORA_RANK:
        return host
    config = LoraConfig(r=LORA_RANK, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear")
    inject_adapter_in_model(config, host.requires_grad_(False))
    return host


def train_codi(setup: TrainingSetup) -> Trained:
    """Train the host (or its adapters) and the projection, with CODI's cosine schedule."""
    model = CodiModel(add_lora(setup.host), answer_prompt_ids(setup.tokenizer))
    return train_latents(model, setup, lr_scheduler_type="cosine")
