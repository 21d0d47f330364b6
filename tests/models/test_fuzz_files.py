"""Whatever is in a file of weights: it is read, or refused in one line. Never a crash, a hang or much memory.

Each case follows from its number alone; `replay` in a failure's message says which one to look at.
"""

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from shoestring.errors import BadModelFile
from shoestring.models.gguf_decoder import ARCHITECTURES, GGUFDecoder
from shoestring.models.gguf_file import BLOCKS, PLAIN, GGUFFile
from shoestring.models.gguf_tokenizer import gguf_tokenizer
from shoestring.models.load import load_decoder
from shoestring.models.safetensors_file import DTYPES, SafetensorsFile, ShardedSafetensors

from .families import make
from .gguf_bytes import every_kind, tiny_decoder
from .mutations import damaged_gguf, damaged_json, damaged_safetensors

SECONDS_PER_CASE = 2.0
MEMORY_BYTES = 1 << 30
FAMILIES = ("llama 3", "mistral, window of 7", "qwen 2, windows above", "qwen 3", "gemma 3")
FEW = 1000
MANY = 50_000


@contextmanager
def limits() -> Iterator[Callable[[], object]]:
    """Memory of the process may grow by a gibibyte; a case may take two seconds of its processor time."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS_PER_CASE} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, expired)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_PER_CASE)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcomes(cases: Iterator[tuple[str, Callable[[], object]]]) -> dict[str, int]:
    """How many were read and how many refused. Fails on the first other outcome."""
    counts = {"read": 0, "refused": 0}
    with limits() as start:
        for replay, case in cases:
            start()
            try:
                case()
                counts["read"] += 1
            except BadModelFile as error:
                if "\n" in (line := str(error)) or not 0 < len(line) < 600:
                    raise AssertionError(f"not one line: {line!r}; replay {replay}") from error
                counts["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"{type(error).__name__}: {error}; replay {replay}") from error
    return counts


def gguf_cases(path: Path, count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    bases = [every_kind([*PLAIN, *sorted(BLOCKS)]), *(tiny_decoder(a) for a in ARCHITECTURES)]
    written = [base.write() for base in bases]

    def read(build: bool) -> None:
        file = GGUFFile(path)
        for name in file:
            file[name]
        if "general.architecture" in file.metadata:
            decoder = GGUFDecoder(file)
            for name in decoder:
                assert decoder[name].shape == decoder.shape(name)
            gguf_tokenizer(file)
            if build:
                load_decoder(path)

    for number in range(count):
        rng = random.Random(f"gguf {number}")
        # The file of all types is the slowest to read and needs the fewest cases.
        index = rng.choice((0, *range(1, len(bases)), *range(1, len(bases))))
        path.write_bytes(damaged_gguf(rng, bases[index], written[index]))
        yield f"gguf {number}", partial(read, number % 20 == 0)


def safetensors_cases(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    tensors = {f"t.{name}": torch.zeros(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(1.5), "flat": torch.arange(5.0)}
    whole = safetensors_bytes(tensors, metadata={"format": "pt"})
    start = 8 + int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8:start]), whole[start:]
    shards = {
        "a.safetensors": {"x": torch.ones(2)},
        "b.safetensors": {"y": torch.ones(3), "z": torch.ones(1)},
    }
    for name, held in shards.items():
        (folder / name).write_bytes(safetensors_bytes(held))
    places = {tensor: name for name, held in shards.items() for tensor in held}
    index = {"metadata": {"total_size": 24}, "weight_map": places}
    single, several = folder / "model.safetensors", folder / "model.safetensors.index.json"

    def read_single() -> None:
        file = SafetensorsFile(single)
        for name in file:
            assert file[name].shape == file.shape(name)
            if not file.dtype(name).is_complex:
                file.read(name, torch.float32)

    def read_several() -> None:
        files = ShardedSafetensors(several)
        for name in files:
            assert files[name].shape == files.shape(name)

    folders = [folder / name.replace(",", "") for name in FAMILIES]
    for name, place in zip(FAMILIES, folders, strict=True):
        make(name).save_pretrained(place)
    configs = [json.loads((place / "config.json").read_text()) for place in folders]

    for number in range(count):
        rng = random.Random(f"safetensors {number}")
        if number % 5 == 1:
            which = rng.randrange(len(folders))
            (folders[which] / "config.json").write_bytes(damaged_json(rng, configs[which]))
            yield f"safetensors {number}", partial(load_decoder, folders[which])
        elif number % 10 == 0:
            several.write_bytes(damaged_json(rng, index))
            yield f"safetensors {number}", read_several
        else:
            single.write_bytes(damaged_safetensors(rng, header, body))
            yield f"safetensors {number}", read_single


def test_few_damaged_gguf_files(tmp_path):
    counts = outcomes(gguf_cases(tmp_path / "model.gguf", FEW))
    assert min(counts.values()) > FEW // 50, counts


def test_few_damaged_safetensors_files(tmp_path):
    counts = outcomes(safetensors_cases(tmp_path, FEW))
    assert min(counts.values()) > FEW // 50, counts


@pytest.mark.slow
def test_many_damaged_gguf_files(tmp_path):
    counts = outcomes(gguf_cases(tmp_path / "model.gguf", MANY))
    assert sum(counts.values()) == MANY


@pytest.mark.slow
def test_many_damaged_safetensors_files(tmp_path):
    counts = outcomes(safetensors_cases(tmp_path, MANY))
    assert sum(counts.values()) == MANY
