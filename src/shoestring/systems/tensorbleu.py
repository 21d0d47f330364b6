"""TensorBLEU: a BLEU for every sentence of a batch of token ids, for use inside training.

The published algorithm compares rows of n tokens, which suits a GPU; on a CPU it loses to a loop over NLTK.
Ours renumbers n-grams by sorting one integer column, or counts them in C.
"""

import math
import os
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.data.text import default_halves, read_text
from shoestring.errors import MissingData, MissingExtra
from shoestring.kernels.ngram_counting import count_matches, count_matches_by_sorting
from shoestring.models.built_in import built_in_file
from shoestring.systems.card import Card, Claim, Effort
from shoestring.yardstick.bleu import Counting, dense_matches, sentence_bleu
from shoestring.yardstick.comparison import Comparison, Row
from shoestring.yardstick.memory import LiveMemory
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
    tokens, origin = token_stream()
    smoke = effort is Effort.SMOKE
    generator = torch.Generator().manual_seed(seed)

    def batch(sentences: int, length: int) -> Batch:
        return sample(tokens, sentences, length, generator)

    rounds = 3 if smoke else 9
    judged = batch(8, 64) if smoke else batch(128, 256)
    shapes = [] if smoke else [(32, 64), (128, 64), (512, 64), (32, 256), (512, 256), (32, 1024), (128, 1024)]
    rows = _speed(judged, rounds, "128 x 256", claims=True)
    for sentences, length in shapes:
        rows += _speed(batch(sentences, length), 3, f"{sentences} x {length}", claims=False)
    rows.append(_memory(batch(*((16, 64) if smoke else (256, 1024)))))
    rows.append(_exactness(judged))
    rows.append(_scaling([batch(n, 64 if smoke else 256) for n in ((4, 8) if smoke else (32, 128, 512))]))
    if torch.cuda.is_available():
        rows.append(_gpu(batch(256, 1024)))
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
    path = os.environ.get("SHOESTRING_TEXT")
    halves = default_halves()
    text = read_text(path) if path else halves.calibration + halves.held_out
    name = os.path.basename(path) if path else halves.name
    try:
        file = built_in_file("smollm2-135m")
    except MissingData:
        words = text.split()
        numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
        ids = torch.tensor([numbers[word] for word in words])
        return ids, f"{name}, one id a word: no tokenizer installed"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return torch.tensor(tokenizer.encode(text)), f"{name}, SmolLM2's tokenizer"


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


def _exactness(batch: Batch) -> Row:
    expected = torch.tensor(_nltk(_lists(batch)))
    difference = max(
        (_scores(batch, counting) - expected).abs().max().item()
        for counting in (count_matches, count_matches_by_sorting)
    )
    return EXACT.row(baseline=None, method=difference)


def _scaling(batches: list[Batch]) -> Row:
    works = {str(len(b[0])): partial(_scores, b, count_matches_by_sorting) for b in batches}
    timed = time_interleaved(works, rounds=5)
    points = [(math.log(float(name)), math.log(timed.median(name))) for name in timed.seconds]
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return SCALING.row(baseline=None, method=slope)


def _gpu(batch: Batch) -> Row:
    candidates, references = (part.cuda() for part in batch)

    def ours() -> None:
        sentence_bleu(candidates, references, pad_id=PAD)
        torch.cuda.synchronize()

    works = {"nltk": lambda: _nltk(_lists((candidates.cpu(), references.cpu()))), "ours": ours}
    return _claimed(GPU, time_interleaved(works, rounds=5), "ours")
