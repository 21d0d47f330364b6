"""Generation by the compiled step: the same text as module by module, and when it steps aside."""

import os
import subprocess
import sys

import pytest
import torch
from tests.models.families import MAKERS, VOCAB, make

from shoestring.compression.apply import apply
from shoestring.compression.group_quantize import RoundToNearest
from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decode import generate, stream
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.evicting_cache import ByChance, ByImportance, ByRecency, Evicting
from shoestring.generation.runner import make_runner
from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.prompt_lookup import PromptLookup
from shoestring.kernels.grouped_linear import Activations
from shoestring.layers.low_rank.low_rank_linear import LowRankLinear
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder
from shoestring.notices import record_fallbacks
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.numbers.token_cache_format import TokenCacheFormat
from shoestring.yardstick.memory import LiveMemory, tensor_bytes

PROMPT = torch.randint(VOCAB, (1, 23), generator=torch.Generator().manual_seed(1))
FORMS = {
    "4 bits": RoundToNearest(4, 16),
    "3 bits, zero points, scales in 6 bits": RoundToNearest(3, 16, ZeroPoint.INTEGER, 6),
    "2 bits, offsets": RoundToNearest(2, 8, ZeroPoint.REAL),
    "7 bits": RoundToNearest(7, 16),
}


def decoder_of(family="llama", recipe=None):
    """Weights at which greedy tokens vary and no two logits are too close to tell apart."""
    decoder = Decoder.from_transformers(make(family, scale=12.0 if family == "llama" else 3.0))
    decoder.requires_grad_(False)
    return decoder if recipe is None else apply(decoder, recipe, ignore=())


def exact_copy(packed):
    """The same decoder with plain float32 weights."""
    plain = Decoder(packed.cfg)
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight = torch.nn.Parameter(packed.get_submodule(name).weight.clone())
            if getattr(module, "bias", None) is not None:
                module.bias = packed.get_submodule(name).bias
        elif hasattr(module, "offset"):
            module.weight = packed.get_submodule(name).weight
    return plain.requires_grad_(False).eval()


def logits_of(runner, tokens):
    with torch.inference_mode():
        first = runner.feed(PROMPT)
        return torch.cat([first, *(runner.feed(torch.tensor([[token]])) for token in tokens)])


@pytest.mark.parametrize("form", FORMS)
def test_greedy_text_is_that_of_the_dequantised_model(form):
    packed = decoder_of(recipe=FORMS[form])
    plain = exact_copy(packed)
    expected = logits_of(DecoderRunner(plain), range(40))
    found = logits_of(make_runner(packed, activations=Activations.FLOAT32), range(40))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    settings = {"max_new_tokens": 60, "stop_tokens": ()}
    runner = DecoderRunner(plain)
    ids, greedy = PROMPT, []
    with torch.inference_mode():
        for _ in range(60):
            greedy.append(int(runner.feed(ids).argmax()))
            ids = torch.tensor([[greedy[-1]]])
    assert len(set(greedy)) > 10
    assert generate(packed, PROMPT[0].tolist(), activation_bits=32, **settings).tokens == greedy


