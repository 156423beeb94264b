"""Outputs of the encoder's frozen layers for the training texts, computed once: hidden states and pooled vectors."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import nn

from ..storage import text_digest
from ..training.tensor_store import fingerprint, stored_tensor
from .decoder_layers import layers_view
from .encoder import alignment_layers, backbone_in, encode_hidden_states, frozen_states, token_states

Features = dict[str, torch.Tensor]


class TrainingTexts:
    """All texts of the training pairs as token ids, in batches of similar length.

    The batches depend on the texts only, so what is computed from them has the same bits in every run, a resumed run
    included.

    Args:
        encoder: an alignment encoder.
        texts: the texts; duplicates are removed.
        batch_size: texts encoded at a time.
    """

    def __init__(self, encoder: SentenceTransformer, texts: Iterable[str], batch_size: int):
        self.encoder = encoder
        ordered = sorted(set(texts), key=lambda text: (len(text), text))
        self.batches = [
            encoder.preprocess(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)
        ]
        keys = [key for batch in self.batches for key in token_keys(batch["input_ids"], batch["attention_mask"])]
        self.rows = {key: row for row, key in enumerate(keys)}
        self.lengths = [int(count) for batch in self.batches for count in batch["attention_mask"].sum(dim=1)]

    def key(self, module: nn.Module, description: str) -> str:
        """Return a hash of the texts, the frozen module that reads them, and the precision of its computation."""
        kind = self.encoder.device.type
        precision = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "full"
        ids = (batch["input_ids"].tolist() for batch in self.batches)
        return text_digest([precision, fingerprint(module, self.encoder.tokenizer, description), *ids])

    def on_device(self) -> Iterator[Features]:
        """Yield the batches on the encoder's device."""
        return (batch_to_device(batch, self.encoder.device) for batch in self.batches)

    def rows_of(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[int]:
        """Return the numbers of tokenized texts among all texts."""
        return [self.rows[key] for key in token_keys(input_ids, attention_mask)]


class LayerStates:
    """Hidden states of all training texts at the encoder's first layer, below which the host is frozen.

    `fits` is False, and nothing is computed, if they take more than `budget`.

    Args:
        texts: the texts.
        budget: maximum bytes of memory.
    """

    def __init__(self, texts: TrainingTexts, budget: float):
        self.texts, encoder = texts, texts.encoder
        backbone = backbone_in(encoder)
        self.starts = [0, *torch.tensor(texts.lengths).cumsum(0).tolist()]
        size = backbone.dtype.itemsize * backbone.config.get_text_config().hidden_size
        self.fits = self.starts[-1] * size <= budget
        if self.fits:
            # The embedding and the layers below the encoder's first.
            part = layers_view(backbone, 0, alignment_layers(encoder)[0])
            self.states = stored_tensor("states", texts.key(part, part.config.to_json_string()), self._compute)

    @torch.no_grad()
    def _compute(self) -> torch.Tensor:
        pieces = []
        for batch in self.texts.on_device():
            states = frozen_states(self.texts.encoder, batch["input_ids"], batch["attention_mask"])
            pieces.append(states[batch["attention_mask"].bool()].cpu())
        return torch.cat(pieces)

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the states (batch, tokens, hidden size) of tokenized texts, zero at the padding."""
        states = self.states.new_zeros(*input_ids.shape, self.states.shape[-1])
        for place, row in enumerate(self.texts.rows_of(input_ids, attention_mask)):
            states[place, : self.texts.lengths[row]] = self.states[self.starts[row] : self.starts[row + 1]]
        return states.to(input_ids.device)


class HeadFeatures:
    """Pooled vectors of all training texts, which do not change while only the head is trained (without dropout).

    Args:
        texts: the texts.
        layer_states: states to start from; `None` starts from the texts.
    """

    def __init__(self, texts: TrainingTexts, layer_states: LayerStates | None = None):
        self.texts, self.layer_states = texts, layer_states
        encoder = texts.encoder
        was_training = encoder.training
        encoder.eval()
        description = backbone_in(encoder).config.to_json_string() + repr(encoder[1])
        self.vectors = stored_tensor("pooled", texts.key(backbone_in(encoder), description), self._compute)
        encoder.train(was_training)

    @torch.no_grad()
    def _compute(self) -> torch.Tensor:
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

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the vectors (batch, d_host) of tokenized texts."""
        return self.vectors[self.texts.rows_of(input_ids, attention_mask)].to(input_ids.device)


class FromStates(nn.Module):
    """The encoder in the form that a loss calls, for features with `states` of its first layer instead of ids."""

    def __init__(self, encoder: SentenceTransformer):
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Features) -> Features:
        embedding = encode_hidden_states(self.encoder, features["states"], features["attention_mask"])
        return {"sentence_embedding": embedding}


class StoredStatesEncoder:
    """An encoder in the form that `PairRetrievalEvaluator` calls, which reads its texts' stored hidden states.

    Several encoders that begin at one layer of one host share the states: the layers below are run once.

    Args:
        encoder: an alignment encoder, which takes hidden states.
        texts: all texts that it will be given.
        batch_size: texts encoded at a time.
        budget: maximum bytes of the states; beyond it the encoder reads the texts themselves.
    """

    def __init__(self, encoder: SentenceTransformer, texts: Iterable[str], batch_size: int, budget: float):
        self.encoder = encoder
        self.states = LayerStates(TrainingTexts(encoder, texts, batch_size), budget)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 64, **options: Any) -> torch.Tensor:
        """Return f of the texts, (texts, embedding_dim), on the encoder's device; other options are not used."""
        if not self.states.fits:
            return self.encoder.encode(list(texts), batch_size=batch_size, **options)
        was_training = self.encoder.training
        self.encoder.eval()
        # Texts of similar length need little padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        pieces = []
        for start in range(0, len(order), batch_size):
            batch = self.encoder.preprocess([texts[index] for index in order[start : start + batch_size]])
            batch = batch_to_device(batch, self.encoder.device)
            states = self.states(batch["input_ids"], batch["attention_mask"])
            pieces.append(encode_hidden_states(self.encoder, states, batch["attention_mask"]))
        self.encoder.train(was_training)
        return torch.cat(pieces)[torch.tensor(order).argsort()]


def token_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[bytes]:
    """Return the ids of each row without padding, as bytes that identify its text.

    >>> token_keys(torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])) == [torch.tensor([5, 6]).numpy().tobytes()]
    True
    """
    rows = zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)
    return [ids[mask].numpy().tobytes() for ids, mask in rows]
