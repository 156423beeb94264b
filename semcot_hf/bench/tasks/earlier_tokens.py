"""Earlier tokens in the place of the first layer's attention while a model from nothing learns to look things up."""

import torch
from transformers import TrainerCallback

from ..methods.words import faded

# How far back: in "Every P is a Q." the rule's end stands three tokens behind its start.
DISTANCES = (1, 2, 3)


class EarlierTokens(TrainerCallback):
    """Adds to a token's embedding those of the tokens shortly before it, for a part of a `Trainer`'s training.

    To look a rule up, a Llama needs two things at once: a first layer whose tokens hold what stands before them, and
    attention in a later one that finds them by it (induction heads, arXiv 2209.11895). Neither is of use without the
    other, so from nothing they form late or never. Here the first is given until the second is learned. A token that
    is given it gets nothing from the first layer's attention, so that what is learned is the second. Then it is
    withdrawn, whole for one token after the other, since a model can amplify what only grows fainter
    (`examples/bench/NOTES.md`).

    The embedding of distance d is multiplied by random signs of its own, by which distances are told apart. All
    tokens are given it until the first share in `span` of the steps, none from the second one on, in between so many
    by chance. In `eval()` nothing is added, and after training nothing is left of it.

    Args:
        span: two shares of all steps, in [0, 1].
        seed: of the signs; which tokens are given it is drawn from torch's generator.
    """

    def __init__(self, span, seed=0):
        self.span, self.seed, self.given = span, seed, 0.0
        # By device, for copies of a model on several GPUs run beside each other.
        self.places = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Begin to add."""
        embeddings = model.get_input_embeddings()
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, (len(DISTANCES), embeddings.embedding_dim), generator=generator) * 2.0 - 1
        self.signs = signs.to(embeddings.weight)
        first = model.model.layers[0].self_attn
        self.hooks = [embeddings.register_forward_hook(self._add), first.register_forward_hook(self._silence)]

    def on_step_begin(self, args, state, control, **kwargs):
        """The share of tokens that are given it in this step."""
        self.given = 1 - faded(state.global_step / state.max_steps, self.span)

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the model as any other."""
        for hook in self.hooks:
            hook.remove()

    def _add(self, module, inputs, embeds):
        """`embeds` (batch, length, width) with the earlier ones added where they are given."""
        if not module.training or self.given <= 0:
            self.places.pop(embeds.device, None)
            return embeds
        places = torch.rand(embeds.shape[:2], device=embeds.device)[..., None] < self.given
        self.places[embeds.device] = places
        earlier = torch.zeros_like(embeds)
        for distance, signs in zip(DISTANCES, self.signs.to(embeds.device), strict=True):
            earlier[:, distance:] += embeds[:, :-distance] * signs
        return embeds + places * earlier

    def _silence(self, module, inputs, output):
        """The first layer's attention (batch, length, width) without those tokens."""
        places = self.places.get(output[0].device)
        return output if places is None else (output[0] * ~places, *output[1:])