def test_inputs_in_int8_are_near_and_not_the_same():
    packed = decoder_of(recipe=RoundToNearest(4, 16))
    exact = logits_of(make_runner(packed, activations=Activations.FLOAT32), range(20))
    rounded = logits_of(make_runner(packed, activations=Activations.INT8), range(20))
    error = (rounded - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("family", MAKERS)
def test_plain_weights_give_the_logits_of_the_decoder_while_the_cache_grows(family):
    decoder = decoder_of(family)
    runner = make_runner(decoder)
    assert isinstance(runner, CompiledRunner)
    expected = logits_of(DecoderRunner(decoder), [i % VOCAB for i in range(100)])
    found = logits_of(runner, [i % VOCAB for i in range(100)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-4)
    assert runner.cache.plain_slots() == 123
    assert runner.cache.side is not None
    slots = runner.cache.layers[0].table.read("pos")[0, 0]
    assert slots.tolist() == list(range(123))


@pytest.mark.parametrize("form", [None, TokenCacheFormat(8, 8)], ids=["dense", "in 8 bits"])
@pytest.mark.parametrize("ranking", [ByRecency, lambda: ByChance(4)], ids=["window", "by chance"])
def test_it_goes_on_where_every_layer_lost_equally_many_tokens(ranking, form):
    decoder = decoder_of()
    runners = []
    for make_it in (make_runner, DecoderRunner):
        policy = Evicting(ranking(), 12, protect_first=2, protect_last=4, slack=5)
        runners.append(make_it(decoder, decoder_cache(decoder, form), selection=policy))
    compiled = runners[0]
    assert isinstance(compiled, CompiledRunner)
    with torch.inference_mode():
        for runner in runners:
            runner.feed(PROMPT)
            runner.prompt_is_read()
        for token in range(40):
            assert compiled.compiled_slots() is not None
            assert compiled.cache.plain_slots() is None
            found, expected = (runner.feed(torch.tensor([[token]])) for runner in runners)
            # Of codes one may fall on the other side of a tie.
            atol = 2e-3 if form is None else 0.02 * float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    for layer in range(4):
        one, other = (runner.cache.layers[layer].table.read("pos") for runner in runners)
        assert torch.equal(one, other)
    assert int(compiled.cache.length(0)) <= 17


def test_drafts_verified_by_the_compiled_step_behind_evicted_tokens():
    decoder = decoder_of()
    texts = []
    for speculation in (None, PromptLookup(length=FixedLength())):
        policy = Evicting(ByRecency(), 15, protect_first=2, slack=1000)
        settings = {"max_new_tokens": 40, "stop_tokens": (), "speculation": speculation}
        texts.append(generate(decoder, PROMPT[0].tolist() * 2, selection=policy, **settings).tokens)
    assert texts[0] == texts[1]
    assert texts[0] != generate(decoder, PROMPT[0].tolist() * 2, max_new_tokens=40, stop_tokens=()).tokens


def test_windows_are_counted_in_slots_and_go_module_by_module_once_tokens_are_gone():
    decoder = decoder_of("mistral, window of 7")
    policies = [Evicting(ByRecency(), 12, protect_first=2) for _ in range(2)]
    compiled = make_runner(decoder, selection=policies[0])
    by_module = DecoderRunner(decoder, selection=policies[1])
    assert isinstance(compiled, CompiledRunner)
    with torch.inference_mode():
        for runner in (compiled, by_module):
            runner.feed(PROMPT)
            runner.prompt_is_read()
        assert compiled.compiled_slots() is None
        for token in range(5):
            found, expected = (runner.feed(torch.tensor([[token]])) for runner in (compiled, by_module))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
        with pytest.raises(ValueError, match="shift=3 with a window"):
            compiled.compiled(torch.tensor([1]), 0, 1, 3)


def test_a_selection_that_looks_into_attention_is_not_compiled():
    decoder = decoder_of()
    policy = Evicting(ByImportance(), 12)
    assert type(make_runner(decoder, selection=policy)) is DecoderRunner
    with pytest.raises(ValueError, match="Evicting looks into attention, which a compiled step"):
        CompiledRunner(decoder, selection=policy)


def test_a_cache_that_is_no_longer_plain_goes_the_usual_way():
    decoder = decoder_of()
    runner, expected = make_runner(decoder), DecoderRunner(decoder)
    ids = torch.tensor([[5]])
    with torch.inference_mode():
        for other in (runner, expected):
            other.feed(PROMPT)
            other.feed(ids)
            other.cache.evict(1, torch.arange(4, 24)[None])
        assert runner.cache.plain_slots() is None
        torch.testing.assert_close(runner.feed(ids), expected.feed(ids), rtol=0, atol=1e-3)
        torch.testing.assert_close(runner.feed(ids), expected.feed(ids), rtol=0, atol=1e-3)


def test_tokens_can_be_taken_back():
    decoder = decoder_of()
    runner = make_runner(decoder)
    with torch.inference_mode():
        runner.feed(PROMPT)
        mark = runner.cache.mark()
        first = runner.feed(torch.tensor([[3]]))
        runner.feed(torch.tensor([[9, 8, 7]]))
        runner.cache.rollback(mark)
        assert torch.equal(runner.feed(torch.tensor([[3]])), first)


def test_all_logits_of_a_few_tokens():
    decoder = decoder_of()
    together, alone = make_runner(decoder), make_runner(decoder)
    with torch.inference_mode():
        together.feed(PROMPT)
        alone.feed(PROMPT)
        found = together.feed_all(torch.tensor([[7, 8, 9, 1, 2, 3, 4, 5]]))
        expected = torch.cat([alone.feed(torch.tensor([[i]])) for i in (7, 8, 9, 1, 2, 3, 4, 5)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="9 tokens on this cache"):
        together.feed_all(torch.zeros(1, 9, dtype=torch.long))


def test_what_asks_for_another_path_gets_it_in_silence():
    decoder = decoder_of()
    quantised = decoder_cache(decoder, CacheFormat(8, 16))
    cfg = decoder.cfg
    batch = DenseCache(cfg.num_hidden_layers, 2, cfg.num_key_value_heads, cfg.head_dim)
    with record_fallbacks() as said:
        assert type(make_runner(decoder, quantised)) is DecoderRunner
        assert type(make_runner(decoder, batch)) is DecoderRunner
        with torch.autocast("cpu", torch.bfloat16):
            assert type(make_runner(decoder)) is DecoderRunner
        assert type(make_runner(decoder_of().double())) is DecoderRunner
    assert said == []
    with pytest.raises(TypeError, match="holds 2 sequences"):
        CompiledRunner(decoder, batch)


def test_what_keeps_a_model_slow_is_said():
    decoder = decoder_of()
    decoder.model.layers[1].mlp.up_proj = LowRankLinear(48, 64, 4, bias=False)
    with record_fallbacks() as said:
        assert type(make_runner(decoder)) is DecoderRunner
    assert "model.layers.1.mlp.up_proj, a LowRankLinear" in said[0]
    watched = decoder_of()
    watched.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    with record_fallbacks() as said:
        assert type(make_runner(watched)) is DecoderRunner
    assert "forward hooks" in said[0]


def test_without_a_compiler_the_text_is_the_same_and_the_fallback_is_said():
    script = (
        "import torch; from tests.generation.test_compiled_runner import *\n"
        "print(generate(decoder_of(), PROMPT[0].tolist(), max_new_tokens=8, stop_tokens=()).tokens)"
    )
    environment = os.environ | {"SHOESTRING_CC": "none", "PYTHONPATH": "src:."}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    expected = generate(decoder_of(), PROMPT[0].tolist(), max_new_tokens=8, stop_tokens=()).tokens
    assert done.stdout.strip() == str(expected)
    assert "fallback: decode step: module by module" in done.stderr


def test_a_width_of_inputs_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="activation_bits=16"):
        stream(decoder_of(), [1], activation_bits=16)


@pytest.mark.slow
def test_greedy_text_of_smollm2_is_that_of_its_float32_weights():
    from shoestring.compression.load_model import load_model

    prompt = "The history of the steam engine begins with"
    plain, tokenizer = load_model("smollm2-135m")
    packed, _ = load_model("smollm2-135m", packed=True)
    settings = {"max_new_tokens": 64, "stop_tokens": ()}
    expected = generate(plain, prompt, tokenizer, cache=None, **settings).tokens
    assert generate(packed, prompt, tokenizer, activation_bits=32, **settings).tokens == expected


def test_weights_are_in_memory_once_while_text_is_generated():
    file = built_in_file("smollm2-135m")
    model = load_decoder(file, packed=True)
    with LiveMemory(model) as memory, torch.inference_mode():
        runner = CompiledRunner(model, capacity=128, activations=Activations.INT8)
        runner.feed(torch.arange(100)[None])
        runner.feed(torch.tensor([[7]]))
    cache = sum(part.nbytes for layer in runner.cache.storage() for part in layer.values())
    assert tensor_bytes(model) <= 1.01 * file.stat().st_size
    assert memory.peak_bytes - cache <= 1.15 * file.stat().st_size
