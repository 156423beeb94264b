"""What the encoder's frozen part makes of the training texts, computed once: states, and vectors for the head."""

import hashlib

import torch
from sentence_transformers.util import batch_to_device
from torch import nn

from ..training.tensor_store import fingerprint, stored_tensor
from .encoder import encode_hidden_states, frozen_part, frozen_states, token_states


class TrainingTexts:
    """All texts of the training pairs as token ids, in batches of similar length that depend on nothing but the texts.

    What is computed in these batches has the same bits in every run, a resumed one included.

    Args:
        encoder: an alignment encoder.
        texts: the texts; equal ones are one.
        batch_size: texts encoded at a time.
    """

    def __init__(self, encoder, texts, batch_size):
        self.encoder = encoder
        ordered = sorted(set(texts), key=lambda text: (len(text), text))
        self.batches = [
            encoder.preprocess(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)
        ]
        keys = [key for batch in self.batches for key in token_keys(batch["input_ids"], batch["attention_mask"])]
        self.rows = {key: row for row, key in enumerate(keys)}
        self.lengths = [int(count) for batch in self.batches for count in batch["attention_mask"].sum(dim=1)]

    def key(self, module, description):
        """Hash of the texts and of the frozen module that reads them."""
        kind = self.encoder.device.type
        precision = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "full"
        digest = hashlib.blake2b(precision.encode(), digest_size=16)
        digest.update(fingerprint(module, self.encoder.tokenizer, description).encode())
        digest.update(repr([batch["input_ids"].tolist() for batch in self.batches]).encode())
        return digest.hexdigest()

    def on_device(self):
        """The batches, where the encoder is."""
        return (batch_to_device(batch, self.encoder.device) for batch in self.batches)


class LayerStates:
    """Hidden states of all training texts at the encoder's first layer, below which the host is frozen.

    Args:
        texts: `TrainingTexts`.
        budget: bytes that they may take in memory.

    `fits` is False, and nothing computed, where they would take more.
    """

    def __init__(self, texts, budget):
        self.texts, encoder = texts, texts.encoder
        backbone = encoder[0].model
        self.starts = [0, *torch.tensor(texts.lengths).cumsum(0).tolist()]
        size = backbone.get_input_embeddings().weight.element_size() * backbone.config.get_text_config().hidden_size
        self.fits = self.starts[-1] * size <= budget
        if self.fits:
            part = frozen_part(encoder)
            self.states = stored_tensor("states", texts.key(part, part.config.to_json_string()), self._compute)

    @torch.no_grad()
    def _compute(self):
        pieces = []
        for batch in self.texts.on_device():
            states = frozen_states(self.texts.encoder, batch["input_ids"], batch["attention_mask"])
            pieces.append(states[batch["attention_mask"].bool()].cpu())
        return torch.cat(pieces)

    def __call__(self, input_ids, attention_mask):
        """States (batch, tokens, hidden size) of tokenized texts, padded with zeros like the ids."""
        rows = [self.texts.rows[key] for key in token_keys(input_ids, attention_mask)]
        states = self.states.new_zeros(*input_ids.shape, self.states.shape[-1])
        for place, row in enumerate(rows):
            states[place, : self.texts.lengths[row]] = self.states[self.starts[row] : self.starts[row + 1]]
        return states.to(input_ids.device)


class HeadFeatures:
    """Pooled vectors of all training texts: the head's phase changes nothing before them (no dropout).

    Args:
        texts: `TrainingTexts`.
        layer_states: `LayerStates` to start from; `None` starts from the texts.
    """

    def __init__(self, texts, layer_states=None):
        self.texts, self.layer_states = texts, layer_states
        encoder = texts.encoder
        was_training = encoder.training
        encoder.eval()
        description = encoder[0].model.config.to_json_string() + repr(encoder[1])
        self.vectors = stored_tensor("pooled", texts.key(encoder[0].model, description), self._compute)
        encoder.train(was_training)

    @torch.no_grad()
    def _compute(self):
        encoder, vectors = self.texts.encoder, []
        for batch in self.texts.on_device():
            if self.layer_states is None:
                features = encoder[0](batch)
            else:
                states = self.layer_states(batch["input_ids"], batch["attention_mask"])
                tokens = token_states(encoder, states, batch["attention_mask"])
                features = {"token_embeddings": tokens, "attention_mask": batch["attention_mask"]}
            vectors.append(encoder[1](features)["sentence_embedding"].float().cpu())
        return torch.cat(vectors)

    def __call__(self, input_ids, attention_mask):
        """Return (batch, d_host) of the tokenized texts."""
        rows = [self.texts.rows[key] for key in token_keys(input_ids, attention_mask)]
        return self.vectors[rows].to(input_ids.device)


class FromStates(nn.Module):
    """The encoder as a loss calls it, for features that hold `states` of its first layer instead of ids."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features):
        embedding = encode_hidden_states(self.encoder, features["states"], features["attention_mask"])
        return {"sentence_embedding": embedding}


def token_keys(input_ids, attention_mask):
    """The real ids of each row as bytes, by which its text is known.

    >>> token_keys(torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])) == [torch.tensor([5, 6]).numpy().tobytes()]
    True
    """
    rows = zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)
    return [ids[mask].numpy().tobytes() for ids, mask in rows]
