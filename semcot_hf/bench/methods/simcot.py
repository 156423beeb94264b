"""SIM-CoT (arXiv 2509.20317): an auxiliary decoder must tell each latent's step, on top of Coconut or CODI."""

import copy

from torch import nn

from ...distillation.data import group_steps
from ...inference.prompting import answer_prompt_ids
from ...modeling.modeling_semcot import step_decoding_loss
from ...training.adapters import merge_adapters
from .coconut import CoconutModel
from .codi import CodiModel, add_lora
from .token_rows import pad_right, tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit

# One latent a step, six in all, as many as Coconut's and CODI's latents.
NUM_LATENTS = 6


class StepSupervised(nn.Module):
    """A latent model whose latents must be told as text by a decoder that is trained with it and then dropped.

    The loss is the base method's plus mean_k CE(decoder([z_k; step_k]), step_k); surplus steps join the last latent.

    Args:
        base: model with `losses(rows, progress)`, which gives the loss and the latents.
        decoder: causal LM of the same width, a copy of the host in SIM-CoT.
        end: end-of-sequence token that ends each step's text.
    """

    def __init__(self, base, decoder, end):
        super().__init__()
        self.base, self.decoder, self.end = base, decoder, end

    def forward(self, rows, progress):
        """The loss of a list of `BenchRow`s."""
        loss, latents = self.base.losses(rows, progress)
        if latents is None:
            return loss
        ids, mask = step_tensors(rows, NUM_LATENTS, self.end, self.base.pad_token_id, latents.device)
        count = latents.shape[1]
        return loss + step_decoding_loss(self.decoder, latents, ids[:, :count], mask[:, :count])


def step_tensors(rows, count, end, filler, device=None):
    """Ids and mask of each latent's step, both (batch, count, longest); latents without a step are masked out.

    >>> from semcot_hf.bench.methods.token_rows import BenchRow
    >>> row = BenchRow(prompt=[1], steps=[[11], [12], [13]], answer=[7])
    >>> step_tensors([row], 2, end=9, filler=0)[0].tolist()
    [[[11, 9, 0], [12, 13, 9]]]
    """
    texts = [[step + [end] if step else [] for step in group_ids(row.steps, count)] for row in rows]
    ids, mask = pad_right([text for group in texts for text in group], filler, device)
    return ids.view(len(rows), count, -1), mask.view(len(rows), count, -1)


def group_ids(steps, count, steps_per_token=1):
    """The ids that each of `count` latents must tell, as `group_steps` gives the texts.

    >>> group_ids([[1], [2], [3]], 2), group_ids([[1]], 2)
    ([[1], [2, 3]], [[1], []])
    """
    words = group_steps([str(index) for index in range(len(steps))], count, steps_per_token)
    return [[token for index in word.split() for token in steps[int(index)]] for word in words]


def train_simcot_coconut(setup: TrainingSetup) -> Trained:
    """SIM-CoT on Coconut, one latent a step and a stage for each."""
    decoder = copy.deepcopy(setup.host)
    base = CoconutModel(setup.host, answer_prompt_ids(setup.tokenizer), 1, NUM_LATENTS)
    return _train(setup, base, decoder, base.stage)


def train_simcot_codi(setup: TrainingSetup) -> Trained:
    """SIM-CoT on CODI."""
    decoder = copy.deepcopy(setup.host)
    base = CodiModel(add_lora(setup.host), answer_prompt_ids(setup.tokenizer), NUM_LATENTS)
    return _train(setup, base, decoder, None)


def _train(setup, base, decoder, stage):
    model = StepSupervised(base, decoder, setup.tokenizer.eos_token_id)
    history = fit(model, tokenize_rows(setup.tokenizer, setup.train_rows), setup, stage)
    trainable = count_trainable(model)
    merge_adapters(base)
    return Trained(base, "semcot", trainable, **history)
