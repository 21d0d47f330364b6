"""The whole table of savings: every pair either generates, or is refused by name with what to do instead."""

import functools
import re

import pytest
import torch
from tests.models.families import LAYERS, VOCAB, make
from tests.models.hybrids import tiny

from shoestring.generation.combination import combined_cache
from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.evicting_cache import ByImportance, ByRecency, Evicting
from shoestring.generation.plane_cache import PlaneCache
from shoestring.generation.saving_menu import (
    CACHES,
    SELECTIONS,
    Sizes,
    named_cache,
    named_selection,
    named_speculation,
)
from shoestring.generation.spatten.schedule import linear_schedule
from shoestring.generation.speculation.glide import Glide
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.generation.tier_cache import TierCache
from shoestring.generation.zipvl import ZipVL
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.glide_checkpoint import save_glide
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.tier_format import TierFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

NEW = 10
PROMPT = torch.randint(VOCAB, (16,), generator=torch.Generator().manual_seed(3)).tolist() * 3
FORMS = {
    "none": (None, None), "dense": ("dense", None), "tokens": ("tokens", None), "k8v4": (None, (8, 4)),
    "groups": ("groups", (8, 8)), "paged": ("paged", None), "paged, 8 bits": ("paged", (8, 8)),
    "planes": ("planes", None), "tiers": ("tiers", None),
}  # fmt: skip
EXACT = {"none", "dense", "paged"}
OWN_FORM = {"spatten": "planes", "zipvl": "tiers"}
"""Selections that store in a form of their own."""
UNTOUCHED = {"none", "window", "h2o", "mpcache"}
"""Those that, told to keep all of this prompt, give the plain text: it is too short for clusters."""
ALONE = {"spatten", "mpcache"}
"""Those that mean nothing where a step brings several tokens."""


@functools.cache
def model():
    """Two layers of one KV head with 64 channels, which codes of any width fit."""
    torch.manual_seed(0)
    fields = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    decoder = Decoder(DecoderConfig.from_dict(fields), dtype=torch.float64)
    for parameter in decoder.parameters():
        parameter.data *= 4 if parameter.dim() > 1 else 1
    return decoder.requires_grad_(False).eval()


@functools.cache
def draft_module():
    module = GlideDraft(model().cfg, GlideOptions(12)).double()
    return module.draw_weights(torch.Generator().manual_seed(2), 0.3).requires_grad_(False)


SPECULATIONS = {
    "none": lambda: None,
    "lookup": PromptLookup,
    "glide": lambda: Glide(draft_module()),
    "lossy glide": lambda: Glide(draft_module(), allow_lossy_draft=True),
    "glide of trees": lambda: Glide(draft_module(), shape=(2, 2), allow_lossy_draft=True),
}


def selection_of(name):
    keep = 1.0 if name in UNTOUCHED - {"none"} else None
    return named_selection(None if name == "none" else name, keep, Sizes(2, len(PROMPT), len(PROMPT) + NEW))


def tokens_of(cache, selection, speculation):
    form = named_cache(*FORMS[cache])
    settings = {"max_new_tokens": NEW, "stop_tokens": ()}
    return generate(
        model(), PROMPT, cache=form, selection=selection, speculation=SPECULATIONS[speculation](), **settings
    ).tokens


@functools.cache
def plain():
    return tokens_of("none", None, "none")


def refusal(cache, selection, speculation):
    """What the message must name, or None where the three go together."""
    if selection in OWN_FORM and cache not in ("none", OWN_FORM[selection]):
        return [type(named_cache(*FORMS[cache])).__name__, "SpAtten|ZipVL", "leave cache out"]
    if cache == "tiers" and selection != "zipvl":
        return ["TierFormat", "ZipVL", "TokenCacheFormat"]
    if speculation != "none" and selection in ALONE:
        return ["MPCache|SpAtten", "PromptLookup|Glide", "leave one of them out"]
    if speculation == "glide of trees" and selection not in ("none", "window"):
        return ["Glide of trees", "draft chains"]
    if speculation == "glide" and (cache not in ("none", "dense") or selection != "none"):
        return ["Glide", "allow_lossy_draft=True", "PromptLookup"]
    return None


