"""Decode speed of our decoder, loop and caches against the transformers library's own `generate`, in turns.

    python benchmarks/decode_speed.py [MODEL] [--new-tokens 64] [--prompt-tokens 64] [--rounds 5]

Greedy, one sequence, the same weights for all; every output must be the same tokens.
"""

import argparse
import warnings

import torch

from shoestring.compression.load_model import load_transformers_model
from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.generation.transformers_cache import TransformersCache
from shoestring.models.decoder import Decoder
from shoestring.numbers.cache_format import CacheFormat
from shoestring.yardstick.timing import time_interleaved


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    model, tokenizer = load_transformers_model(options.model)
    text = "The history of the steam engine begins with a kettle. " * (options.prompt_tokens // 8 + 2)
    ids = tokenizer.encode(text)[: options.prompt_tokens]
    prompt, new = torch.tensor([ids]), options.new_tokens
    capacity = len(ids) + new

    def library() -> list[int]:
        out = model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return out[0, len(ids) :].tolist()

    def ours(form: CacheFormat | None = None, own: bool = True) -> list[int]:
        cache = TransformersCache(form, capacity=capacity) if own else None
        return generate(model, ids, tokenizer, max_new_tokens=new, stop_tokens=(), cache=cache).tokens

    decoder = Decoder.from_transformers(model)

    def own(form: CacheFormat | None = None) -> list[int]:
        cache = decoder_cache(decoder, form, capacity=capacity)
        return generate(decoder, ids, tokenizer, max_new_tokens=new, stop_tokens=(), cache=cache).tokens

    works = {
        "transformers generate": library,
        "our loop, its cache": lambda: ours(own=False),
        "our loop, dense": ours,
        "our loop, 4 bits (tail 32)": lambda: ours(CacheFormat(4, 32, 32)),
        "our decoder, dense": own,
        "our decoder, 4 bits (tail 32)": lambda: own(CacheFormat(4, 32, 32)),
    }
    same = {name: work() == library() for name, work in works.items()}
    times = time_interleaved(works, rounds=options.rounds, warmup=1)
    print(f"{len(ids)} prompt tokens, {new} new tokens, {torch.get_num_threads()} threads, {model.dtype}")
    for name in works:
        ratio = times.ratio(name, "transformers generate")
        low, high = times.interval(name, "transformers generate")
        speed = new / times.median(name)
        interval = f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
        print(f"{name:30} {speed:7.1f} tokens/s  time ratio {interval}  same tokens: {same[name]}")


if __name__ == "__main__":
    main()
