"""Generators of another tokenizer: queries in its tokens, and the words that both vocabularies write alike."""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# The characters that byte-level tokenizers write for bytes.
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}


def shared_words(
    host_tokenizer: PreTrainedTokenizerBase,
    generator_tokenizer: PreTrainedTokenizerBase,
    host_size: int,
    generator_size: int,
) -> Tensor:
    """Return the host's word for each word of the generator that both write alike, as the same bytes.

    Special tokens have none. Of several tokens of the host that write the same, the one of the lowest id is taken, but
    a single byte's (`<0x41>` beside `A`), which tokenizers hardly use, last.

    Args:
        host_tokenizer, generator_tokenizer: the two tokenizers.
        host_size, generator_size: the sizes of the embedding tables.

    Returns:
        IntTensor (generator_size,) of the host's ids, -1 where the host has no such word.

    Raises:
        ValueError: if the vocabularies have no word in common.
    """
    by_bytes: dict[bytes, int] = {}
    written = token_bytes(host_tokenizer)
    single = {token for token in written if host_tokenizer.convert_ids_to_tokens(token) in _BYTE_TOKENS}
    for token in sorted(written, key=lambda token: (token in single, token)):
        if token < host_size:
            by_bytes.setdefault(written[token], token)
    found = torch.full((generator_size,), -1, dtype=torch.int32)
    for token, data in token_bytes(generator_tokenizer).items():
        if token < generator_size:
            found[token] = by_bytes.get(data, -1)
    if not (found >= 0).any():
        raise ValueError(
            f"projection='vocabulary': the tokenizers of the host ({host_tokenizer.name_or_path!r}) and of the "
            f"generator ({generator_tokenizer.name_or_path!r}) have no word in common: use projection='linear'."
        )
    return found


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return what each token writes behind other text, as UTF-8; special tokens and empty ones are left out.

    The tokenizer itself decodes them, so that all marks for spaces and bytes are known. A part of a character decodes
    to the replacement character; its bytes follow from how the token is written, if decoding them gives the same.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(tokenizer.all_special_ids)
    # Some tokenizers drop the space of the first token, or add one.
    first: Any = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
    before = tokenizer.convert_tokens_to_string(first)
    found = {}
    for piece, token in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([*first, piece])
        if token in special or not text.startswith(before) or len(text) == len(before):
            continue
        text = text.removeprefix(before)
        if "\ufffd" not in text or "\ufffd" in piece:
            found[token] = text.encode(errors="surrogatepass")
            continue
        data = _written_bytes(piece)
        if data is not None and data.decode(errors="replace") == text:
            found[token] = data
    return found


def _written_bytes(piece: str) -> bytes | None:
    """Return the bytes of a token that is written as a byte (`<0x0A>`), or in the characters that stand for bytes.

    >>> _written_bytes("<0xE6>"), _written_bytes("\u00e6\u0139"), _written_bytes("\u65e5")
    (b'\\xe6', b'\\xe6\\x97', None)
    """
    if piece in _BYTE_TOKENS:
        return bytes([_BYTE_TOKENS[piece]])
    return bytes(_BYTES[character] for character in piece) if all(c in _BYTES for c in piece) else None


def continued_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that follows other text, where some tokenizers add no space as they do at its start."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first: Any = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    if " " not in tokenizer.convert_tokens_to_string([*first, *first]):
        return ids
    # What tokenizers do not join with the text.
    for before in ("\n", "="):
        start = tokenizer(before, add_special_tokens=False)["input_ids"]
        both = tokenizer(before + text, add_special_tokens=False)["input_ids"]
        if both[: len(start)] == start:
            return both[len(start) :]
    return ids


def first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that a tokenizer puts before each text; empty if it puts none."""
    ids = tokenizer("")["input_ids"][:1]
    return ids if ids == [tokenizer.bos_token_id] else []


def generator_text(
    ids: list[int], host_tokenizer: PreTrainedTokenizerBase, generator_tokenizer: PreTrainedTokenizerBase
) -> str:
    """Decode one query into text for the generator's tokenizer.

    Special tokens of the host are kept if the generator's tokenizer has them too, and dropped otherwise, since the
    generator would read them as spelled-out text. The host's bos token becomes the generator's.

    Args:
        ids: token ids of the host, without padding.
        host_tokenizer, generator_tokenizer: the two tokenizers.
    """
    # Asked for these ids alone: a tokenizer takes long to list thousands of added tokens.
    special = set(host_tokenizer.all_special_ids)
    special |= {
        i for i in set(ids) if host_tokenizer.decode([i]) != host_tokenizer.decode([i], skip_special_tokens=True)
    }
    kept = {i: _known_text(i, host_tokenizer, generator_tokenizer) for i in special.intersection(ids)}
    if host_tokenizer.bos_token_id in kept:
        kept[host_tokenizer.bos_token_id] = generator_tokenizer.bos_token or ""
    parts: list[str] = []
    for is_special, group in groupby(ids, lambda i: i in kept):
        run = list(group)
        parts += [kept[i] for i in run] if is_special else [str(host_tokenizer.decode(run, skip_special_tokens=False))]
    return "".join(parts)


def _known_text(
    token: int, host_tokenizer: PreTrainedTokenizerBase, generator_tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return how a special token of the host is written if it is one token of the generator too, else no text."""
    text = str(host_tokenizer.convert_ids_to_tokens(token))
    ids = generator_tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if generator_tokenizer.convert_ids_to_tokens(ids) == [text] else ""


def retokenize(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    host_tokenizer: PreTrainedTokenizerBase | None,
    generator_tokenizer: PreTrainedTokenizerBase | None,
    spaces: list[str] | None = None,
    starts: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Translate queries from the host's token ids into the generator's.

    Args:
        input_ids: (batch, length), in the host's vocabulary.
        attention_mask: (batch, length), or `None` without padding.
        host_tokenizer, generator_tokenizer: the two tokenizers.
        spaces: white space that replaces what stands around each query, for queries inside a thought prompt.
        starts: whether the token that the generator's tokenizer puts before each text is put before the queries.

    Returns:
        LongTensor (batch, other length) of ids, padded on the left, and LongTensor (batch, other length) of their
        mask or `None` without padding; both on the CPU.

    Raises:
        ValueError: if a tokenizer is missing, or a query has special tokens only.
    """
    if host_tokenizer is None or generator_tokenizer is None:
        raise ValueError(
            "config.separate_generator_tokenizer=True, but model.host_tokenizer or model.generator_tokenizer is None: "
            "set both, or load the model by from_pretrained from a checkpoint that carries them."
        )
    rows = []
    first = first_ids(generator_tokenizer) if starts else []
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    for ids, mask in zip(input_ids.cpu(), real.cpu().bool(), strict=True):
        text = generator_text(ids[mask].tolist(), host_tokenizer, generator_tokenizer)
        if spaces is None:
            row = generator_tokenizer(text, add_special_tokens=False)["input_ids"]
            row = row if not row or row[:1] == first else [*first, *row]
        else:
            row = continued_ids(generator_tokenizer, text.strip().join(spaces))
        if not row:
            raise ValueError("input_ids has a row of special tokens only: every prompt needs another token.")
        rows.append(torch.tensor(row))
    pad = generator_tokenizer.pad_token_id or 0
    padded = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    if min(map(len, rows)) == padded.shape[1]:
        return padded, None
    return padded, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
