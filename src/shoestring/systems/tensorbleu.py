"""TensorBLEU: a BLEU for every sentence of a batch of token ids, for use inside training.

The published algorithm compares rows of n tokens, which suits a GPU; on a CPU it loses to a loop over NLTK.
Ours renumbers n-grams by sorting one integer column, or counts them in C.
"""

import math
import os
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.data.text import default_halves, read_text
from shoestring.errors import MissingData, MissingExtra
from shoestring.kernels.ngram_counting import count_matches, count_matches_by_sorting
from shoestring.models.built_in import built_in_file
from shoestring.systems.card import Card, Claim, Effort
from shoestring.yardstick.bleu import Counting, dense_matches, sentence_bleu
from shoestring.yardstick.comparison import Comparison, Row
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.process_memory import resident_memory
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

PAD = -1
VOCABULARY = 49152

PLAIN = Claim(
    text="scoring a batch on tensors is faster than a loop over NLTK",
    figure="10.2x",
    setting="T4 against a 2-core host, batch 128 of 256 tokens; bar: the plain PyTorch path on a CPU",
    metric="time, 128 x 256, plain PyTorch",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 10.2,
    bar=1 / 2,
)
COMPILED = Claim(
    text="the same, counted in C",
    figure="10.2x",
    setting="as above; bar: our own goal",
    metric="time, 128 x 256, compiled",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 10.2,
    bar=1 / 10,
)
MEMORY = Claim(
    text="memory is proportional to the n-grams present, not to the vocabulary",
    figure="proportional to n-grams present",
    setting="against the dense (sentence, n-gram) table of the published form; batch 256 of 1024 tokens",
    metric="peak bytes, 256 x 1024",
    kind="memory",
    unit="B",
    better="lower",
    bar=0.2,
)
EXACT = Claim(
    text="scores are NLTK's",
    figure="< 1e-6",
    setting="same ids, weights, smoothing",
    metric="largest difference from NLTK",
    kind="quality",
    unit="",
    better="lower",
    bar=1e-6,
    bar_on="value",
)
SCALING = Claim(
    text="time grows with the batch, no faster",
    figure="flat speed-up from batch 64 to 256",
    setting="256 tokens, batches 32 to 512; exponent fitted",
    metric="exponent of time in the batch",
    kind="other",
    unit="",
    better="lower",
    bar=1.1,
    bar_on="value",
)
GPU = Claim(
    text="an A100 scores 40 times faster than NLTK on its host",
    figure="40.2x",
    setting="A100, batch 256 of 1024 tokens, 14 vCPU host",
    metric="time, 256 x 1024, GPU",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 40.2,
    bar=1 / 13,
    needs_gpu=True,
)

card = Card(
    slug="tensorbleu",
    title="TensorBLEU",
    paper="TensorBLEU: Vectorized GPU-based BLEU Score Implementation for Per-Sentence In-Training "
    "Evaluation (2025)",
    year=2025,
    authors_code="RxAI-dev/rxlm",
    saves=("time", "memory"),
    parts=(
        "shoestring.yardstick.bleu.sentence_bleu",
        "shoestring.yardstick.bleu.corpus_bleu",
        "shoestring.kernels.ngram_counting",
        "shoestring.numbers.segments",
    ),
    claims=(PLAIN, COMPILED, MEMORY, EXACT, SCALING, GPU),
)

Batch = tuple[Tensor, Tensor]
"""Candidates (batch, tokens) and their references (batch, 1, tokens)."""


