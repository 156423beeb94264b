"""Escalation in `Answerer`: its rule, the signals of implicit answers, and what each answer says of its route."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ..modeling.escalation_semcot import SIGNALS, Escalation
from ..modeling.few_shot_semcot import without_few_shot
from ..modeling.offloading_semcot import execution_device
from ..modeling.thoughts_semcot import Thoughts
from .settings import AnswerSettings, check_escalates
from .thoughts import thought_fields

# (input ids, attention mask, thoughts) of a batch -> (batch,).
SignalFunction = Callable[[torch.Tensor, torch.Tensor, Thoughts], torch.Tensor]


def escalation_argument(value: str | float | bool | None, name: str = "escalate") -> float | bool | None:
    """Return the value of a flag as `generate`'s `escalation`: "own" is the checkpoint's rule, else a threshold.

    >>> escalation_argument("own"), escalation_argument("0.9"), escalation_argument(None)
    (True, 0.9, None)
    """
    if value is None or value is True:
        return value
    if value == "own":
        return True
    try:
        threshold = math.nan if value is False else float(value)
    except (TypeError, ValueError):
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise ValueError(f"{name}={value!r}: must be a threshold from 0 to 1, or 'own' for the checkpoint's rule.")
    return threshold


def rule_of(model: PreTrainedModel, settings: AnswerSettings, method: str) -> Escalation | None:
    """Return the rule by which a model answers, which escalates nothing where only signals are asked for.

    Raises:
        ValueError: for a model without escalation or without one of the signals, or a rule that is out of range.
    """
    if method not in ("semcot", "escalated") or (method == "semcot" and not settings.signals):
        return None
    check_escalates(model, method)
    wanted = list(dict.fromkeys(settings.signals))
    unknown = [name for name in wanted if name not in SIGNALS]
    if unknown:
        raise ValueError(f"signals has {', '.join(map(repr, unknown))}: choose among {', '.join(SIGNALS)}.")
    if method == "semcot":
        return Escalation(0.0, signals=wanted)
    asked: Any = True if settings.escalation is None else settings.escalation
    own = model.config.escalation
    if own is None and isinstance(asked, (int, float)) and not isinstance(asked, bool):
        # Reasoning is as long as that of "cot".
        return Escalation(asked, max_reasoning_tokens=settings.reasoning_limit)
    rule, limit = Escalation.of(asked, own), settings.max_reasoning_tokens
    return rule if limit is None else replace(rule, max_reasoning_tokens=limit)


def route_fields(output: Any, limit: int) -> list[dict[str, Any]]:
    """Return what each `Answer` says of its route: confidence, route, signals and number of implicit tokens.

    Args:
        output: a `SemCoTEscalatedOutput`.
        limit: k.
    """
    signals = {name: values.tolist() for name, values in output.signals.items()}
    found = []
    for row, (confidence, route) in enumerate(zip(output.confidence.tolist(), output.route, strict=True)):
        # What its route left out is no number.
        own = {name: values[row] for name, values in signals.items() if values[row] == values[row]}
        tokens = limit if "answer_probability" in own else 0
        found.append({"confidence": confidence, "route": route, "signals": own, "implicit_tokens": tokens})
    return found


def alignment_similarity(model: Any, encoder: Any) -> SignalFunction:
    """Return the function of the signal "similarity": the cosine of f(implicit tokens) and f(question).

    Args:
        model: a SemCoT model.
        encoder: the alignment encoder f that was trained for its host: a SentenceTransformer, or its folder or id.

    Raises:
        ValueError: for an encoder of another width than the host.
    """
    if isinstance(encoder, str):
        # Slow to import, and of no use without an encoder.
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(encoder)
    encoder = encoder.to(execution_device(model.get_input_embeddings())).eval()
    width, own = (part.config.get_text_config().hidden_size for part in (encoder[0].model, model))
    if width != own:
        raise ValueError(
            f"alignment_encoder reads states of size {width}, and the host has hidden_size={own}: pass the encoder "
            "that was trained for this host."
        )

    def similarity(ids: torch.Tensor, mask: torch.Tensor, thoughts: Thoughts) -> torch.Tensor:
        tokens, used = thoughts.embeddings, thoughts.mask
        if tokens.shape[1] == 0:
            return torch.zeros(len(tokens), device=tokens.device)
        used = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device) if used is None else used
        queries, real = model._queries(ids, mask)
        queries, real = without_few_shot(queries, real, getattr(model.config, "few_shot_ids", None))
        real = torch.ones_like(queries) if real is None else real
        words, dtype = model.get_input_embeddings(), next(encoder.parameters()).dtype
        with torch.no_grad():
            thought, question = (
                encoder({"inputs_embeds": embeds.to(dtype), "attention_mask": shown})["sentence_embedding"]
                for embeds, shown in ((tokens, used), (words(queries), real))
            )
        found = cosine_similarity(thought.float(), question.float(), dim=-1)
        # A thought of no word is similar to nothing.
        return torch.where(used.any(dim=1).to(found.device), found, torch.zeros_like(found))

    return similarity


def longest_answer(rule: Escalation | None, max_new_tokens: int) -> int:
    """Return the most new tokens of an answer by any route.

    Args:
        rule: that of all answers, or `None`.
        max_new_tokens: of answers without explicit reasoning.

    >>> longest_answer(Escalation(0.5, max_reasoning_tokens=90), 8), longest_answer(None, 8)
    (90, 8)
    >>> longest_answer(Escalation(0.0, max_reasoning_tokens=90), 8)
    8
    """
    if rule is None:
        return max_new_tokens
    reasons = rule.threshold > 0 or rule.router is not None
    return max(max_new_tokens, rule.max_reasoning_tokens) if reasons else max_new_tokens


def answers_by_rule(
    model: Any, rule: Escalation, limit: int, options: dict[str, Any]
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Run the model's own `generate` by a rule; return the new ids, and what each `Answer` says of its making.

    Args:
        limit: k.
        options: further arguments of `generate`, with the batch of prompts and a `generation_config`.
    """
    config = copy.deepcopy(options["generation_config"])
    config.return_dict_in_generate = True
    output = model.generate(**{**options, "generation_config": config, "escalation": rule})
    fields = route_fields(output, limit)
    thoughts = None if output.thoughts is None else Thoughts(**output.thoughts)
    made = options.get("implicit_attention_mask") if thoughts is None else thoughts.mask
    told = iter(thought_fields(thoughts, made, sum(row["implicit_tokens"] > 0 for row in fields), limit))
    fields = [{**row, **next(told, {})} if row["implicit_tokens"] else row for row in fields]
    if made is None and rule.router is None:
        # All questions have as many.
        for row in fields:
            del row["implicit_tokens"]
    return output.sequences[:, options["input_ids"].shape[1] :].tolist(), fields
