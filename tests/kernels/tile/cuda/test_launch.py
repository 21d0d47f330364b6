"""Kernels on a real GPU, where there is one; what is checked before anything is launched, everywhere."""

import numpy as np
import pytest
import torch

from shoestring.errors import ProgramError
from shoestring.kernels.tile.cuda import render
from shoestring.kernels.tile.cuda.launch import check_arguments, load_kernel
from shoestring.kernels.tile.group_quantise import dequantise_groups, quantise_groups
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.matmul import MatmulConfig, pipelined_matmul
from shoestring.kernels.tile.target import CUDA
from shoestring.kernels.tile.types import data_type


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("weights", ["i2", "i3", "i4", "i5", "i6", "i7", "i8", "f6e3m2", "f4e2m1", "e4m3fn"])
@pytest.mark.parametrize(("m", "split"), [(1, 8), (16, 1), (33, 3)])
def test_the_matmul_template_on_a_gpu(weights, m, split):
    n, k, kind = 512, 1024, data_type("f16")
    tiling = {"warps": (1, 4), "repeats": (1, 1, 2), "split_k": split, "aligned": 64}
    config = MatmulConfig(data_type(weights), kind, CUDA, 64, **tiling)
    rng = np.random.default_rng(0)
    codes, scales = quantise_groups(rng.standard_normal((k, n)).astype(np.float32), config.weights, 64, kind)
    a = torch.from_numpy(rng.standard_normal((m, k)).astype(np.float32)).half()
    c = torch.full((m, n), torch.nan, dtype=torch.float16, device="cuda")
    load_kernel(render(prepare(pipelined_matmul(config), CUDA)))(
        m=m, n=n, k=k, a=a.cuda(), packed=torch.from_numpy(config.pack_weights(codes)).cuda(),
        scales=torch.from_numpy(scales.astype(np.uint16).view(np.float16)).cuda(), c=c,
        semaphores=torch.zeros(config.semaphores(m, n), dtype=torch.int32, device="cuda"),
    )  # fmt: skip
    expected = a.float().numpy() @ dequantise_groups(codes, scales, config.weights, 64, kind)
    assert np.abs(c.cpu().float().numpy() - expected).max() <= 5e-3 * np.abs(expected).max()


def test_arguments_are_checked_before_a_launch():
    config = MatmulConfig(data_type("i4"), data_type("f16"), CUDA, 64, aligned=8)
    kernel = render(prepare(pipelined_matmul(config), CUDA))
    given = {name: torch.zeros(4) for name in ("a", "packed", "scales", "c", "semaphores")}
    with pytest.raises(ProgramError, match=r"takes \['m', 'n', 'k', 'a', .*not \['m'\]"):
        check_arguments(kernel, {"m": 1})
    with pytest.raises(ProgramError, match="k=12 must be a 32-bit int divisible by 8"):
        check_arguments(kernel, {"m": 1, "n": 8, "k": 12, **given})
    with pytest.raises(ProgramError, match="m=2147483648 must be a 32-bit int"):
        check_arguments(kernel, {"m": 2**31, "n": 8, "k": 8, **given})
    with pytest.raises(ProgramError, match="a must be a contiguous tensor on the GPU; use"):
        check_arguments(kernel, {"m": 1, "n": 8, "k": 8, **given})
