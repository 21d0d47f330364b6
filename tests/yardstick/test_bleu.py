"""BLEU of token ids against NLTK and SacreBLEU, and the three ways of counting against each other."""

import warnings

import hypothesis.strategies as st
import pytest
import sacrebleu
import torch
from hypothesis import given
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence

from shoestring.kernels.ngram_counting import count_matches, count_matches_by_sorting
from shoestring.yardstick import bleu
from shoestring.yardstick.bleu import Bleu, Smoothing, corpus_bleu, pad_batch, pad_references, sentence_bleu
from shoestring.yardstick.memory import LiveMemory

PAD = 10**6

sentences = st.lists(st.integers(0, 5), max_size=50)
references = st.lists(sentences.filter(bool), min_size=1, max_size=4)
batches = st.lists(st.tuples(sentences, references), min_size=1, max_size=5)


def tensors(batch):
    return pad_batch([c for c, _ in batch], PAD), pad_references([r for _, r in batch], PAD)


def exact(batch, settings):
    candidates, refs = tensors(batch)
    counts = bleu.count(candidates, refs, pad_id=PAD, max_n=settings.max_n)
    return bleu.score(counts, settings, torch.float64).tolist()


def by_nltk(batch, method, weights=(0.25,) * 4):
    smoothing = getattr(SmoothingFunction(epsilon=0.1), method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = [nltk_sentence(r, c, weights, smoothing) if c else 0.0 for c, r in batch]
    return [0.0 if score < 1e-60 else float(score) for score in scores]


@pytest.mark.parametrize("smoothing", [Smoothing.NONE, Smoothing.FLOOR, Smoothing.ADD_K, Smoothing.EXP])
@given(batches)
def test_sentences_equal_nltk(smoothing, batch):
    got = exact(batch, Bleu(smoothing=smoothing))
    assert got == pytest.approx(by_nltk(batch, smoothing.value), rel=1e-12, abs=1e-12)


@given(batches, st.integers(1, 6))
def test_other_orders_and_weights_equal_nltk(batch, max_n):
    weights = tuple((n + 1) / sum(range(1, max_n + 1)) for n in range(max_n))
    got = exact(batch, Bleu(max_n=max_n, weights=weights))
    assert got == pytest.approx(by_nltk(batch, "method1", weights), rel=1e-12, abs=1e-12)


long_enough = st.lists(
    st.tuples(st.lists(st.integers(0, 5), min_size=4, max_size=30), references), min_size=1, max_size=6
)


@given(long_enough)
def test_corpus_equals_nltk(batch):
    candidates, refs = tensors(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = nltk_corpus(
            [r for _, r in batch], [c for c, _ in batch],
            smoothing_function=SmoothingFunction(epsilon=0.1).method1,
        )  # fmt: skip
    got = corpus_bleu(candidates, refs, pad_id=PAD)
    assert got == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["none", "floor", "add-k", "exp"])
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5), max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20)
        ),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.integers(0, 5), min_size=4, max_size=20),
)
def test_corpus_equals_sacrebleu(name, pairs, first):
    pairs = [(first, first[::-1]), *pairs]
    candidates, refs = tensors([(c, [r]) for c, r in pairs])
    expected = sacrebleu.corpus_bleu(
        [" ".join(map(str, c)) for c, _ in pairs], [[" ".join(map(str, r)) for _, r in pairs]],
        tokenize="none", smooth_method=name, smooth_value=None, force=True,
    ).score  # fmt: skip
    got = corpus_bleu(candidates, refs, pad_id=PAD, settings=Bleu(smoothing=bleu.named_smoothing(name)))
    assert 100 * got == pytest.approx(expected, rel=1e-7, abs=1e-7)


@given(batches, st.integers(1, 5))
def test_three_ways_of_counting_agree(batch, max_n):
    candidates, refs = tensors(batch)
    lengths = (candidates != PAD).sum(-1), (refs != PAD).sum(-1)
    arguments = candidates, lengths[0], refs, lengths[1], max_n
    sparse = count_matches_by_sorting(*arguments)
    assert torch.equal(sparse, bleu.dense_matches(*arguments))
    assert torch.equal(sparse, count_matches(*arguments))


@given(batches, st.randoms(use_true_random=False))
def test_order_of_rows_and_references_names_of_tokens_and_pads_change_nothing(batch, random):
    names = list(range(6))
    random.shuffle(names)
    names = [name * 977 for name in names]
    order = list(range(len(batch)))
    random.shuffle(order)

    def renamed(row):
        return [names[token] for token in row]

    moved = [
        (renamed(batch[i][0]), [renamed(r) for r in random.sample(batch[i][1], len(batch[i][1]))])
        for i in order
    ]
    settings = Bleu()
    expected = exact(batch, settings)
    assert exact(moved, settings) == pytest.approx([expected[i] for i in order], abs=1e-15)
    candidates, refs = tensors(batch)
    padded = torch.nn.functional.pad(candidates, (0, 3), value=PAD)
    scores = sentence_bleu(padded, torch.nn.functional.pad(refs, (0, 2), value=PAD), pad_id=PAD)
    assert torch.equal(scores, sentence_bleu(candidates, refs, pad_id=PAD))


@given(st.lists(st.integers(0, 99), min_size=4, max_size=40), references)
def test_a_copy_of_a_reference_scores_one(sentence, others):
    assert exact([(sentence, [*others, sentence])], Bleu()) == pytest.approx([1.0])


def test_matches_are_clipped():
    counts = bleu.count(torch.tensor([[7, 7, 7, 7]]), torch.tensor([[[7, 7, 1, 2, 3]]]), pad_id=PAD)
    assert counts.matches[0, 0] == 2
    assert counts.totals[0, 0] == 4


