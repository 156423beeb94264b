"""SIM-CoT (arXiv 2509.20317): an auxiliary decoder reconstructs each latent's step, on top of Coconut or CODI."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...distillation.data import group_steps
from ...inference.prompting import answer_prompt_ids
from ...modeling.modeling_semcot import step_decoding_loss
from .coconut import LAST_STAGE_BEGINS, CoconutModel
from .codi import CodiModel, add_lora
from .latents import LatentModel, train_latents
from .token_rows import BenchRow, pad_right
from .training import Trained, TrainingSetup

# One latent per step, and as many as the latents of Coconut and CODI.
NUM_LATENTS = 6


class StepSupervised(nn.Module):
    """A latent model with a decoder that reconstructs each latent's step; it is trained along and then dropped.

    The loss is the base method's plus mean_k CE(decoder([z_k; step_k]), step_k); surplus steps join the last latent.

    Args:
        base: the model with latents.
        decoder: causal LM of the same width, a copy of the host in SIM-CoT.
        end: end-of-sequence token that ends each step's text.
        begins: progress at which the decoder comes in; before, the loss is the base method's.
    """

    def __init__(self, base: LatentModel, decoder: PreTrainedModel, end: int, begins: float = 0.0) -> None:
        super().__init__()
        self.base, self.decoder, self.end, self.begins = base, decoder, end, begins

    def forward(self, rows: Sequence[BenchRow], progress: float) -> Tensor:
        """Return the loss of a list of rows at a progress in [0, 1)."""
        loss, latents = self.base.losses(rows, progress)
        if latents is None or progress < self.begins:
            return loss
        ids, mask = step_tensors(rows, NUM_LATENTS, self.end, self.base.pad_token_id, latents.device)
        count = latents.shape[1]
        return loss + step_decoding_loss(self.decoder, latents, ids[:, :count], mask[:, :count])


def step_tensors(
    rows: Sequence[BenchRow], count: int, end: int, filler: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return ids and mask of each latent's step, both (batch, count, longest); the mask is 0 where there is no step.

    >>> from semcot_hf.bench.methods.token_rows import BenchRow
    >>> row = BenchRow(prompt=[1], steps=[[11], [12], [13]], answer=[7])
    >>> step_tensors([row], 2, end=9, filler=0)[0].tolist()
    [[[11, 9, 0], [12, 13, 9]]]
    """
    texts = [step + [end] if step else [] for row in rows for step in group_ids(row.steps, count)]
    ids, mask = pad_right(texts, filler, device)
    return ids.view(len(rows), count, -1), mask.view(len(rows), count, -1)


def group_ids(steps: Sequence[list[int]], count: int, steps_per_token: int = 1) -> list[list[int]]:
    """Return the ids that each of `count` latents represents, grouped as `group_steps` groups texts.

    >>> group_ids([[1], [2], [3]], 2), group_ids([[1]], 2)
    ([[1], [2, 3]], [[1], []])
    """
    words = group_steps([str(index) for index in range(len(steps))], count, steps_per_token)
    return [[token for index in word.split() for token in steps[int(index)]] for word in words]


def train_simcot_coconut(setup: TrainingSetup) -> Trained:
    """Train SIM-CoT on Coconut, with one latent and one stage per step.

    As published, it begins from a Coconut that has been expanded to all latents: the decoder comes in with the last
    stage, which has no words left, and in which the optimizer is new.
    """
    decoder = copy.deepcopy(setup.host)
    base = CoconutModel(setup.host, answer_prompt_ids(setup.tokenizer), 1, NUM_LATENTS)
    module = StepSupervised(base, decoder, setup.tokenizer.eos_token_id, LAST_STAGE_BEGINS)
    return train_latents(base, setup, module, base.stage)


def train_simcot_codi(setup: TrainingSetup) -> Trained:
    """Train SIM-CoT on CODI."""
    decoder = copy.deepcopy(setup.host)
    base = CodiModel(add_lora(setup.host), answer_prompt_ids(setup.tokenizer), NUM_LATENTS)
    module = StepSupervised(base, decoder, setup.tokenizer.eos_token_id)
    return train_latents(base, setup, module, lr_scheduler_type="cosine")
