"""Embeddings of the true reasoning, the targets of the semantic alignment: computed once and reused by every run."""

from typing import Any, cast

import numpy as np
import torch
from datasets import IterableDataset, concatenate_datasets
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..alignment.decoder_layers import backbone_of
from ..alignment.encoder import backbone_in, check_texts, default_layers
from ..modeling.modeling_semcot import SemCoTForCausalLM
from ..modeling.splicing_semcot import context_of
from ..storage import text_digest
from ..training.adapters import HALF
from ..training.tensor_store import fingerprint, store_folder
from .batches import pad
from .config import SemCoTDistillationConfig
from .data import AnyDataset

COLUMN = "reasoning_embedding"


class MeanStates:
    """Embed a text as the mean of the host's hidden states, without a sentence transformer (an ablation of the paper).

    The states are those of the layer at which the alignment encoder would start (16 of 32, scaled to the host's
    depth).

    Args:
        host: the frozen causal LM.
        tokenizer: its tokenizer.
        precision: 16-bit type to which the computation is autocast, `None` for that of the weights.
    """

    def __init__(
        self, host: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: torch.dtype | None = None
    ):
        self.backbone, self.precision = backbone_of(host), precision
        self.tokenizer = tokenizer
        self.layer, _ = default_layers(self.backbone.config.num_hidden_layers)

    @torch.no_grad()
    def encode(self, texts: list[str], batch_size: int = 64) -> np.ndarray:
        """Return a float32 array (texts, host hidden size).

        Raises:
            ValueError: for a text longer than the host's context.
        """
        context = context_of(self.backbone.config.get_text_config())
        vectors = []
        for start in range(0, len(texts), batch_size):
            ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[start:][:batch_size]]
            width, longest = max((len(row), text) for row, text in zip(ids, texts[start:], strict=False))
            if context is not None and width > context:
                raise ValueError(
                    f"alignment_view='mean_pooled' reads a reasoning of {width} tokens, beyond the host's context of "
                    f"{context}: drop long rows, or choose another alignment_view. It starts {longest[:80]!r}."
                )
            padded, mask = pad(ids, self.tokenizer.pad_token_id, "right")
            with autocast_to(self.precision, self.backbone.device):
                states = self.backbone(
                    input_ids=padded.to(self.backbone.device),
                    attention_mask=mask.to(self.backbone.device),
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states[self.layer]
            mask = mask.to(states.device)[..., None]
            vectors.append(((states.float() * mask).sum(dim=1) / mask.sum(dim=1)).cpu())
        return torch.cat(vectors).numpy()

    def fingerprint(self) -> str:
        """Return a hash of everything that the vectors depend on."""
        description = f"mean of states {self.layer} in {self.precision} {self.backbone.config.to_json_string()}"
        return fingerprint(self.backbone, self.tokenizer, description)


class EncoderEmbeddings:
    """Embed a text by the alignment encoder f.

    Args:
        encoder: f.
        precision: 16-bit type to which the computation is autocast, `None` for that of the weights.
    """

    def __init__(self, encoder: SentenceTransformer, precision: torch.dtype | None = None):
        self.encoder, self.precision = encoder, precision

    def encode(self, texts: list[str], batch_size: int = 64) -> np.ndarray:
        """Return a float32 array (texts, dim)."""
        with autocast_to(self.precision, self.encoder.device):
            return self.encoder.encode(texts, batch_size=batch_size, show_progress_bar=False).astype("float32")

    def fingerprint(self) -> str:
        """Return a hash of everything that the vectors depend on."""
        encoder = self.encoder
        settings = f"up to {encoder.max_seq_length} in {self.precision}"
        description = f"{encoder!r} {settings} {backbone_in(encoder).config.to_json_string()}"
        return fingerprint(encoder, encoder.tokenizer, description)


def autocast_to(precision: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return the context in which operations on `device` compute in `precision`, or in their own for `None`."""
    return torch.autocast(device.type, dtype=precision, enabled=precision is not None)


def reasoning_embedder(
    model: SemCoTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    args: SemCoTDistillationConfig,
    encoder: SentenceTransformer | None,
) -> MeanStates | EncoderEmbeddings | None:
    """Return what embeds the reasoning of the rows, on the device of the training; `None` without alignment.

    Args:
        model, tokenizer: the model and the host's tokenizer.
        args: of the training.
        encoder: the alignment encoder, or `None` for the host's own states.
    """
    # That of the training: autocast, or else the host's own.
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.host.dtype
    precision = dtype if dtype in HALF else None
    if encoder is not None:
        return EncoderEmbeddings(encoder.to(args.device), precision)
    if args.alpha > 0:
        return MeanStates(cast(Any, model.host).to(args.device), tokenizer, precision)
    return None


def add_reasoning_embeddings(dataset: AnyDataset, name: str, embedder: MeanStates | EncoderEmbeddings) -> AnyDataset:
    """Return the dataset with a column of embeddings of its reasoning.

    They are stored in the folder of the datasets cache (`HF_DATASETS_CACHE`) under a hash of the texts and of
    everything that computes them; later runs read them from there. A stream is embedded while it is read.

    Args:
        dataset: with a column `reasoning`.
        name: the dataset's name in the progress bar.
        embedder: `EncoderEmbeddings` or `MeanStates`.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.map(_embed, batched=True, batch_size=64, fn_kwargs={"embedder": embedder})
    texts: list[str] = list(dataset["reasoning"])
    if isinstance(embedder, EncoderEmbeddings):
        check_texts(embedder.encoder, [texts], name, "reasonings")
    key = text_digest([embedder.fingerprint(), *texts])
    vectors = dataset.select_columns(["reasoning"]).map(
        _embed,
        batched=True,
        batch_size=1024,
        fn_kwargs={"embedder": embedder},
        remove_columns=["reasoning"],
        cache_file_name=str(store_folder() / f"reasoning-{key}.arrow"),
        new_fingerprint=key,
        desc=f"Encoding the reasoning of {name}",
    )
    return concatenate_datasets([dataset, vectors], axis=1)


def _embed(batch: dict[str, Any], embedder: MeanStates | EncoderEmbeddings) -> dict[str, np.ndarray]:
    return {COLUMN: embedder.encode(batch["reasoning"])}
