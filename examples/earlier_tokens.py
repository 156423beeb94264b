"""A training aid for small models from scratch: earlier tokens replace the first layer's attention at first."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Distances of the added tokens: in "Every P is a Q." the rule's end is three tokens behind its start.
DISTANCES = (1, 2, 3)


def faded(progress: float, span: tuple[float, float]) -> float:
    """Return the share of a training aid that is withdrawn at `progress`: 0 before `span`, 1 after it, linear within.

    Args:
        progress: share of the training that is done, in [0, 1).
        span: the progress at which fading begins and ends.

    >>> [round(faded(progress, (0.3, 0.8)), 2) for progress in (0.0, 0.3, 0.55, 0.8, 0.99)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    begin, end = span
    return min(1.0, max(0.0, (progress - begin) / (end - begin)))


class EarlierTokens(TrainerCallback):
    """Add the embeddings of the preceding tokens to each token's embedding during part of a `Trainer`'s training.

    To look up a rule, a Llama needs an induction circuit (arXiv 2209.11895): a first layer that copies preceding
    tokens into each position, and attention in a later layer that finds them. Neither helps without the other, so
    from scratch they form late or never. This callback provides the first until the second is learned. A token with
    the aid gets no output of the first layer's attention, so that only the second is learned. The aid is then
    withdrawn entirely for one token after the other, since a model can amplify a signal that only becomes weaker
    (`bench/NOTES.md`).

    The embedding at each distance is multiplied by random signs, which tell the distances apart. All tokens have the
    aid until the first share in `span` of the steps, none from the second share on, and a random subset in between.
    In `eval()` nothing is added, and nothing remains after training.

    Args:
        span: two shares of all steps, in [0, 1].
        seed: of the signs; the tokens with the aid are drawn from torch's global generator.
    """

    def __init__(self, span: tuple[float, float], seed: int = 0) -> None:
        self.span, self.seed, self.share = span, seed, 0.0
        # One entry per device, for copies of a model that run in parallel on several GPUs.
        self.places: dict[torch.device, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the hooks."""
        model = kwargs["model"]
        embeddings, attention = model.get_input_embeddings(), model.model.layers[0].self_attn
        table = embeddings.weight
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, (len(DISTANCES), table.shape[1]), generator=generator) * 2.0 - 1
        self.signs = signs.to(table)
        self.hooks = [embeddings.register_forward_hook(self._add), attention.register_forward_hook(self._silence)]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the share of tokens with the aid."""
        self.share = 1 - faded(state.global_step / state.max_steps, self.span)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()

    def _add(self, module: nn.Module, inputs: tuple, embeds: Tensor) -> Tensor:
        """Add the preceding embeddings to `embeds` (batch, length, width) at the tokens with the aid."""
        if not module.training or self.share <= 0:
            self.places.pop(embeds.device, None)
            return embeds
        places = torch.rand(embeds.shape[:2], device=embeds.device)[..., None] < self.share
        self.places[embeds.device] = places
        earlier = torch.zeros_like(embeds)
        for distance, signs in zip(DISTANCES, self.signs.to(embeds.device), strict=True):
            earlier[:, distance:] += embeds[:, :-distance] * signs
        return embeds + places * earlier

    def _silence(self, module: nn.Module, inputs: tuple, output: tuple) -> tuple:
        """Zero the output of the first layer's attention (batch, length, width) at the tokens with the aid."""
        places = self.places.get(output[0].device)
        return output if places is None else (output[0] * ~places, *output[1:])
