"""The best factors of a matrix, ready to be cut to any rank: worked out once, kept in the cache folder."""

import hashlib

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.files import cache_folder, replacing_file

_VERSION = "1"


def singular_factors(
    weight: Float[Tensor, "rows cols"], dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "cols rank"], Float[Tensor, "rank rows"]]:
    """(down, up) with (down[:, :r] up[:r])ᵀ the matrix of rank r nearest to the weight, for every r.

    down = V diag(s), up = Uᵀ, worked out in float64 and rounded once to `dtype`. As many ranks are given as
    take fewer numbers than the matrix, or one. A second call with the same weight reads a file.
    """
    path = cache_folder("singular_factors") / f"{_key(weight, dtype)}.safetensors"
    if path.exists():
        try:
            held = load_file(path)
            return held["down"], held["up"]
        except (SafetensorError, KeyError, OSError):
            path.unlink(missing_ok=True)  # cut short: work it out again
    rows, cols = weight.shape
    rank = max(rows * cols // (rows + cols), 1)
    u, s, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    down, up = (vh[:rank].T * s[:rank]).to(dtype).contiguous(), u[:, :rank].T.to(dtype).contiguous()
    with replacing_file(path) as temporary:
        save_file({"down": down.cpu(), "up": up.cpu()}, temporary)
    return down, up


def _key(weight: Tensor, dtype: torch.dtype) -> str:
    bits = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(bits.data)
    digest.update(f"{tuple(weight.shape)} {weight.dtype} {dtype} {_VERSION}".encode())
    return digest.hexdigest()[:32]
