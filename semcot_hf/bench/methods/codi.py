"""CODI (arXiv 2502.21074): one model is teacher in words and student in latents, and its states are distilled."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ...distillation.objectives import hidden_state_loss
from ...inference.prompting import answer_prompt_ids
from ...training.adapters import merge_adapters
from .latents import LatentModel
from .token_rows import tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit

NUM_LATENTS = 6
HIDDEN_WEIGHT = 1.0
LORA_RANK = 128


class CodiModel(LatentModel):
    """Latents fed back through a two-layer MLP and LayerNorm; teacher and student share the host's weights.

    Args:
        host, answer_prompt_ids: see `LatentModel`.
        num_latents: k.
        hidden_weight: gamma of the hidden-state loss (1 for GPT-2, 20 for models of 1B).
    """

    def __init__(self, host, answer_prompt_ids, num_latents=NUM_LATENTS, hidden_weight=HIDDEN_WEIGHT):
        super().__init__(host, answer_prompt_ids, num_latents)
        self.hidden_weight = hidden_weight
        words = self.get_input_embeddings().weight.detach()
        width = words.shape[1]
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        ).to(words)
        # LayerNorm would start latents at many times the size of word embeddings.
        nn.init.constant_(self.projection[-1].weight, words.float().pow(2).mean().sqrt().item())

    def feed(self, state):
        """The projected state, (batch, hidden)."""
        return self.projection(state)

    def losses(self, rows, progress):
        """CE(reasoning, answer) + CE(answer | latents) + gamma * hidden-state loss, and the latents."""
        prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
        reasoning = [row.reasoning + row.answer for row in rows]
        teacher_loss, _, teacher = self.latent_loss(prompts, reasoning, 0)
        student_loss, latents, student = self.latent_loss(prompts, answers, self.config.num_implicit_tokens)
        # The last token of the answer prompt is the one before the answer.
        before = len(self.config.answer_prompt_ids) - 1
        teacher_states = _states(teacher, reasoning, [len(row.reasoning) + before for row in rows])
        student_states = _states(student, answers, [before] * len(rows))
        hidden = hidden_state_loss(student_states, teacher_states)
        return teacher_loss + student_loss + self.hidden_weight * hidden, latents

    def forward(self, rows, progress):
        """The loss of a list of `BenchRow`s."""
        return self.losses(rows, progress)[0]


def _states(output, texts, indices):
    """Hidden states of all layers (layers, batch, hidden) at one token of each right-padded text."""
    states = torch.stack(output.hidden_states[1:])
    start = states.shape[2] - max(map(len, texts))
    columns = torch.tensor(indices, device=states.device) + start
    return states[:, torch.arange(states.shape[1], device=states.device), columns]


def add_lora(host):
    """Train adapters of rank 128 in place of the weights, as CODI does, where the host is wider than that rank."""
    if host.config.get_text_config().hidden_size <= LORA_RANK:
        return host
    config = LoraConfig(r=LORA_RANK, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear")
    return inject_adapter_in_model(config, host.requires_grad_(False))


def train_codi(setup: TrainingSetup) -> Trained:
    """Host (or its adapters) and projection are trained."""
    model = CodiModel(add_lora(setup.host), answer_prompt_ids(setup.tokenizer))
    history = fit(model, tokenize_rows(setup.tokenizer, setup.train_rows), setup)
    trainable = count_trainable(model)
    merge_adapters(model)
    return Trained(model, "semcot", trainable, **history)
