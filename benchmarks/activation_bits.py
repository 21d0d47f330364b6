"""What inputs in int8, and a cache in float16, cost: perplexity and divergence of a teacher-forced decode.

    python benchmarks/activation_bits.py TEXT_FILE [MODEL] [--windows 8] [--window 256]

Every window is fed from its first token on, in steps of eight, by the compiled step: once with inputs in
float32 and a float32 cache, once with inputs in int8 and a float16 cache, which is the default. The
divergence is that of the second's next-token distribution from the first's, in nats, averaged over tokens.
"""

import argparse
import math

import torch
from torch.nn import functional as F

from shoestring.compression.load_model import load_model
from shoestring.data.text import read_text
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.kernels.decode_step import MOST_TOKENS
from shoestring.kernels.grouped_linear import Activations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window", type=int, default=256)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, packed=True)
    ids = torch.tensor(tokenizer.encode(read_text(options.text)))
    windows = ids[: options.windows * options.window].view(options.windows, options.window)
    losses: dict[Activations, list[torch.Tensor]] = {choice: [] for choice in Activations}
    divergences = []
    for window in windows:
        by = {choice: log_probabilities(model, window, choice) for choice in Activations}
        for choice, logs in by.items():
            losses[choice].append(F.nll_loss(logs[:-1], window[1:], reduction="none"))
        exact, rounded = by[Activations.FLOAT32], by[Activations.INT8]
        divergences.append((exact.exp() * (exact - rounded)).sum(-1))
    for choice, parts in losses.items():
        print(f"{choice.name:8} perplexity {math.exp(torch.cat(parts).mean()):.4f}")
    difference = torch.cat(losses[Activations.INT8]) - torch.cat(losses[Activations.FLOAT32])
    error = float(difference.std()) / len(difference) ** 0.5
    print(f"difference of the loss {float(difference.mean()):+.5f} ± {error:.5f} nats a token")
    divergence = float(torch.cat(divergences).mean())
    print(f"divergence {divergence:.5f} nats over {windows.numel()} tokens")


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, window: torch.Tensor, activations: Activations) -> torch.Tensor:
    """Of every next token: (tokens, vocabulary)."""
    runner = CompiledRunner(model, capacity=len(window), activations=activations)
    parts = []
    for start in range(0, len(window), MOST_TOKENS):
        tokens = window[None, start : start + MOST_TOKENS]
        parts.append(runner.feed_all(tokens).log_softmax(-1))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
