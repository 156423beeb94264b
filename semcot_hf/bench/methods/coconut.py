"""Coconut (arXiv 2412.06769): hidden states fed back as inputs replace the steps stage by stage; and its control."""

from collections.abc import Sequence
from itertools import chain

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ...inference.prompting import answer_prompt_ids
from .latents import LatentModel, scale_of_states, train_latents, word_embeddings
from .token_rows import BenchRow
from .training import Trained, TrainingSetup

# As published for GSM8K; for graphs 1 and 6.
LATENTS_PER_STEP, NUM_STAGES = 2, 3
# Progress at which the last stage begins, which has no reasoning in words; stages 1, 2, ... are evenly spaced before.
LAST_STAGE_BEGINS = 0.55


def stage_at(progress: float, num_stages: int = NUM_STAGES) -> int:
    """Return the stage s: 0 all in words, s <= num_stages the first s steps as latents, num_stages + 1 no words.

    >>> [stage_at(progress) for progress in (0.0, 0.14, 0.3, 0.45, 0.55, 0.99)]
    [0, 1, 2, 3, 4, 4]
    """
    return min(num_stages + 1, int(progress / LAST_STAGE_BEGINS * (num_stages + 1)))


def remaining(row: BenchRow, stage: int, num_stages: int = NUM_STAGES) -> list[int]:
    """Return the ids of the steps that remain in words at a stage, and of the answer.

    >>> row = BenchRow(prompt=[1], steps=[[11], [12], [13], [14], [15]], answer=[7])
    >>> remaining(row, 1), remaining(row, 3), remaining(row, 4)
    ([12, 13, 14, 15, 7], [14, 15, 7], [7])
    """
    words = row.steps[stage:] if stage <= num_stages else []
    return [*chain.from_iterable(words), *row.answer]


class CoconutModel(LatentModel):
    """c latents for each of the first steps, fed back as they are; cross-entropy of what remains in words.

    The states are scaled to the size of word embeddings, as the latents of all methods of the bench are.

    Args:
        host, answer_prompt_ids: see `LatentModel`.
        latents_per_step, num_stages: c, and the number of steps that are replaced one by one; k = c * num_stages.
    """

    def __init__(
        self,
        host: PreTrainedModel,
        answer_prompt_ids: Sequence[int],
        latents_per_step: int = LATENTS_PER_STEP,
        num_stages: int = NUM_STAGES,
    ) -> None:
        super().__init__(host, answer_prompt_ids, latents_per_step * num_stages)
        self.latents_per_step, self.num_stages = latents_per_step, num_stages
        self.scale = scale_of_states(host)

    def feed(self, state: Tensor) -> Tensor:
        """Return the state (batch, hidden) at the size of word embeddings."""
        return state * self.scale

    def stage(self, progress: float) -> int:
        """Return the stage at a progress in [0, 1)."""
        return stage_at(progress, self.num_stages)

    def losses(self, rows: Sequence[BenchRow], progress: float) -> tuple[Tensor, Tensor | None]:
        """Return the cross-entropy, and the latents (batch, count, hidden), `None` at stage 0."""
        stage = self.stage(progress)
        count = self.latents_per_step * min(stage, self.num_stages)
        texts = [remaining(row, stage, self.num_stages) for row in rows]
        return self.latent_loss([row.prompt for row in rows], texts, count)[:2]


class StagedPauseModel(CoconutModel):
    """Coconut's curriculum with one learned embedding in the place of every latent: a control of Coconut's latents.

    On ProsQA it is as accurate as Coconut (arXiv 2602.22441).
    """

    def __init__(
        self,
        host: PreTrainedModel,
        answer_prompt_ids: Sequence[int],
        latents_per_step: int = LATENTS_PER_STEP,
        num_stages: int = NUM_STAGES,
    ) -> None:
        super().__init__(host, answer_prompt_ids, latents_per_step, num_stages)
        self.pause = nn.Parameter(word_embeddings(host).detach().mean(dim=0))

    def think(self, ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Cache | None]:
        """Return the pause embedding (batch, k, hidden); the host does not run."""
        return self.pause.expand(len(ids), count, -1), None


def train_coconut(setup: TrainingSetup) -> Trained:
    """Train the whole host; the optimizer is reset at each stage."""
    model = CoconutModel(setup.host, answer_prompt_ids(setup.tokenizer), *setup.coconut)
    return train_latents(model, setup, stage=model.stage)


def train_staged_pause(setup: TrainingSetup) -> Trained:
    """Train the host and the pause embedding on Coconut's curriculum."""
    model = StagedPauseModel(setup.host, answer_prompt_ids(setup.tokenizer), *setup.coconut)
    return train_latents(model, setup, stage=model.stage)
