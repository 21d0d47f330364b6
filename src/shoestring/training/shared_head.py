"""Divergence of two models that share a frozen head, from what goes into it: no logits are kept.

KL(p‖q) = Σ_v p_v (log p_v − log q_v) has the gradient q − p in the student's logits, and (q − p) W in what
goes into the head W. Both are known as soon as the logits are, so that the gradient is computed beside the
loss, a few tokens at a time: nothing is computed again in the backward pass, and what lies in memory between
the two is the size of the hidden states.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK = 256
"""Tokens whose logits exist at once, in the type of the head."""
ROWS = 16
"""Tokens whose probabilities exist at once: few enough to stay in a processor's cache."""


def shared_head_kl(
    student: Float[Tensor, "*batch hidden"],
    teacher: Float[Tensor, "..."],
    head: Float[Tensor, "vocab hidden"],
) -> Float[Tensor, ""]:
    """Mean over tokens of KL(teacher‖student), both through `head`; the gradient is the student's only.

    Products are computed in the type of the head, probabilities in at least float32.
    Raises: ValueError for hidden states of different shapes, or no token.
    """
    if student.shape != teacher.shape or student.shape[:-1].numel() == 0:
        raise ValueError(
            f"the student has states {tuple(student.shape)}, the teacher {tuple(teacher.shape)}: give both "
            "the same tokens, one or more."
        )
    return _SharedHead.apply(student.flatten(0, -2), teacher.detach().flatten(0, -2), head.detach())


def naive_shared_head_kl(
    student: Float[Tensor, "n hidden"],
    teacher: Float[Tensor, "n hidden"],
    head: Float[Tensor, "vocab hidden"],
) -> Float[Tensor, ""]:
    """The definition."""
    p, q = (teacher @ head.T).softmax(-1), (student @ head.T).softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


class _SharedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
        gradient = torch.empty_like(student)
        total = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
        with torch.autocast(student.device.type, enabled=False):
            for at in range(0, len(student), CHUNK):
                part = slice(at, at + CHUNK)
                said, meant = (x[part].to(head.dtype) @ head.T for x in (student, teacher))
                for q, p in zip(said.split(ROWS), meant.split(ROWS), strict=True):
                    total += _divergence_into_difference(q, p)
                gradient[part] = said @ head
        ctx.save_for_backward(gradient / len(student))
        return total / len(student)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * grad.to(gradient.dtype), None, None


def _divergence_into_difference(said: Tensor, meant: Tensor) -> Tensor:
    """Sum over rows of KL(meant‖said); `said` becomes q − p."""
    exact = torch.promote_types(said.dtype, torch.float32)
    z, t = said.to(exact), meant.to(exact)
    z -= z.logsumexp(-1, keepdim=True)
    t -= t.logsumexp(-1, keepdim=True)
    p = t.exp()
    divergence = torch.linalg.vecdot(p, t.sub_(z)).sum()
    said.copy_(z.exp_().sub_(p))
    return divergence
