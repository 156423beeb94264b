"""Coconut (arXiv 2412.06769): the last hidden state fed back, while stage by stage latents replace reasoning steps."""

from itertools import chain

from ...inference.prompting import answer_prompt_ids
from .latents import LatentModel
from .token_rows import BenchRow, tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit

LATENTS_PER_STEP = 2
NUM_STAGES = 3
# Progress at which stages 1, 2, ... begin, and the last one, which has no reasoning in words left.
LAST_STAGE_BEGINS = 0.55


def stage_at(progress: float, num_stages: int = NUM_STAGES) -> int:
    """Stage s: 0 all in words, s <= num_stages the first s steps as latents, num_stages + 1 nothing in words.

    >>> [stage_at(progress) for progress in (0.0, 0.14, 0.3, 0.45, 0.55, 0.99)]
    [0, 1, 2, 3, 4, 4]
    """
    return min(num_stages + 1, int(progress / LAST_STAGE_BEGINS * (num_stages + 1)))


def remaining(row: BenchRow, stage: int, num_stages: int = NUM_STAGES) -> list[int]:
    """The steps that stage `stage` leaves in words, and the answer.

    >>> row = BenchRow(prompt=[1], steps=[[11], [12], [13], [14], [15]], answer=[7])
    >>> remaining(row, 1), remaining(row, 3), remaining(row, 4)
    ([12, 13, 14, 15, 7], [14, 15, 7], [7])
    """
    words = row.steps[stage:] if stage <= num_stages else []
    return [*chain.from_iterable(words), *row.answer]


class CoconutModel(LatentModel):
    """c latents for each of the first stages' steps, fed back unchanged; CE on what remains in words.

    Args:
        host, answer_prompt_ids: see `LatentModel`.
        latents_per_step, num_stages: c, and the number of steps that are replaced one by one; k = c * num_stages.
    """

    def __init__(self, host, answer_prompt_ids, latents_per_step=LATENTS_PER_STEP, num_stages=NUM_STAGES):
        super().__init__(host, answer_prompt_ids, latents_per_step * num_stages)
        self.latents_per_step, self.num_stages = latents_per_step, num_stages

    def stage(self, progress):
        return stage_at(progress, self.num_stages)

    def losses(self, rows, progress):
        """The loss of a list of `BenchRow`s and its latents (batch, count, hidden), `None` at stage 0."""
        stage = self.stage(progress)
        count = self.latents_per_step * min(stage, self.num_stages)
        texts = [remaining(row, stage, self.num_stages) for row in rows]
        return self.latent_loss([row.prompt for row in rows], texts, count)[:2]

    def forward(self, rows, progress):
        """The loss of a list of `BenchRow`s."""
        return self.losses(rows, progress)[0]


def train_coconut(setup: TrainingSetup) -> Trained:
    """The whole host is trained; the optimizer is reset at each stage."""
    model = CoconutModel(setup.host, answer_prompt_ids(setup.tokenizer))
    history = fit(model, tokenize_rows(setup.tokenizer, setup.train_rows), setup, model.stage)
    return Trained(model, "semcot", count_trainable(model), **history)
