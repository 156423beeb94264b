"""Embeddings of the true reasoning, the targets of the semantic alignment: computed once, reused by every run."""

import hashlib

import torch
from datasets import IterableDataset, concatenate_datasets

from ..alignment.decoder_layers import backbone_of
from ..alignment.encoder import default_layers, warn_of_truncation
from ..modeling.splicing_semcot import context_of
from ..training.tensor_store import fingerprint, store_folder

COLUMN = "reasoning_embedding"


class MeanStates:
    """The paper's ablation without a sentence transformer: a text is the mean of the host's hidden states of it.

    They are those after the layer from which the alignment encoder would read (16 of 32, scaled to the host's depth).

    Args:
        host: the frozen causal LM.
        tokenizer: its tokenizer.
    """

    def __init__(self, host, tokenizer):
        self.backbone = backbone_of(host)
        self.tokenizer = tokenizer
        self.layer, _ = default_layers(self.backbone.config.num_hidden_layers)

    @torch.no_grad()
    def encode(self, texts, batch_size=64):
        """Float32 array (texts, host hidden size).

        Raises:
            ValueError: for a text longer than the host reads.
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
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            padded = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in ids])
            states = self.backbone(
                input_ids=padded.to(self.backbone.device),
                attention_mask=mask.to(self.backbone.device),
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states[self.layer]
            mask = mask.to(states.device)[..., None]
            vectors.append(((states.float() * mask).sum(dim=1) / mask.sum(dim=1)).cpu())
        return torch.cat(vectors).numpy()

    def fingerprint(self):
        """Hash of what the vectors depend on."""
        description = f"mean of states {self.layer} {self.backbone.config.to_json_string()}"
        return fingerprint(self.backbone, self.tokenizer, description)


class EncoderEmbeddings:
    """f of the true reasoning, by an alignment encoder.

    Args:
        encoder: the SentenceTransformer.
    """

    def __init__(self, encoder):
        self.encoder = encoder

    def encode(self, texts, batch_size=64):
        """Float32 array (texts, dim)."""
        return self.encoder.encode(texts, batch_size=batch_size, show_progress_bar=False).astype("float32")

    def fingerprint(self):
        """Hash of what the vectors depend on."""
        encoder = self.encoder
        description = f"{encoder!r} up to {encoder.max_seq_length} {encoder[0].model.config.to_json_string()}"
        return fingerprint(encoder, encoder.tokenizer, description)


def add_reasoning_embeddings(dataset, name, embedder):
    """The dataset with a column of its reasoning's embeddings.

    They are stored in the folder of the datasets cache (`HF_DATASETS_CACHE`) by a hash of the texts and of all that
    computes them, and read from there by every later run. A stream is embedded as it is read.

    Args:
        dataset: with a column `reasoning`; name: what the progress bar calls it.
        embedder: `EncoderEmbeddings` or `MeanStates`.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.map(_embed, batched=True, batch_size=64, fn_kwargs={"embedder": embedder})
    if isinstance(embedder, EncoderEmbeddings):
        warn_of_truncation(embedder.encoder, [list(dataset["reasoning"])], name, "reasonings")
    digest = hashlib.blake2b(embedder.fingerprint().encode(), digest_size=16)
    for text in dataset["reasoning"]:
        digest.update(f"{len(text)}:{text}".encode())
    key = digest.hexdigest()
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


def _embed(batch, embedder):
    return {COLUMN: embedder.encode(batch["reasoning"])}
