"""The training objectives as pure functions of tensors."""

from torch.nn import functional as F


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