def measure(effort: Effort, seed: int) -> Comparison:
    """Ours and the published form beside a loop over NLTK fed with ready lists, on windows of real text."""
    smoke = effort is Effort.SMOKE
    tokens, origin = word_stream() if smoke else token_stream()
    generator = torch.Generator().manual_seed(seed)

    def batch(sentences: int, length: int) -> Batch:
        return sample(tokens, sentences, length, generator)

    rounds = 3 if smoke else 9
    judged = batch(8, 64) if smoke else batch(128, 256)
    shapes = [] if smoke else [(32, 64), (128, 64), (512, 64), (32, 256), (512, 256), (32, 1024), (128, 1024)]
    rows = _speed(judged, rounds, "128 x 256", claims=True)
    for sentences, length in shapes:
        rows += _speed(batch(sentences, length), 3, f"{sentences} x {length}", claims=False)
    large = batch(*((16, 64) if smoke else (256, 1024)))
    rows.append(_memory(large))
    if not smoke:  # four processes that each import torch take longer than a smoke run may
        rows.append(_resident(large))
    rows += _exactness(judged)
    rows.append(_scaling([batch(n, 64 if smoke else 256) for n in ((4, 8) if smoke else (32, 128, 512))]))
    if torch.cuda.is_available():
        rows += _gpu(batch(256, 1024))
    return Comparison(
        system=card.slug,
        method="BLEU by sorted n-gram ids",
        baseline="a loop over NLTK's sentence_bleu",
        work="candidates: references with 30 % of tokens replaced, cut to 50 to 100 % of their length",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(origin, "NLTK is fed with ready Python lists: the copy off the tensor is not in its time."),
    )


def token_stream() -> tuple[Int[Tensor, " tokens"], str]:
    """Ids of `$SHOESTRING_TEXT` or the default text, by SmolLM2's tokenizer if installed; what was used."""
    text, name = _text()
    try:
        file = built_in_file("smollm2-135m")
    except MissingData:
        ids, origin = word_stream()
        return ids, f"{origin}: no tokenizer installed"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return torch.tensor(tokenizer.encode(text)), f"{name}, SmolLM2's tokenizer"


def word_stream() -> tuple[Int[Tensor, " tokens"], str]:
    """One id a word of the same text, which takes no tokenizer (loading one takes as long as a smoke run)."""
    text, name = _text()
    words = text.split()
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return torch.tensor([numbers[word] for word in words]), f"{name}, one id a word"


def _text() -> tuple[str, str]:
    path = os.environ.get("SHOESTRING_TEXT")
    if path:
        return read_text(path), os.path.basename(path)
    halves = default_halves()
    return halves.calibration + halves.held_out, halves.name


