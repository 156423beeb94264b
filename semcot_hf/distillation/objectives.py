"""The objectives of stage 2: losses as pure functions of tensors, their inputs, and their logged means."""

from collections import defaultdict
from os import PathLike
from typing import Any, Literal

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..alignment.encoder import alignment_layers, backbone_in, encode_hidden_states, load_alignment_encoder
from .config import SemCoTDistillationConfig


def semantic_alignment_loss(implicit: torch.Tensor, reasoning: torch.Tensor) -> torch.Tensor:
    """Compute L_reason = mean_i (1 - cos(f(Z_i), f(R_i))) (SemCoT, section 3.2, stage 2).

    Args:
        implicit: (batch, dim), f of the implicit tokens.
        reasoning: (batch, dim), f of the true reasoning.

    Returns:
        Scalar between 0 and 2.

    >>> semantic_alignment_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
    0.5
    """
    return (1 - F.cosine_similarity(implicit.float(), reasoning.float(), dim=-1)).mean()


def distribution_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Compute T^2 * mean over labelled tokens of KL(teacher || student), with the host's explicit CoT as teacher.

    Position i of the logits predicts token i + 1 of `labels`.

    Args:
        student_logits, teacher_logits: (batch, length, vocabulary), aligned at the answer's tokens.
        labels: (batch, length), -100 where a token has no loss.
        temperature: T, which softens both distributions.

    Returns:
        Scalar, 0 for equal distributions.

    >>> student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[0.2, 0.8], [0.5, 0.5]]]).log()
    >>> labels = torch.tensor([[-100, 1]])
    >>> round(distribution_loss(student, teacher, labels).item(), 4)  # 0.2 ln(0.2 / 0.5) + 0.8 ln(0.8 / 0.5)
    0.1927
    >>> distribution_loss(teacher, teacher, labels).item()
    0.0
    """
    wanted = labels[:, 1:] != -100
    student = F.log_softmax(student_logits[:, :-1][wanted].float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits[:, :-1][wanted].float() / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2


def hidden_state_loss(student_states: torch.Tensor, teacher_states: torch.Tensor) -> torch.Tensor:
    """Compute L = mean over layers of SmoothL1(h_student, stopgrad h_teacher) / std(h_teacher) (CODI, 2502.21074).

    Args:
        student_states, teacher_states: (layers, batch, hidden), the states at the token before the answer.

    Returns:
        Scalar.

    >>> states = torch.tensor([[[0.0, 2.0]]])
    >>> hidden_state_loss(states, states).item()
    0.0
    >>> round(hidden_state_loss(states + 2.0, states).item(), 4)  # SmoothL1(2) = 1.5, std = 1.4142
    1.0607
    """
    teacher = teacher_states.detach().float()
    distance = F.smooth_l1_loss(student_states.float(), teacher, reduction="none").flatten(1).mean(dim=1)
    return (distance / teacher.flatten(1).std(dim=1).clamp(min=1e-6)).mean()


def frozen_encoder(
    encoder: SentenceTransformer | str | PathLike | None, args: SemCoTDistillationConfig, hidden_size: int
) -> SentenceTransformer | None:
    """Return the alignment encoder, loaded and frozen; `None` when `args` need none.

    Args:
        encoder: a SentenceTransformer, its id or its path.
        hidden_size: the host's; the encoder must have been cut out of this host.

    Raises:
        ValueError: for an encoder that is missing, unused, or of another width than the host.
    """
    if args.alpha == 0:
        if encoder is not None:
            raise ValueError(
                f"alignment_encoder is given, and alpha={args.alpha} has no use for it: raise alpha (0.25 by "
                "default), or leave alignment_encoder out."
            )
        return None
    if args.alignment_view == "mean_pooled":
        if encoder is not None:
            raise ValueError(
                "alignment_view='mean_pooled' compares without an encoder: leave alignment_encoder out, or choose "
                "alignment_view='embedding' or 'hidden_state'."
            )
        return None
    if encoder is None:
        raise ValueError(
            f"alpha={args.alpha} needs alignment_encoder, which stage 1 trains: pass it, set alpha=0 for no "
            "alignment, or alignment_view='mean_pooled' for an alignment without an encoder."
        )
    encoder = load_alignment_encoder(encoder)
    width = backbone_in(encoder).config.get_text_config().hidden_size
    if width != hidden_size:
        raise ValueError(
            f"alignment_encoder reads states of size {width}, and the host has hidden_size={hidden_size}: pass the "
            "encoder that stage 1 trained for this host."
        )
    return encoder.requires_grad_(False).eval()


def embed_tokens(outputs: Any, encoder: SentenceTransformer | None, view: str) -> torch.Tensor:
    """Compute f of the implicit tokens.

    Args:
        outputs: the `SemCoTCausalLMOutput`, with the host's hidden states for the view "hidden_state".
        encoder: f; without it, the result is the mean of the tokens.
        view: `SemCoTDistillationConfig.alignment_view`.

    Returns:
        (batch, dim), differentiable in the tokens.
    """
    tokens = outputs.implicit_embeddings
    mask = outputs.implicit_attention_mask
    if encoder is None and mask is None:
        return tokens.float().mean(dim=1)
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if encoder is None:
        # Unused slots hold zeros.
        return tokens.float().sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    dtype = next(encoder.parameters()).dtype
    if view == "embedding":
        features = {"inputs_embeds": tokens.to(dtype), "attention_mask": mask}
        return encoder(features)["sentence_embedding"]
    layer, _ = alignment_layers(encoder)
    columns = outputs.implicit_columns[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
    states = outputs.hidden_states[layer]
    states = states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))
    return encode_hidden_states(encoder, states.to(dtype), mask)


def teacher_losses(
    host: PreTrainedModel,
    teacher_ids: torch.Tensor,
    teacher_mask: torch.Tensor,
    outputs: Any,
    labels: torch.Tensor,
    width: int,
    args: SemCoTDistillationConfig,
) -> dict[str, tuple[float, torch.Tensor]]:
    """Return the (weight, loss) pairs of the objectives that compare the model with the host's explicit reasoning.

    Args:
        host: frozen; it reads question, explicit reasoning and answer.
        teacher_ids, teacher_mask: (batch, teacher length), padded on the left before the question.
        outputs: the `SemCoTCausalLMOutput` for the same answers.
        labels: (batch, length) of the SemCoT model's input.
        width: answer columns.
    """
    with torch.no_grad():
        teacher = host(
            input_ids=teacher_ids,
            attention_mask=teacher_mask,
            position_ids=(teacher_mask.cumsum(dim=-1) - 1).clamp(min=0),
            logits_to_keep=width + 1,
            output_hidden_states=args.hidden_weight > 0,
            use_cache=False,
        )
    before = -width - 1
    losses = {}
    if args.kl_weight > 0:
        loss = distribution_loss(outputs.logits[:, before:], teacher.logits, labels[:, before:])
        losses["kl_loss"] = (args.kl_weight, loss)
    if args.hidden_weight > 0:
        student_states, teacher_states = (
            torch.stack([layer[:, before] for layer in states[1:]])
            for states in (outputs.hidden_states, teacher.hidden_states)
        )
        losses["hidden_loss"] = (args.hidden_weight, hidden_state_loss(student_states, teacher_states))
    return losses


class LossParts:
    """Means of named loss parts over steps and processes.

    Args:
        accelerator: of the trainer.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._kept: dict[str, defaultdict[str, list[torch.Tensor]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }

    def add(
        self,
        name: str,
        value: torch.Tensor,
        eval_batch_size: int | None = None,
        share: torch.Tensor | float = 1.0,
    ) -> None:
        """Keep a scalar; in evaluation once for each row of each process, as `Trainer` does with the loss.

        Args:
            eval_batch_size: rows of a batch in evaluation; `None` in training.
            share: part of the batch's rows that it is the mean of, its weight in the mean over batches.
        """
        pair = torch.stack([value.float() * share, torch.ones_like(value, dtype=torch.float) * share])[None]
        if eval_batch_size is None:
            self._kept["train"][name].append(pair)
        else:
            self._kept["eval"][name].append(self._accelerator.gather_for_metrics(pair.repeat(eval_batch_size, 1)))

    def means(self, mode: Literal["train", "eval"]) -> dict[str, float]:
        """Return the mean of each part since the last call, over all processes; parts that no row has are left out."""
        means = {}
        for name, values in self._kept[mode].items():
            total, share = self._accelerator.gather(torch.cat(values).mean(dim=0)[None]).sum(dim=0).tolist()
            if share > 0:
                means[name] = round(total / share, 6)
        self.clear(mode)
        return means

    def clear(self, *modes: Literal["train", "eval"]) -> None:
        """Drop the values of these modes."""
        for mode in modes:
            self._kept[mode].clear()