@pytest.mark.parametrize("cache", FORMS)
@pytest.mark.parametrize("selection", ["none", *SELECTIONS])
def test_every_pair_generates_or_is_refused(cache, selection):
    assert len(set(plain())) > 4, "a text worth comparing"
    for speculation in SPECULATIONS:
        words = refusal(cache, selection, speculation)
        if words is not None:
            with pytest.raises(ValueError, match=r"does not go with|compresses what a selection") as error:
                tokens_of(cache, selection_of(selection), speculation)
            assert all(re.search(word, str(error.value)) for word in words), str(error.value)
            continue
        tokens = tokens_of(cache, selection_of(selection), speculation)
        assert len(tokens) == NEW
        if cache in EXACT and selection in UNTOUCHED:
            assert tokens == plain(), speculation


def test_the_table_is_the_menu():
    assert {name for name, _ in FORMS.values() if name} == set(CACHES)
    assert set(UNTOUCHED) | set(OWN_FORM) | {"start-recent-important", "none"} == {"none", *SELECTIONS}


@pytest.mark.parametrize("cache", ["tokens", "paged"])
def test_rounded_or_evicted_from_drafts_change_nothing(cache):
    """What is gone is gone before the first draft: the same text, with and without."""
    texts = [
        tokens_of(cache, Evicting(ByImportance(), 20, protect_last=4, slack=99), speculation)
        for speculation in ("none", "lookup", "lossy glide")
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != plain()


@pytest.mark.parametrize("speculation", ["none", "lookup"])
@pytest.mark.parametrize("ranking", [ByRecency, ByImportance])
def test_slots_stay_within_what_is_kept(ranking, speculation):
    cache = decoder_cache(model())
    policy = Evicting(ranking(), 12, protect_last=6, slack=3)
    settings = {"max_new_tokens": 30, "stop_tokens": (), "speculation": SPECULATIONS[speculation]()}
    result = generate(model(), PROMPT, cache=cache, selection=policy, **settings)
    assert len(result.tokens) == 30
    assert all(int(cache.length(layer).max()) <= 15 for layer in range(2))
    assert int(cache.next_pos) == len(PROMPT) + 29


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_prompt_read_through_a_window(chunk):
    """Keeping the six newest tokens while reading one by one is a model whose window is seven."""
    windowed = Decoder.from_transformers(make("mistral, window of 7", scale=6.0)).double()
    ids = torch.randint(VOCAB, (1, 40), generator=torch.Generator().manual_seed(1))
    expected = windowed(ids).logits[:, -1]
    for layer in windowed.model.layers:
        layer.self_attn.window = None
    policy = Evicting(ByRecency(), 6, while_reading=True)
    runner = DecoderRunner(windowed, selection=policy)
    most = 0
    for part in ids.split(chunk, 1):
        logits = runner.feed(part)
        most = max(most, *(int(runner.cache.length(layer)) for layer in range(LAYERS)))
    assert most == 6
    if chunk == 1:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


def test_a_cache_is_made_in_the_form_that_is_needed():
    sizes = Sizes(2, 48, 58)
    assert combined_cache(model()) is None
    assert type(combined_cache(model(), named_cache("dense"))) is DenseCache
    assert type(combined_cache(model(), None, named_selection("zipvl", None, sizes))) is TierCache
    assert type(combined_cache(model(), None, named_selection("spatten", None, sizes))) is PlaneCache
    given = decoder_cache(model())
    assert combined_cache(model(), given) is given
    roomy = combined_cache(model(), named_cache("tokens"), capacity=100)
    assert roomy.layers[0].table.columns["k"].data.shape[2] == 100
    for form in (None, named_cache("tokens")):
        window = combined_cache(model(), form, named_selection("window", 8.0, sizes), capacity=100)
        assert window.layers[0].table.columns["k"].data.shape[2] == 0


def test_other_widths_of_tiers_are_refused():
    with pytest.raises(
        ValueError, match=r"low_bits=4\) does not go with ZipVL, which stores as .*low_bits=2"
    ):
        combined_cache(model(), TierFormat(8, 4), ZipVL())


def test_a_form_is_for_a_decoder():
    with pytest.raises(ValueError, match="is a form for a Decoder, not for a LlamaForCausalLM"):
        combined_cache(make(), named_cache("tokens"))


def test_a_policy_of_ones_own_must_say_that_it_takes_drafts():
    class Own:
        hooks = ()

        def start(self, cache): ...
        def after_prefill(self, cache): ...
        def after_step(self, cache): ...

    with pytest.raises(ValueError, match="Own does not go with PromptLookup: it does not say"):
        combined_cache(model(), None, Own(), PromptLookup())


def test_names_and_widths():
    assert named_cache(None) is None
    assert named_cache(None, (8, 4)) == named_cache("tokens", (8, 4)) == TokenCacheFormat(8, 4)
    assert named_cache("groups", (2, 2)) == CacheFormat(2)
    assert named_cache("paged", (8, 4)) == BlockFormat(16, TokenCacheFormat(8, 4))
    assert named_selection(None, None, Sizes(2, 9, 9)) is None
    assert named_speculation(None, model()) is None
    assert isinstance(named_speculation("lookup", model()), PromptLookup)


def test_a_trained_draft_comes_from_its_folder(tmp_path):
    save_glide(draft_module(), tmp_path / "draft")
    found = named_speculation(str(tmp_path / "draft"), model())
    assert isinstance(found, Glide)
    assert found.module.options == GlideOptions(12)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: named_cache("fast"), "cache='fast' is not one of dense, tokens"),
        (lambda: named_cache("groups", (8, 4)), "one width for keys and values, not 8 and 4"),
        (lambda: named_cache("dense", (8, 8)), "cache='dense' has widths of its own"),
        (lambda: named_cache("tiers", (8, 8)), "cache='tiers' has widths of its own"),
        (lambda: named_selection("best", None, Sizes(2, 9, 9)), "selection='best' is not one of window"),
        (lambda: named_selection(None, 0.5, Sizes(2, 9, 9)), r"keep=0\.5 of what\? Choose a selection"),
        (lambda: named_selection("h2o", 0.0, Sizes(2, 9, 9)), r"keep=0 must be a share in \(0, 1\]"),
        (lambda: named_selection("h2o", -3.0, Sizes(2, 9, 9)), r"keep=-3 must be a share"),
        (lambda: named_selection("h2o", float("nan"), Sizes(2, 9, 9)), r"keep=nan must be a share"),
        (lambda: named_selection("h2o", 1.5, Sizes(2, 9, 9)), r"keep=1\.5 must be .* a whole number"),
        (
            lambda: named_selection("zipvl", 64.0, Sizes(2, 9, 9)),
            "keep=64: zipvl takes the share of attention",
        ),
        (
            lambda: named_speculation("magic", model()),
            "speculation='magic' is not 'lookup', 'longspec' or a folder",
        ),
        (lambda: Evicting(ByRecency(), 0.5, while_reading=True), "length is not known while it is read"),
    ],
)
def test_bad_choices_are_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_shares_and_counts_of_the_menu():
    sizes = Sizes(2, 200, 260)
    for keep in (0.25, 50.0):
        assert named_selection("window", keep, sizes)._keeps == (50,)
        important = named_selection("start-recent-important", keep, sizes)
        assert (important.first, important.recent, important.important) == (4, 23, 23)
    assert named_selection("spatten", 0.5, sizes).tokens == linear_schedule(2, 260, 0.5)
    assert named_selection("mpcache", 0.5, sizes).static.share == 0.5
    assert named_selection("zipvl", 0.9, sizes).options.choice.tau == 0.9


@pytest.mark.parametrize(
    ("selection", "speculation", "message"),
    [
        (Evicting(ByRecency(), 4), None, "Evicting selects among .* layers without attention"),
        (None, PromptLookup(), "PromptLookup needs tokens taken back, and this model keeps states"),
    ],
)
def test_a_model_with_states_is_refused_at_once(selection, speculation, message):
    with pytest.raises(ValueError, match=message):
        combined_cache(tiny("tm"), None, selection, speculation)
