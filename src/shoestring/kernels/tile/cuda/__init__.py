"""The CUDA C back end: tile programs as kernels for GPUs with tensor cores and asynchronous copies."""

from shoestring.kernels.tile.cuda.build import compile_cuda, nvcc
from shoestring.kernels.tile.cuda.renderer import CudaKernel, render

__all__ = ["CudaKernel", "compile_cuda", "nvcc", "render"]
