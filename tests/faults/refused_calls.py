"""Calls that are wrong in one place, which the model's own files must refuse."""

import random
import traceback
from typing import Any

import torch
from random_draws import Outcome, draw_batch
from transformers import DynamicCache


def check_refusal(rng: random.Random, model: Any, outcome: Outcome) -> None:
    """Make a call that is wrong in one place; it must be refused by an error of the model's own files."""
    batch = draw_batch(rng, model.config.thought_prompt_ids is not None)
    size, width = batch.ids.shape
    hidden = model.config.hidden_size
    tokens = torch.randn(size, 2, hidden)
    inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask, "max_new_tokens": 2}
    wrong: dict[str, dict[str, Any]] = {
        "mask of another width": {"attention_mask": torch.ones(size, width + 1, dtype=torch.long)},
        "mask of another batch": {"attention_mask": torch.ones(size + 1, width, dtype=torch.long)},
        "no tokens": {"input_ids": batch.ids[:, :0], "attention_mask": None},
        "one dimension": {"input_ids": batch.ids[0], "attention_mask": None},
        "id too large": {"input_ids": batch.ids.clone().fill_(320)},
        "negative id": {"input_ids": batch.ids.clone().fill_(-1)},
        "only padding": {"attention_mask": torch.zeros(size, width, dtype=torch.long)},
        "negative k": {"num_implicit_tokens": -1},
        "k of another type": {"num_implicit_tokens": rng.choice([1.5, True, "3", torch.tensor([1, 2])])},
        "embeddings of another size": {"implicit_embeddings": torch.randn(size, 2, hidden + 1)},
        "embeddings of another batch": {"implicit_embeddings": torch.randn(size + 1, 2, hidden)},
        "embeddings of two dimensions": {"implicit_embeddings": torch.randn(2, hidden)},
        "embeddings of ids": {"implicit_embeddings": torch.ones(size, 2, hidden, dtype=torch.long)},
        "NaN": {"implicit_embeddings": tokens * float("nan")},
        "infinity": {"implicit_embeddings": tokens * float("inf")},
        "two counts": {"implicit_embeddings": tokens, "num_implicit_tokens": 3},
        "mask of other tokens": {"implicit_embeddings": tokens, "implicit_attention_mask": torch.ones(size, 3)},
        "mask alone": {"implicit_attention_mask": torch.ones(size, 2)},
        "both inputs": {"inputs": batch.ids},
        "positions": {"position_ids": torch.arange(width)[None]},
        "embedded input": {"inputs_embeds": torch.randn(size, width, hidden)},
        "token types": {"token_type_ids": torch.zeros_like(batch.ids)},
        "beyond the context": {"max_new_tokens": 4000},
        "paged cache": {"cache_implementation": "paged"},
        "chunked prompt": {"prefill_chunk_size": 2},
        "a cache of too many columns": {"past_key_values": None},
    }
    of_forward: dict[str, dict[str, Any]] = {
        "positions": wrong["positions"],
        "embedded input": {**wrong["embedded input"], "input_ids": None},
        "token types": wrong["token types"],
        "a cache": {"past_key_values": DynamicCache()},
        "labels and positions": {"labels": batch.ids, "logits_to_keep": torch.tensor([0, 1])},
        "a completion of all": {"completion_mask": torch.ones_like(batch.ids), "num_implicit_tokens": None},
        **{name: wrong[name] for name in wrong if "mask" in name or "k" in name.split() or "embeddings" in name},
    }
    if rng.random() < 0.3:
        name = rng.choice(sorted(of_forward))
        outcome.about = f"refusal by forward: {name}"
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "num_implicit_tokens": 2}
        refuse(model, {**inputs, **of_forward[name]}, outcome)
        return
    name = rng.choice(sorted(wrong))
    change = wrong[name]
    if name == "a cache of too many columns":
        with torch.no_grad():
            cache = DynamicCache(config=model.host.config.get_text_config())
            model.host(batch.ids, past_key_values=cache, use_cache=True)
            change = {"past_key_values": cache}
    outcome.about = f"refusal: {name}"
    refuse(model.generate, {**inputs, **change}, outcome)


def refuse(function: Any, inputs: dict[str, Any], outcome: Outcome) -> None:
    """Call a function, which is to refuse the input by an error of the model's own files."""
    try:
        function(**inputs)
    except ValueError as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if "_semcot" not in where:
            outcome.problem = f"refused by {where}: {error!r}"
        outcome.refused = str(error)
    except Exception as error:
        outcome.problem = f"{error!r}"
    else:
        outcome.problem = "was not refused"
