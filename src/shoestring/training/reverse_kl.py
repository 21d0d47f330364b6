"""Divergences between a student's predictions q and its teacher's p, a chunk of tokens at a time.

Reverse: KL(q‖p) = Σ_v q log(q/p), with gradient q (log(q/p) − KL) in the student's logits; it keeps the
student off what the teacher rules out. Forward: KL(p‖q) = Σ_v p log(p/q), with gradient q − p. Both at
temperature 1, a mean over tokens. Neither direction keeps a table of probabilities for the backward pass.

Source: Apriel-H1 (ServiceNow, 2025), reverse-KL loss of Fast-LLM; Gu et al. 2024, "MiniLLM", section 2.1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from shoestring.training.distillation import check_pair

CHUNK = 1024
"""Tokens whose probabilities exist at once."""

Logits = Float[Tensor, "*batch vocabulary"]
Hidden = Float[Tensor, "*batch hidden"]
Divergence = Callable[..., Tensor]


def reverse_kl(
    student: Logits, teacher: Float[Tensor, "..."], present: Bool[Tensor, "*batch"] | None = None,
    *, chunk: int = CHUNK,
) -> Float[Tensor, ""]:  # fmt: skip
    """Mean over tokens of KL(student‖teacher), in at least float32; no gradient flows to the teacher.

    present: the tokens that count, by default all. Raises: ValueError for logits of different shapes (another
    vocabulary, or other positions), no token at all, or chunk < 1.
    """
    return _mean(_Reverse, student, teacher, present, chunk)


def forward_kl(
    student: Logits, teacher: Float[Tensor, "..."], present: Bool[Tensor, "*batch"] | None = None,
    *, chunk: int = CHUNK,
) -> Float[Tensor, ""]:  # fmt: skip
    """Mean over tokens of KL(teacher‖student); else as `reverse_kl`."""
    return _mean(_Forward, student, teacher, present, chunk)


def naive_reverse_kl(student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"]) -> Float[Tensor, ""]:
    """The definition."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    return (q * (q / p).log()).sum(-1).mean()


def naive_forward_kl(student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"]) -> Float[Tensor, ""]:
    """The definition."""
    return naive_reverse_kl(teacher, student)


def head_divergence(
    divergence: Divergence,
    student: tuple[Hidden, nn.Module],
    teacher: tuple[Float[Tensor, "..."], nn.Module],
    *,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """The divergence of two models given as (normalised last hidden states, head), mean over tokens.

    Logits of `chunk` tokens exist at once, here and in the backward pass, which computes them again: what is
    kept is the hidden states. Raises: as `divergence`; ValueError for other numbers of tokens.
    """
    (x, head), (y, other) = student, teacher
    x, y = x.flatten(0, -2), y.detach().flatten(0, -2)
    if len(x) != len(y):
        raise ValueError(f"the student has {len(x)} tokens, the teacher {len(y)}; give both the same")

    def part(mine: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            target = other(theirs)
        return divergence(head(mine), target, chunk=chunk) * len(mine)

    total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
    for mine, theirs in zip(x.split(chunk), y.split(chunk), strict=True):
        total = total + checkpoint(part, mine, theirs, use_reentrant=False)
    return total / len(x)


def _mean(
    kind: type["_Reverse"] | type["_Forward"],
    student: Tensor,
    teacher: Tensor,
    present: Tensor | None,
    chunk: int,
) -> Tensor:
    check_pair(student, teacher)
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    q, p = student.flatten(0, -2), teacher.detach().flatten(0, -2)
    if present is not None:
        kept = present.flatten().nonzero()[:, 0]
        q, p = q[kept], p[kept]
    if len(q) == 0:
        raise ValueError("there is no token to compare; give at least one that is present")
    return kind.apply(q, p, chunk)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.chunk = chunk  # type: ignore[attr-defined]
        parts = zip(student.split(chunk), teacher.split(chunk), strict=True)
        return torch.stack([_reverse(s, t)[2].sum() for s, t in parts]).sum() / len(student)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors  # type: ignore[attr-defined]
        out = torch.empty_like(student)
        for s, t, part in _chunks(student, teacher, out, ctx.chunk):  # type: ignore[attr-defined]
            q, ratio, kl = _reverse(s, t)
            part.copy_(q * (ratio - kl[:, None]) * (grad / len(student)))
        return out, None, None


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.chunk = chunk  # type: ignore[attr-defined]
        parts = zip(student.split(chunk), teacher.split(chunk), strict=True)
        return torch.stack([_reverse(t, s)[2].sum() for s, t in parts]).sum() / len(student)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors  # type: ignore[attr-defined]
        out = torch.empty_like(student)
        for s, t, part in _chunks(student, teacher, out, ctx.chunk):  # type: ignore[attr-defined]
            part.copy_((_exact(s).softmax(-1) - _exact(t).softmax(-1)) * (grad / len(student)))
        return out, None, None


def _chunks(student: Tensor, teacher: Tensor, out: Tensor, chunk: int) -> "zip[tuple[Tensor, ...]]":
    return zip(student.split(chunk), teacher.split(chunk), out.split(chunk), strict=True)


def _reverse(of: Tensor, against: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, log(q/p) and KL(q‖p) of each row; what has no probability adds nothing."""
    log_q, log_p = _exact(of).log_softmax(-1), _exact(against).log_softmax(-1)
    q = log_q.exp()
    ratio = (log_q - log_p).masked_fill(q == 0, 0.0)
    return q, ratio, (q * ratio).sum(-1)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
