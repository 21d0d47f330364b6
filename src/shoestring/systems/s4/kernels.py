"""What the taps of S4 cost beside powers of its dense state matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from shoestring.layers.state_space.discretise import DenseSystem, naive_taps
from shoestring.layers.state_space.hippo import dplr_legs
from shoestring.layers.state_space.s4_kernel import S4Kernel
from shoestring.systems.s4.claims import KERNEL_MEMORY, KERNEL_TIME
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import time_interleaved

POWERS, DOUBLING = "one dense step a tap", "doubled powers"


def kernel_rows(features: int, d_state: int, taps: int, rounds: int, seed: int) -> list[Row]:
    """Time of the taps, and memory with their gradient, of one set of matrices made three ways."""
    generator = torch.Generator().manual_seed(seed)
    kernel = S4Kernel(features, dplr_legs(d_state), generator=generator)
    kernel.set_length(taps)
    system = kernel.discrete_system()
    dense = DenseSystem(*(x.detach().float().requires_grad_() for x in (system.a, system.b, system.c)))
    ways: dict[str, Callable[[], Tensor]] = {
        POWERS: in_one_thread(lambda: naive_taps(dense, taps)),
        DOUBLING: in_one_thread(lambda: doubled_taps(dense, taps)),
        "ours": lambda: kernel(taps),
    }
    torch.set_flush_denormal(True)  # states that fade out would slow powers down more than twentyfold
    try:
        with torch.no_grad():
            timed = time_interleaved(ways, rounds=rounds, warmup=1)
        bytes_ = {name: _peak(make, kernel, dense) for name, make in ways.items()}
    finally:
        torch.set_flush_denormal(False)
    double = f"beside {DOUBLING} of the dense matrix"
    return [
        KERNEL_TIME.row(
            baseline=timed.median(POWERS), method=timed.median("ours"), ratio=timed.ratio("ours", POWERS),
            spread=timed.interval("ours", POWERS), against=POWERS,
        ),
        KERNEL_MEMORY.row(baseline=bytes_[POWERS], method=bytes_["ours"], against=POWERS),
        Row(
            metric=f"{KERNEL_TIME.metric}, {double}", kind="time", unit="s", better="lower",
            baseline=timed.median(DOUBLING), method=timed.median("ours"), ratio=timed.ratio("ours", DOUBLING),
            spread=timed.interval("ours", DOUBLING), against=DOUBLING,
        ),
        Row(
            metric=f"{KERNEL_MEMORY.metric}, {double}", kind="memory", unit="B", better="lower",
            baseline=bytes_[DOUBLING], method=bytes_["ours"], against=DOUBLING,
        ),
    ]  # fmt: skip


def in_one_thread(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Made by the calling thread alone, for which denormals are flushed; more threads only slow it down."""

    def alone() -> Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return make()
        finally:
            torch.set_num_threads(threads)

    return alone


def doubled_taps(discrete: DenseSystem, length: int) -> Tensor:
    """C Ad^l Bd by doubling: the states of l < 2m are those of l < m, and Ad^m times them.

    Products of large matrices in place of many small ones: what dense powers can do at best.
    """
    states, power = discrete.b.unsqueeze(-1), discrete.a
    while states.shape[-1] < length:
        power = power @ power if states.shape[-1] > 1 else power
        states = torch.cat([states, power @ states], dim=-1)
    return (discrete.c.unsqueeze(-2) @ states[..., :length]).squeeze(-2)


def _peak(make: Callable[[], Tensor], *static: object) -> int:
    """Peak bytes of the taps and of the gradient of their sum of squares."""
    tensors = [(x.a, x.b, x.c) if isinstance(x, DenseSystem) else x for x in static]
    with LiveMemory(*tensors) as memory:
        make().square().sum().backward()
    return memory.peak_dynamic_bytes