def sample(tokens: Tensor, sentences: int, length: int, generator: torch.Generator) -> Batch:
    """References: windows at random places. Candidates: 30 % of tokens replaced, cut to 50 to 100 %."""
    start = torch.randint(len(tokens) - length, (sentences, 1), generator=generator)
    references = tokens[start + torch.arange(length)]
    replaced = torch.rand(references.shape, generator=generator) < 0.3
    noise = torch.randint(VOCABULARY, references.shape, generator=generator)
    candidates = torch.where(replaced, noise, references)
    kept = torch.randint(length // 2, length + 1, (sentences, 1), generator=generator)
    return torch.where(torch.arange(length) < kept, candidates, PAD), references[:, None]


def _scores(batch: Batch, counting: Counting) -> Tensor:
    candidates, references = batch
    return sentence_bleu(candidates, references, pad_id=PAD, counting=counting)


def _lists(batch: Batch) -> list[tuple[list[int], list[list[int]]]]:
    candidates, references = batch
    return [
        ([t for t in c if t != PAD], r) for c, r in zip(candidates.tolist(), references.tolist(), strict=True)
    ]


def _nltk(rows: list[tuple[list[int], list[list[int]]]]) -> list[float]:
    try:
        from nltk.translate.bleu_score import SmoothingFunction
        from nltk.translate.bleu_score import sentence_bleu as by_nltk
    except ImportError as error:
        raise MissingExtra("the baseline needs NLTK; pip install 'shoestring[peers]'") from error
    smoothing = SmoothingFunction(epsilon=0.1).method1
    return [float(by_nltk(r, c, smoothing_function=smoothing)) for c, r in rows]


def _speed(batch: Batch, rounds: int, shape: str, *, claims: bool) -> list[Row]:
    lists = _lists(batch)
    timed = time_interleaved(
        {
            "nltk": lambda: _nltk(lists),
            "nltk with lists": lambda: _nltk(_lists(batch)),
            "plain": lambda: _scores(batch, count_matches_by_sorting),
            "compiled": lambda: _scores(batch, count_matches),
            "published": lambda: _scores(batch, dense_matches),
        },
        rounds=rounds,
    )

    def row(metric: str, method: str, against: str = "nltk") -> Row:
        return Row(
            metric=metric, kind="time", unit="s", better="lower", baseline=timed.median(against),
            method=timed.median(method), ratio=timed.ratio(method, against),
            spread=timed.interval(method, against), against=against,
        )  # fmt: skip

    if not claims:
        kinds = {"plain": "plain PyTorch", "compiled": "compiled"}
        return [row(f"time, {shape}, {name}", method) for method, name in kinds.items()]
    return [
        _claimed(PLAIN, timed, "plain"),
        _claimed(COMPILED, timed, "compiled"),
        row(f"time, {shape}, as published", "published"),
        row(f"time, {shape}, NLTK with .tolist()", "plain", "nltk with lists"),
    ]


def _claimed(claim: Claim, timed: InterleavedTimes, method: str) -> Row:
    return claim.row(
        baseline=timed.median("nltk"),
        method=timed.median(method),
        ratio=timed.ratio(method, "nltk"),
        spread=timed.interval(method, "nltk"),
    )


def _memory(batch: Batch) -> Row:
    def peak(counting: Counting) -> int:
        with LiveMemory(*batch) as memory:
            _scores(batch, counting)
        return memory.peak_dynamic_bytes

    dense, sparse = peak(dense_matches), peak(count_matches_by_sorting)
    return MEMORY.row(baseline=dense, method=sparse, ratio=sparse / dense, against="dense table")


def _resident(batch: Batch) -> Row:
    """The same by the resident set of fresh processes, where scratch space of the sorts counts too."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "batch.safetensors")
        save_file({"candidates": batch[0].contiguous(), "references": batch[1].contiguous()}, path)
        dense, sparse = (resident_memory(stored_batch, path=path, way=way) for way in _WAYS)
    return Row(
        metric="resident bytes, 256 x 1024", kind="memory", unit="B", better="lower",
        baseline=dense.step_bytes, method=sparse.step_bytes, against="dense table",
    )  # fmt: skip


_WAYS: dict[str, Counting] = {"dense": dense_matches, "sorted": count_matches_by_sorting}


def stored_batch(path: str, way: str) -> Callable[[], Tensor]:
    """Scoring of a batch in a file, one of two ways, for a process of its own."""
    stored = load_file(path)
    return partial(_scores, (stored["candidates"], stored["references"]), _WAYS[way])


def _exactness(batch: Batch) -> list[Row]:
    expected = torch.tensor(_nltk(_lists(batch)))
    found = [_scores(batch, counting) for counting in (count_matches, count_matches_by_sorting)]
    difference = max((scores - expected).abs().max().item() for scores in found)
    mean = Row(
        metric="mean score of the batch", kind="quality", unit="", better="higher",
        baseline=expected.mean().item(), method=found[0].mean().item(),
    )  # fmt: skip
    return [EXACT.row(baseline=None, method=difference), mean]


def _scaling(batches: list[Batch]) -> Row:
    works = {str(len(b[0])): partial(_scores, b, count_matches_by_sorting) for b in batches}
    timed = time_interleaved(works, rounds=5)
    points = [(math.log(float(name)), math.log(timed.median(name))) for name in timed.seconds]
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return SCALING.row(baseline=None, method=slope)


def _gpu(batch: Batch) -> list[Row]:
    """Sorted and as published, against NLTK with the copy off the device in its time."""
    candidates, references = (part.cuda() for part in batch)

    def on_device(counting: Counting) -> None:
        _scores((candidates, references), counting)
        torch.cuda.synchronize()

    works: dict[str, Callable[[], object]] = {
        "nltk": lambda: _nltk(_lists((candidates.cpu(), references.cpu()))),
        "ours": partial(on_device, count_matches_by_sorting),
        "published": partial(on_device, dense_matches),
    }
    timed = time_interleaved(works, rounds=5)
    published = Row(
        metric=f"{GPU.metric}, as published", kind="time", unit="s", better="lower",
        baseline=timed.median("nltk"), method=timed.median("published"),
        ratio=timed.ratio("published", "nltk"), spread=timed.interval("published", "nltk"),
    )  # fmt: skip
    return [_claimed(GPU, timed, "ours"), published]
