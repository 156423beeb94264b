"""The training objectives as pure functions of tensors."""

from collections import defaultdict

import torch
from torch.nn import functional as F

from ..alignment.encoder import alignment_layers, encode_hidden_states, load_alignment_encoder


def semantic_alignment_loss(implicit, reasoning):
    """L_reason = mean_i (1 - cos(f(Z_i), f(R_i))) (SemCoT, section 3.2, stage 2).

    Args:
        implicit: (batch, dim), f of the implicit tokens.
        reasoning: (batch, dim), f of the true reasoning.

    Returns:
        Scalar between 0 and 2.

    >>> import torch
    >>> semantic_alignment_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
    0.5
    """
    return (1 - F.cosine_similarity(implicit.float(), reasoning.float(), dim=-1)).mean()


def distribution_loss(student_logits, teacher_logits, labels, temperature=1.0):
    """T^2 * mean over labelled tokens of KL(teacher || student): the host's own explicit CoT as teacher.

    Position i of the logits predicts token i + 1 of `labels`.

    Args:
        student_logits, teacher_logits: (batch, length, vocabulary), aligned at the answer's tokens.
        labels: (batch, length), -100 where no loss is wanted.
        temperature: softens both distributions.

    Returns:
        Scalar, 0 where both agree.

    >>> import torch
    >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    >>> distribution_loss(logits, logits, torch.tensor([[-100, 1]])).item()
    0.0
    """
    wanted = labels[:, 1:] != -100
    student = F.log_softmax(student_logits[:, :-1][wanted].float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits[:, :-1][wanted].float() / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2


def hidden_state_loss(student_states, teacher_states):
    """CODI's L = mean over layers of SmoothL1(h_student, stopgrad h_teacher) / std(h_teacher), at one token a row.

    Args:
        student_states, teacher_states: (layers, batch, hidden), the states at the token before the answer.

    Returns:
        Scalar.

    >>> import torch
    >>> states = torch.tensor([[[0.0, 2.0]]])
    >>> hidden_state_loss(states, states).item()
    0.0
    >>> round(hidden_state_loss(states + 2.0, states).item(), 4)  # SmoothL1(2) = 1.5, std = 1.4142
    1.0607
    """
    teacher = teacher_states.detach().float()
    distance = F.smooth_l1_loss(student_states.float(), teacher, reduction="none").flatten(1).mean(dim=1)
    return (distance / teacher.flatten(1).std(dim=1).clamp(min=1e-6)).mean()


def frozen_encoder(encoder, args, hidden_size):
    """The alignment encoder (SentenceTransformer, id or path) that `args` ask for, frozen; `None` where they do not.

    Args:
        hidden_size: the host's, of which the encoder was cut out.

    Raises:
        ValueError: where one is needed and not given, given and not needed, or of another host's width.
    """
    if args.alpha == 0:
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
            f"alpha={args.alpha} needs alignment_encoder, which stage 1 makes: pass it, set alpha=0 for no alignment, "
            "or alignment_view='mean_pooled' for one without an encoder."
        )
    encoder = load_alignment_encoder(encoder)
    width = encoder[0].model.config.get_text_config().hidden_size
    if width != hidden_size:
        raise ValueError(
            f"alignment_encoder reads states of size {width}, and the host has hidden_size={hidden_size}: pass the "
            "encoder that stage 1 has cut out of this host."
        )
    return encoder.requires_grad_(False).eval()


def embed_tokens(outputs, encoder, view):
    """f of the implicit tokens, through the encoder's input or at the layer its text states are taken from.

    Args:
        outputs: `SemCoTCausalLMOutput`, with the host's hidden states for the view "hidden_state".
        encoder: f; `None` takes the tokens' mean.
        view: `SemCoTDistillationConfig.alignment_view`.

    Returns:
        (batch, dim), differentiable in the tokens.
    """
    tokens = outputs.implicit_embeddings
    if encoder is None:
        return tokens.float().mean(dim=1)
    mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    dtype = next(encoder.parameters()).dtype
    if view == "embedding":
        features = {"inputs_embeds": tokens.to(dtype), "attention_mask": mask}
        return encoder(features)["sentence_embedding"]
    layer, _ = alignment_layers(encoder)
    columns = outputs.implicit_columns[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
    states = outputs.hidden_states[layer]
    states = states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))
    return encode_hidden_states(encoder, states.to(dtype), mask)


@torch.no_grad()
def explicit_reasoning(host, input_ids, attention_mask, width, with_states):
    """The frozen host behind its explicit chain of thought, at the same answer tokens.

    Args:
        input_ids, attention_mask: (batch, length), question, reasoning and answer, padded on the left.
        width: answer tokens; the logits are those from one position before them on.
        with_states: whether the output holds hidden states.
    """
    positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
    return host(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        logits_to_keep=width + 1,
        output_hidden_states=with_states,
        use_cache=False,
    )


class LossParts:
    """Means of named values over steps and processes.

    Args:
        accelerator: of the trainer.
    """

    def __init__(self, accelerator):
        self._accelerator = accelerator
        self._kept = {"train": defaultdict(list), "eval": defaultdict(list)}

    def add(self, name, value, eval_batch_size=None):
        """Keep a value (scalar); in evaluation once for each row of each process, as Trainer keeps the loss.

        Args:
            eval_batch_size: rows of a batch, in evaluation; `None` in training.
        """
        if eval_batch_size is None:
            self._kept["train"][name].append(value)
        else:
            self._kept["eval"][name].append(self._accelerator.gather_for_metrics(value.repeat(eval_batch_size)))

    def means(self, mode):
        """Mean of each part of "train" or "eval" since the last call, over all processes."""
        means = {}
        for name, values in self._kept[mode].items():
            mean = torch.cat(values).mean() if mode == "eval" else torch.stack(values).mean()
            means[name] = round(self._accelerator.gather(mean).mean().item(), 6)
        self.clear(mode)
        return means

    def clear(self, *modes):
        """Forget what was kept."""
        for mode in modes:
            self._kept[mode].clear()
