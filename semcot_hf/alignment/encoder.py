"""The alignment encoder f (SemCoT) as a SentenceTransformer: built from host layers, loaded, and run."""

import copy
import os
import tempfile
from collections.abc import Sequence
from typing import Any, cast

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..modeling.parts_semcot import check_word_size
from ..training.trainer import no_loading_bars
from .decoder_layers import backbone_of, layer_list, layers_view, only_layers, run_from, states_before

logger = logging.get_logger(__name__)

POOLINGS = ("mean", "max", "lasttoken", "weightedmean")

# Field of the backbone's config with the encoder's own settings, so that config.json carries them.
_FIELD = "semcot_alignment"


def default_layers(num_layers: int) -> tuple[int, int]:
    """Return (first, last) of the paper's layers 16 to 20 of 32, scaled to a host of `num_layers`, from zero.

    >>> default_layers(32), default_layers(12), default_layers(3), default_layers(1)
    ((16, 20), (6, 7), (1, 1), (0, 0))
    """
    return num_layers // 2, 5 * num_layers // 8


def build_alignment_encoder(
    host: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    first_layer: int | None = None,
    last_layer: int | None = None,
    pooling: str = "mean",
    embedding_dim: int = 768,
) -> SentenceTransformer:
    """Cut the alignment encoder out of `host` (SemCoT, section on the contrastively trained sentence transformer).

    The encoder is: host layers 0 to `last_layer`, the host's final norm, pooling over the tokens, a new Linear(d_host,
    embedding_dim), and normalization to unit length. The layers below `first_layer` compute the host's hidden states
    h(text) and are frozen; the function f begins at `first_layer`. Only the layers `first_layer` to `last_layer` and
    the linear layer have `requires_grad`. The host is copied, not changed.

    `encoder.encode(texts)` is f(h(text)). Embeddings Z in the host's input space are encoded by
    `encoder({"inputs_embeds": Z, "attention_mask": mask})["sentence_embedding"]`, hidden states of layer
    `first_layer` by `encode_hidden_states`; both are differentiable in their input.

    Args:
        host: causal LM or backbone of transformers.
        tokenizer: the host's. The encoder has a copy without chat template, so that texts are encoded as they are.
        first_layer, last_layer: f's first and last layer, counted from zero; `default_layers` when `None`.
        pooling: one of `POOLINGS`.
        embedding_dim: size of f's output.

    Raises:
        ValueError: for layers that the host does not have, an unknown pooling, a size below one, a tokenizer without
            padding and end token, or a host whose layers cannot be found or whose word embeddings are of another size
            than its layers.
    """
    backbone = backbone_of(host)
    _, layers = layer_list(backbone)
    check_word_size(backbone)
    first_layer, last_layer = layer_range(first_layer, last_layer, len(layers))
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is unknown: choose one of {', '.join(POOLINGS)}.")
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim={embedding_dim} must be at least 1 (the paper: 768).")
    tokenizer = _plain_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as folder, no_loading_bars():
        view = layers_view(backbone, 0, last_layer + 1)
        view.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # save_pretrained writes the weights on the first process only, but every process reads its own folder.
        weights = {name: value.cpu().contiguous() for name, value in view.state_dict().items()}
        save_file(weights, os.path.join(folder, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        transformer = Transformer(folder, model_kwargs={"dtype": backbone.dtype})
    copied = transformer.model
    copied.config._name_or_path = backbone.config._name_or_path
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(copied.config, token, getattr(tokenizer, token))
    field = {"first_layer": first_layer, "takes_hidden_states": _takes_hidden_states(copied, first_layer)}
    setattr(copied.config, _FIELD, field)
    hidden_size = transformer.get_embedding_dimension()
    encoder = SentenceTransformer(
        modules=[
            transformer,
            Pooling(hidden_size, pooling_mode=pooling),
            Dense(hidden_size, embedding_dim, activation_function=nn.Identity()).to(backbone.dtype),
            Normalize(),
        ],
        similarity_fn_name="cosine",
        device=str(backbone.device),
    )
    _set_trainable(encoder)
    return encoder.eval()


def load_alignment_encoder(encoder: SentenceTransformer | str | os.PathLike) -> SentenceTransformer:
    """Return the alignment encoder saved at a path or Hub id; an encoder that is already loaded is only checked.

    Only the linear layer and the layers from `first_layer` on have `requires_grad`.

    Raises:
        ValueError: for another sentence transformer.
    """
    if not isinstance(encoder, SentenceTransformer):
        encoder = SentenceTransformer(os.fspath(encoder))
    alignment_layers(encoder)
    _set_trainable(encoder)
    return encoder.eval()


def check_texts(encoder: SentenceTransformer, columns: Sequence[Sequence[str]], name: str, rows: str) -> None:
    """Check that the encoder has embeddings for the texts' ids; warn of the number of rows with one that is too long.

    Args:
        columns: lists of texts, each with one text for a row.
        name, rows: the words for the dataset and its rows in error and warning.

    Raises:
        ValueError: for an id beyond the encoder's vocabulary, which added tokens of a tokenizer have.
    """
    limit, count, tokenizer = encoder.max_seq_length, len(columns[0]), encoder.tokenizer
    table: Any = backbone_in(encoder).get_input_embeddings()
    size = table.weight.shape[0]
    cause = f"the tokenizer has {len(tokenizer)} tokens, but the host's vocabulary only {size}."
    if (padding := tokenizer.pad_token_id) is not None and padding >= size:
        raise ValueError(
            f"The padding token {tokenizer.pad_token!r} has the id {padding}: {cause} Set tokenizer.pad_token = "
            "tokenizer.eos_token, or use the model's own tokenizer."
        )
    too_long = 0
    for start in range(0, count, 1_000):
        lengths = []
        for texts in columns:
            read = tokenizer(texts[start : start + 1_000], verbose=False)["input_ids"]
            lengths.append([len(ids) for ids in read])
            for text, ids in zip(texts[start : start + 1_000], read, strict=True):
                if (largest := max(ids[:limit], default=0)) >= size:
                    raise ValueError(
                        f"{name} has a text with the token id {largest}: {cause} Use the model's own tokenizer, or "
                        "resize its embeddings (resize_token_embeddings) and save it with the tokenizer. The text "
                        f"starts {text[:80]!r}."
                    )
        too_long += sum(max(row) > limit for row in zip(*lengths, strict=True))
    if too_long:
        logger.warning(f"{name}: {too_long} of {count} {rows} are longer than {limit} tokens and are truncated.")


def backbone_in(encoder: SentenceTransformer) -> PreTrainedModel:
    """Return the transformers model in an encoder: the layers of the host that it consists of."""
    return cast(PreTrainedModel, encoder[0].model)


def alignment_layers(encoder: SentenceTransformer) -> tuple[int, int]:
    """Return (first_layer, last_layer) of an alignment encoder.

    f reads the host's `hidden_states[first_layer]`: the output of the embedding and `first_layer` layers.

    Raises:
        ValueError: for another sentence transformer.
    """
    field = getattr(getattr(getattr(encoder[0], "model", None), "config", None), _FIELD, None)
    if field is None:
        raise ValueError(
            "encoder is a sentence transformer that was not cut out of a host: pass one made by "
            "build_alignment_encoder or saved by SemCoTAlignmentTrainer."
        )
    return field["first_layer"], len(layer_list(backbone_in(encoder))[1]) - 1


def encode_hidden_states(
    encoder: SentenceTransformer, states: torch.Tensor, attention_mask: torch.Tensor, first_layer: int | None = None
) -> torch.Tensor:
    """Encode hidden states of the host instead of text.

    For the host's `hidden_states[first_layer]` of a text, the result equals `encoder.encode` of that text.

    Args:
        encoder: an alignment encoder.
        states: (batch, tokens, d_host), the input of layer `first_layer`.
        attention_mask: (batch, tokens), 1 where there is a token; padding to the right.
        first_layer: the layer whose input the states are, to be checked; not checked when `None`.

    Returns:
        (batch, embedding_dim) of unit length, differentiable in `states`.

    Raises:
        ValueError: for another `first_layer` than the encoder's, shapes that do not fit, or a host whose layers read
            more than hidden states.
    """
    begins_at, _ = alignment_layers(encoder)
    if first_layer is not None and first_layer != begins_at:
        raise ValueError(
            f"first_layer={first_layer}, but this encoder reads the host's hidden_states[{begins_at}]: pass those, "
            "or build the encoder with that first_layer."
        )
    backbone = backbone_in(encoder)
    if states.dim() != 3 or states.shape[:2] != attention_mask.shape:
        raise ValueError(
            f"states {tuple(states.shape)} and attention_mask {tuple(attention_mask.shape)} do not fit: need "
            "(batch, tokens, hidden size) and (batch, tokens)."
        )
    if not takes_hidden_states(encoder):
        raise ValueError(
            f"states: the layers of {type(backbone).__name__} read more than hidden states, so they cannot be entered "
            f"at layer {begins_at}. Pass embeddings instead: encoder({{'inputs_embeds': ..., 'attention_mask': ...}})."
        )
    features = {"token_embeddings": token_states(encoder, states, attention_mask), "attention_mask": attention_mask}
    for module in list(encoder)[1:]:
        features = module(features)
    return features["sentence_embedding"]


def token_states(encoder: SentenceTransformer, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the input of the pooling, (batch, tokens, d_host), from `states` at the encoder's first layer."""
    return run_from(backbone_in(encoder), alignment_layers(encoder)[0], states, attention_mask)


def takes_hidden_states(encoder: SentenceTransformer) -> bool:
    """Return whether `encode_hidden_states` works; the layers of some architectures read more than hidden states."""
    alignment_layers(encoder)
    return getattr(backbone_in(encoder).config, _FIELD)["takes_hidden_states"]


def frozen_states(encoder: SentenceTransformer, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the host's `hidden_states[first_layer]` of tokenized texts, (batch, tokens, d_host)."""
    return states_before(backbone_in(encoder), alignment_layers(encoder)[0], input_ids, attention_mask)


@torch.no_grad()
def _takes_hidden_states(backbone: PreTrainedModel, first_layer: int) -> bool:
    """Return whether the layers from `first_layer` on give the same output from hidden states alone."""
    ids = (torch.arange(6, device=backbone.device) % backbone.config.vocab_size).unsqueeze(0)
    whole = backbone.eval()(input_ids=ids, output_hidden_states=True, use_cache=False)
    entered = run_from(backbone, first_layer, whole.hidden_states[first_layer], torch.ones_like(ids))
    difference = (entered - whole.last_hidden_state).abs().max()
    return bool(difference <= 1e-2 * whole.last_hidden_state.abs().max())


def layer_range(first: int | None, last: int | None, count: int) -> tuple[int, int]:
    """Return (first, last) layer of an encoder cut out of a host of `count` layers; `None` takes `default_layers`.

    Raises:
        ValueError: for layers that the host does not have.
    """
    default_first, default_last = default_layers(count)
    if last is None:
        last = default_last if first is None else max(default_last, first)
    if first is None:
        first = min(default_first, last)
    if not 0 <= first <= last < count:
        raise ValueError(
            f"first_layer={first}, last_layer={last}: the host has {count} layers, so need 0 <= first_layer <= "
            f"last_layer <= {count - 1}. Leave both out for {default_first} and {default_last}."
        )
    return first, last


def _plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("tokenizer has neither a padding nor an end token: set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_trainable(encoder: SentenceTransformer) -> None:
    encoder.requires_grad_(False)
    encoder[2].requires_grad_(True)
    trained_layers(encoder).requires_grad_(True)


def trained_layers(encoder: SentenceTransformer) -> nn.ModuleList:
    """Return the layers of an alignment encoder that training may change."""
    return layer_list(backbone_in(encoder))[1][alignment_layers(encoder)[0] :]


def trained_part(encoder: SentenceTransformer) -> PreTrainedModel:
    """Return the backbone with only the layers that training may change, for `add_adapters`."""
    return only_layers(backbone_in(encoder), alignment_layers(encoder)[0])
