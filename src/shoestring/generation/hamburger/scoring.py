"""Log-probabilities of a given response under a HAMburger, which depend on how it is cut into groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.hamburger.compiled_group_runner import group_runner
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_options import check_groups, stops


@dataclass(frozen=True)
class GroupScore:
    """log_p: nats of every response token. groups: sizes of the groups it was read in."""

    log_p: Float[Tensor, " tokens"]
    groups: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return float((-self.log_p.mean()).exp())


@torch.inference_mode()
def score_response(
    model: Hamburger,
    prompt: Sequence[int],
    response: Sequence[int],
    segment: str | Sequence[int] | None = None,
) -> GroupScore:
    """Score a response. segment: "model" lets the stop head cut it, "singles" reads one token a slot, or
    sizes.

    Raises: ValueError without a segmentation, for sizes that do not fit, or an empty prompt or response.
    """
    if segment is None or (isinstance(segment, str) and segment not in ("model", "singles")):
        raise ValueError(
            f"segment={segment!r}: a HAMburger's log-probabilities depend on the groups; give "
            'segment="model", segment="singles", or the sizes.'
        )
    if not prompt or not response:
        raise ValueError(
            f"{len(prompt)} tokens of prompt and {len(response)} of response; both need one or more."
        )
    sizes = [1] * len(response) if segment == "singles" else None
    if not isinstance(segment, str):
        sizes = list(segment)
        check_groups(sizes, len(response), model.options.max_steps)
    runner = group_runner(model, capacity=len(prompt) + len(response))
    logits = runner.feed(torch.tensor([list(prompt)], device=runner.device))
    runner.prompt_is_read()
    found: list[Tensor] = []
    groups: list[int] = []
    at = 0
    while at < len(response):
        most = sizes[len(groups)] if sizes else min(model.options.max_steps, len(response) - at)
        count = 0
        while True:
            token = response[at + count]
            found.append(logits[0].float().log_softmax(-1)[token])
            count += 1
            if count == most or (sizes is None and stops(runner.stop_logit, model.confidence)):
                break
            logits = runner.micro(token)
        groups.append(count)
        at += count
        if at < len(response):
            logits = runner.feed_group(response[at - count : at])
    return GroupScore(torch.stack(found), tuple(groups))
