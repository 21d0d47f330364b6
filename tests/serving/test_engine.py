"""The live engine: what many requests get together is what each gets alone."""

import functools

import pytest
import torch

from shoestring.errors import NoCompiler
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.generation.sampling import Sampling
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.notices import record_fallbacks
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat
from shoestring.serving import ChunkedPrefill, Emit, Engine, EngineSettings, Finish, Reason, Reject
from shoestring.yardstick.memory import tensor_bytes

VOCAB = 97


def decoder_of():
    """Weights at which greedy tokens vary and no two logits are too close to tell apart."""
    torch.manual_seed(0)
    cfg = DecoderConfig.from_dict(
        {
            "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }
    )  # fmt: skip
    decoder = Decoder(cfg).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return decoder


DECODER = decoder_of()
PROMPTS = [
    torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (1, 30, 7, 55, 18, 2)
]


def settings(budget=24, sequences=64, form=None, dtype=torch.float32):
    return EngineSettings(form or BlockFormat(8), dtype, policy=ChunkedPrefill(budget, sequences))


def greedy(prompt, steps):
    return _greedy(tuple(prompt))[:steps]


@functools.cache
@torch.inference_mode()
def _greedy(prompt, steps=30):
    runner, ids, found = DecoderRunner(DECODER), torch.tensor([list(prompt)]), []
    for _ in range(steps):
        found.append(int(runner.feed(ids).argmax()))
        ids = torch.tensor([[found[-1]]])
    return found


@pytest.mark.parametrize("blocks", [100, 14])
def test_greedy_text_of_many_is_that_of_each_alone(blocks):
    engine = Engine(DECODER, n_blocks=blocks, settings=settings())
    found = engine.generate(PROMPTS, 30, stop_tokens=())
    assert found == [greedy(prompt, 30) for prompt in PROMPTS]
    assert len(set(found[1])) > 8, "the output must not be one token"
    # With few blocks requests lose theirs on the way.
    assert (engine.preemptions > 0) == (blocks == 14)
    assert engine.scheduler.pool.manager.available == blocks


def test_shared_beginnings_change_nothing():
    prompts = [PROMPTS[3][:40] + PROMPTS[1][:n] for n in (1, 5, 9, 20)]
    engine = Engine(DECODER, n_blocks=100, settings=settings())
    engine.generate(prompts[:1], 3, stop_tokens=())
    assert engine.generate(prompts, 20, stop_tokens=()) == [greedy(prompt, 20) for prompt in prompts]


def test_without_a_compiler_the_text_is_the_same_and_the_fallback_is_said(monkeypatch):
    def fail(*_, **__):
        raise NoCompiler("no C compiler found")

    monkeypatch.setattr("shoestring.serving.engine.CompiledBatch", fail)
    with record_fallbacks() as said:
        engine = Engine(DECODER, n_blocks=30, settings=settings())
    assert "one by one" in said[0]
    assert engine.generate(PROMPTS[:3], 12, stop_tokens=()) == [greedy(prompt, 12) for prompt in PROMPTS[:3]]
    narrow = Engine(
        DECODER,
        n_blocks=30,
        settings=settings(dtype=torch.float16, form=BlockFormat(8, TokenCacheFormat(8, 16))),
    )
    assert [len(tokens) for tokens in narrow.generate(PROMPTS[:3], 5, stop_tokens=())] == [5, 5, 5]


def test_draws_are_those_of_the_seed_in_any_company():
    hot = {"sampling": Sampling(1.0, top_k=20, repetition_penalty=1.1), "seed": 5, "stop_tokens": ()}
    together = Engine(DECODER, n_blocks=100, settings=settings()).generate(PROMPTS, 15, **hot)
    alone = [Engine(DECODER, n_blocks=100, settings=settings()).generate([p], 15, **hot)[0] for p in PROMPTS]
    assert together == alone
    assert together[1] != greedy(PROMPTS[1], 15)


def test_stop_tokens_cancelling_and_refusals():
    engine = Engine(DECODER, n_blocks=20, settings=settings())
    text = greedy(PROMPTS[1], 10)
    stop = next(token for at, token in enumerate(text) if at > 2 and token not in text[:at])
    engine.add("stops", PROMPTS[1], 10, stop_tokens=(stop,))
    engine.add("cancelled", PROMPTS[2], 50, stop_tokens=())
    engine.add("too long", PROMPTS[3], 200, stop_tokens=())
    messages = engine.step()
    assert any(isinstance(m, Reject) and m.rid == "too long" for m in messages)
    engine.cancel("cancelled")
    engine.cancel("nobody")
    while engine.busy:
        messages += engine.step()
    ends = {m.rid: m.reason for m in messages if isinstance(m, Finish)}
    assert ends == {"stops": Reason.STOP, "cancelled": Reason.CANCELLED}
    tokens = [t for m in messages if isinstance(m, Emit) and m.rid == "stops" for t in m.new_token_ids]
    assert tokens == text[: text.index(stop) + 1]
    assert engine.scheduler.pool.manager.available == 20


def test_the_budget_holds_all_that_the_engine_holds():
    budget = 2**20
    engine = Engine(DECODER, memory_bytes=budget, settings=settings(sequences=8))
    assert engine.plan.n_blocks == engine.scheduler.pool.manager.n_blocks > 8
    engine.generate(PROMPTS, 10, stop_tokens=())
    step = engine._batch.batch
    parts = [t for storage in engine.storages for t in storage.parts.values()]
    held = tensor_bytes(DECODER, engine._batch.step.tensors, parts, [step._room, step._logits])
    assert budget - engine.plan.block_bytes - 2**14 < held <= budget


def test_a_budget_below_the_weights_names_the_smallest_that_works():
    with pytest.raises(ValueError, match="budget of 1000 bytes is too small: weights take") as error:
        Engine(DECODER, memory_bytes=1000, settings=settings())
    smallest = int(str(error.value).split()[-1].rstrip("."))
    assert Engine(DECODER, memory_bytes=smallest, settings=settings()).plan.n_blocks == 1
    with pytest.raises(ValueError, match="too small"):
        Engine(DECODER, memory_bytes=smallest - 1, settings=settings())


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Engine(DECODER), "one of the two"),
        (lambda: Engine(DECODER, n_blocks=1, memory_bytes=2**20), "one of the two"),
        (lambda: Engine(DECODER, n_blocks=1, settings=settings(193)), "token_budget=193"),
        (lambda: Engine(DECODER, n_blocks=1).add("a", [], 1), "prompt is empty"),
        (lambda: Engine(DECODER, n_blocks=1).add("a", [97], 1), "token 97 is not in a vocabulary of 97"),
        (lambda: Engine(DECODER, n_blocks=1).generate([[1] * 99], 1), "need 2 blocks of 64"),
    ],
)
def test_bad_input_is_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


@pytest.mark.slow
def test_greedy_text_of_smollm2_is_the_same_in_company():
    from shoestring.compression.load_model import load_model
    from shoestring.generation.decode import generate

    model, tokenizer = load_model("smollm2-135m", packed=True)
    prompts = ["The history of the steam engine begins with", "A budget is", "Once upon a time", "In 1969,"]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    wide = EngineSettings(BlockFormat(16), torch.float32)
    found = Engine(model, n_blocks=40, settings=wide).generate(ids, 48, stop_tokens=())
    assert found == [generate(model, prompt, max_new_tokens=48, stop_tokens=()).tokens for prompt in ids]
