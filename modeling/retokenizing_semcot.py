"""Queries in the generator's own tokens, where host and generator do not share a tokenizer."""

import torch


def generator_text(ids, host_tokenizer, generator_tokenizer):
    """Text of one query as the generator's tokenizer is to read it.

    Special tokens of the host stay only where the generator's tokenizer has the same ones; the host's bos becomes the
    generator's bos. Others would reach the generator as mere spelling.

    Args:
        ids: list of the host's token ids, without padding.
        host_tokenizer, generator_tokenizer: the two tokenizers.
    """
    known = set(generator_tokenizer.all_special_tokens) | set(generator_tokenizer.get_added_vocab())
    special = {i: str(token) for i, token in host_tokenizer.added_tokens_decoder.items() if token.special}
    special.update(zip(host_tokenizer.all_special_ids, host_tokenizer.all_special_tokens, strict=True))
    parts, run = [], []
    for i in [*ids, None]:
        if i is not None and i not in special:
            run.append(i)
            continue
        if run:
            parts.append(host_tokenizer.decode(run, skip_special_tokens=False))
            run = []
        if i is not None and i == host_tokenizer.bos_token_id:
            parts.append(generator_tokenizer.bos_token or "")
        elif i is not None and special[i] in known:
            parts.append(special[i])
    return "".join(parts)


def retokenize(input_ids, attention_mask, host_tokenizer, generator_tokenizer):
    """Queries in the host's ids -> the same queries in the generator's ids, padded on the left.

    Args:
        input_ids: (batch, length), in the host's vocabulary.
        attention_mask: (batch, length), or `None` where nothing is padding.
        host_tokenizer, generator_tokenizer: the two tokenizers.

    Returns:
        LongTensor (batch, other length) of ids and LongTensor (batch, other length) of their mask or
        `None` where nothing is padding, on the CPU.

    Raises:
        ValueError: when a tokenizer is missing or nothing of a query is left.
    """
    if host_tokenizer is None or generator_tokenizer is None:
        raise ValueError(
            "config.separate_generator_tokenizer=True, but model.host_tokenizer or model.generator_tokenizer is None: "
            "set both, or load the model by from_pretrained from a checkpoint that carries them."
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    rows = []
    for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
        text = generator_text(
            [i for i, real in zip(ids, mask, strict=True) if real], host_tokenizer, generator_tokenizer
        )
        row = generator_tokenizer(text, add_special_tokens=False)["input_ids"]
        if not row:
            raise ValueError("input_ids has a row of special tokens only: every prompt needs another token.")
        rows.append(row)
    width = max(map(len, rows))
    if width == min(map(len, rows)):
        return torch.tensor(rows), None
    pad = generator_tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
