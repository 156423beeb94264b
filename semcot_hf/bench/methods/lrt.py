"""Latent Recurrent Thoughts (arXiv 2609.01117): a proposer and a recurrent refiner make latents for a frozen host.

Sizes are scaled down to the hosts of the bench. What is described here is what this implementation does: where the
method's description leaves a choice open (number of layers and of recurrent steps, form of the bound, weight of the
penalty, how the kept queries come to suffice), the choice is ours.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...inference.prompting import answer_prompt_ids
from ...modeling.splicing_semcot import positions_from_mask
from .latents import LatentModel, train_latents, word_embeddings
from .token_rows import BenchRow
from .training import Trained, TrainingSetup

# Queries that the host reads in training, and the first of them that it reads afterwards.
TRAINED_QUERIES, KEPT_QUERIES = 32, 4
MAX_WIDTH, HEADS, PROPOSER_LAYERS, RECURRENT_STEPS = 256, 4, 2, 4
# Largest change of a proposal by the refiner, in units of the proposals' normalized states.
BOUND = 0.5
PENALTY = 0.01
# Progress at which the second stage begins.
REFINER_BEGINS = 0.5


class LrtModel(LatentModel):
    """A frozen host with latents that a bidirectional proposer makes of its word embeddings, and a refiner changes.

    The proposer reads the question's word embeddings and learned queries; its states at the queries are proposals z.
    The refiner is one block that is applied several times: r <- block(z + BOUND * tanh(r)), with attention to the
    question, from r = 0. The host reads z + BOUND * tanh(r). In the first stage the proposer is trained without
    refiner, in the second the refiner behind the finished proposer. The loss is the answer's cross-entropy, in the
    second stage with PENALTY times the mean square of the change.

    Args:
        host, answer_prompt_ids: see `LatentModel`.
        trained_queries, num_latents: queries that the host reads in training, and the first of them that it reads at
            inference.
    """

    def __init__(
        self,
        host: PreTrainedModel,
        answer_prompt_ids: Sequence[int],
        trained_queries: int = TRAINED_QUERIES,
        num_latents: int = KEPT_QUERIES,
    ) -> None:
        super().__init__(host.requires_grad_(False), answer_prompt_ids, num_latents)
        words = word_embeddings(host).detach()
        width = min(MAX_WIDTH, words.shape[1]) // HEADS * HEADS
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, **options)
        self.reader = nn.Linear(words.shape[1], width)
        self.queries = nn.Parameter(torch.randn(trained_queries, width))
        self.proposer = nn.TransformerEncoder(
            layer, PROPOSER_LAYERS, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.refiner = nn.TransformerDecoderLayer(width, HEADS, 4 * width, **options)
        self.change = nn.Linear(width, width)
        # The second stage begins with the proposals as they are.
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)
        self.writer = nn.Linear(width, words.shape[1])
        size = words.float().pow(2).mean().sqrt().item()
        # Latents have the size of word embeddings; words are read at the size of the queries.
        nn.init.normal_(self.writer.weight, std=size * width**-0.5)
        nn.init.normal_(self.reader.weight, std=words.shape[1] ** -0.5 / size)
        self.to(words.device)
        self.refines = True

    def train(self, mode: bool = True) -> "LrtModel":
        """Set training mode, except for the frozen host."""
        super().train(mode)
        self.host.eval()
        return self

    @staticmethod
    def stage(progress: float) -> int:
        """Return 0 while the proposer is trained, and 1 while the refiner is."""
        return int(progress >= REFINER_BEGINS)

    def propose(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of the questions (batch, length, width) and the proposals (batch, queries, width)."""
        words = self.reader(self.get_input_embeddings()(ids).to(self.reader.weight.dtype))
        words = words + sinusoids(positions_from_mask(mask), words.shape[-1]).to(words)
        queries = self.queries.expand(len(ids), -1, -1)
        hidden = torch.cat([mask == 0, mask.new_zeros(len(ids), len(self.queries), dtype=torch.bool)], dim=1)
        states = self.proposer(torch.cat([words, queries], dim=1), src_key_padding_mask=hidden)
        return states[:, : ids.shape[1]], states[:, ids.shape[1] :]

    def refine(self, context: Tensor, mask: Tensor, proposals: Tensor) -> Tensor:
        """Return the change of the proposals, both (batch, queries, width), at most `BOUND` in each element."""
        change = torch.zeros_like(proposals)
        for _ in range(RECURRENT_STEPS):
            state = self.refiner(proposals + change, context, memory_key_padding_mask=mask == 0)
            change = BOUND * torch.tanh(self.change(state))
        return change

    def _make(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return all latents (batch, queries, hidden), and the change of their proposals if there is a refiner."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.refines)):
            context, proposals = self.propose(ids, mask)
        if not self.refines:
            return self.writer(proposals), None
        change = self.refine(context, mask, proposals)
        return self.writer(proposals + change), change

    def think(self, ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, None]:
        """Return the first `count` latents (batch, count, hidden); the host does not run."""
        if count > len(self.queries):
            raise ValueError(f"num_implicit_tokens={count}: the model has {len(self.queries)} queries; ask for fewer.")
        latents, self.last_change = self._make(ids, mask)
        return latents[:, :count], None

    def losses(self, rows: Sequence[BenchRow], progress: float) -> tuple[Tensor, Tensor | None]:
        """Return CE(answer | question, latents), with the penalty in the second stage, and all latents.

        The cross-entropy is the mean of that behind all latents and that behind the kept ones. Behind all of them
        alone, the first four carried nothing of a toy task that all 32 solved (NOTES.md).
        """
        self.refines = bool(self.stage(progress))
        prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
        whole, latents, _ = self.latent_loss(prompts, answers, len(self.queries))
        kept, _, _ = self.latent_loss(prompts, answers, self.config.num_implicit_tokens)
        loss = (whole + kept) / 2
        if self.last_change is not None:
            loss = loss + PENALTY * self.last_change.pow(2).mean()
        return loss, latents


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the position encodings (batch, length, width) of "Attention is all you need", for an even width.

    >>> sinusoids(torch.tensor([[0, 1]]), 2)[0].round(decimals=4)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10_000.0) / width))
    angles = positions[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def train_lrt(setup: TrainingSetup) -> Trained:
    """Train the proposer, then the refiner, each for half of the steps; the host is frozen."""
    torch.manual_seed(setup.seed)
    model = LrtModel(setup.host, answer_prompt_ids(setup.tokenizer))
    return train_latents(model, setup, stage=model.stage)