def test_no_two_ngrams_share_an_id_at_the_end_of_the_vocabulary():
    top = 2**31 - 1
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(top - 40, top, (2, 4096), generator=generator)
    refs = torch.randint(top - 40, top, (2, 2, 4096), generator=generator)
    arguments = candidates, torch.full((2,), 4096), refs, torch.full((2, 2), 4096), 4
    expected = bleu.dense_matches(*arguments)
    assert torch.equal(count_matches_by_sorting(*arguments), expected)
    assert torch.equal(count_matches(*arguments), expected)


def peak_of(batch, length, vocabulary):
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(0, vocabulary, (batch, length), generator=generator)
    refs = torch.randint(0, vocabulary, (batch, 1, length), generator=generator)
    lengths = torch.full((batch,), length), torch.full((batch, 1), length)
    with LiveMemory() as memory:
        count_matches_by_sorting(candidates, lengths[0], refs, lengths[1], 4)
    return memory.peak_dynamic_bytes


def test_memory_grows_with_the_tokens_alone():
    assert peak_of(64, 256, 1000) <= 4.5 * peak_of(16, 256, 1000)
    assert peak_of(16, 1024, 1000) <= 4.5 * peak_of(16, 256, 1000)
    assert peak_of(16, 256, 2**30) <= 1.2 * peak_of(16, 256, 5000)


def test_released_exponential_smoothing_is_offered_for_parity():
    batch = [([1, 2, 3, 4, 5], [[1, 2, 9, 4, 5]])]
    expected = (4 / 5 * 2 / 4 * 1e-12 * 1e-12) ** 0.25
    assert exact(batch, Bleu(smoothing=Smoothing.RXLM_EXP)) == pytest.approx([expected])


def test_lengths_where_the_pad_is_a_token():
    candidates, refs = torch.tensor([[1, 0, 2, 0, 0]]), torch.tensor([[1, 0, 2, 0, 5]])
    with pytest.raises(ValueError, match="candidate in row 0 has a pad"):
        sentence_bleu(candidates, refs, pad_id=0)
    lengths = torch.tensor([4]), torch.tensor([[5]])
    got = sentence_bleu(candidates, refs, pad_id=0, lengths=lengths)
    expected = by_nltk([([1, 0, 2, 0], [[1, 0, 2, 0, 5]])], "method1")
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((torch.tensor([6]), torch.tensor([[5]])), "length 6 of candidates is out of range: .* 0 to 5"),
        ((torch.tensor([5]), torch.tensor([[10**6]])), "length 1000000 of references"),
        ((torch.tensor([-1]), torch.tensor([[5]])), "length -1 of candidates"),
        (
            (torch.tensor([5]), torch.tensor([5])),
            r"lengths of references are \(1,\) .*; give integers \(1, 1\)",
        ),
        ((torch.tensor([5.0]), torch.tensor([[5]])), "torch.float32"),
        ((torch.tensor([5], device="meta"), torch.tensor([[5]])), "on meta; give integers .* on cpu"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_before_memory_is_read(lengths, message):
    ids = torch.tensor([[1, 0, 2, 0, 5]])
    with pytest.raises(ValueError, match=message):
        sentence_bleu(ids, ids, pad_id=0, lengths=lengths)


def test_references_of_one_axis_less_are_one_reference_each():
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 9, 4, 5]])
    other = torch.tensor([[1, 2, 3, 4, 6], [1, 2, 3, 4, 5]])
    settings = {"pad_id": PAD}
    assert torch.equal(sentence_bleu(ids, other, **settings), sentence_bleu(ids, other[:, None], **settings))


def test_an_empty_batch_and_an_empty_candidate():
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert sentence_bleu(empty, empty, pad_id=PAD).shape == (0,)
    assert corpus_bleu(empty, empty, pad_id=PAD) == 0
    assert sentence_bleu(torch.tensor([[PAD]]), torch.tensor([[1]]), pad_id=PAD).tolist() == [0]


def test_bad_input():
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(TypeError, match=r"candidates are torch.float32, not token ids"):
        bleu.count(ids.float(), ids, pad_id=PAD)
    with pytest.raises(ValueError, match="1 candidates, but references for 2"):
        bleu.count(ids, ids.expand(2, 3), pad_id=PAD)
    with pytest.raises(ValueError, match="token id -4 is negative"):
        bleu.count(torch.tensor([[1, -4]]), ids, pad_id=PAD)
    with pytest.raises(ValueError, match="reference in row 1 has a pad"):
        bleu.count(ids.expand(2, 3), torch.tensor([[1, 2, 3], [1, PAD, 3]]), pad_id=PAD)
    with pytest.raises(ValueError, match="row 1 has no reference"):
        bleu.count(ids.expand(2, 3), torch.tensor([[1, 2], [PAD, PAD]]), pad_id=PAD)
    with pytest.raises(ValueError, match=r"must be \(batch, tokens\)"):
        bleu.count(ids[0], ids, pad_id=PAD)
    with pytest.raises(ValueError, match="on cpu, references on meta"):
        bleu.count(ids, ids.to("meta"), pad_id=PAD)
    with pytest.raises(ValueError, match="max_n=0"):
        Bleu(max_n=0)
    with pytest.raises(ValueError, match="max_n=0"):
        bleu.count(ids, ids, pad_id=PAD, max_n=0)
    with pytest.raises(ValueError, match="2 weights were given for max_n=4"):
        Bleu(weights=(0.5, 0.5))
    with pytest.warns(UserWarning, match=r"sum to 2\.0"):
        Bleu(max_n=2, weights=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"'method9' is no smoothing; use one of method0, .*, add-k"):
        bleu.named_smoothing("method9")
