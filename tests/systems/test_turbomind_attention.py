"""What the experiment on attention over few bits measures, at sizes that take no time."""

import torch

from shoestring.systems.language_task import tiny_task
from shoestring.systems.turbomind.attention import (
    BYTES,
    CLAIMS,
    KV4,
    KV8,
    QUALITY,
    SPEED,
    AttentionSettings,
    cache_quality_rows,
    measure_attention,
)


def test_rows_answer_the_claims(monkeypatch):
    settings = AttentionSettings(layers=2, contexts=(128, 4096), rounds=3)
    rows, notes = measure_attention(settings, seed=1)
    assert notes == []
    found = {row.metric: row for row in rows}
    assert len(found) == len(rows) == 3 * 2 + 2
    for form in (KV8, KV4):
        claim = SPEED[form, 4096]
        row = found[claim.metric]
        assert (row.bar, row.unit) == (claim.bar, "s")
        assert row.spread[0] <= row.ratio <= row.spread[1]
    assert found["time of attention, K8V4, context 4096"].bar is None
    assert len({claim.metric for claim in CLAIMS}) == len(CLAIMS) == 9


def test_bytes_are_exact():
    rows, _ = measure_attention(AttentionSettings(layers=1, contexts=(64,), rounds=3), seed=1)
    found = {row.metric: row for row in rows}
    for form, share in ((KV8, 0.53125), (KV4, 0.28125)):
        row = found[BYTES[form].metric]
        assert row.ratio == share
        assert row.holds
        assert row.baseline == 64 * 3 * 2 * 64 * 2


def test_without_a_compiler_the_claims_about_time_are_noted(monkeypatch):
    from shoestring.errors import NoCompiler
    from shoestring.systems.turbomind import attention as module

    def none(*_):
        raise NoCompiler("there is none")

    monkeypatch.setattr(module, "store_rows", none)
    rows, notes = measure_attention(AttentionSettings(layers=1, contexts=(64,)), seed=1)
    assert [row.metric for row in rows] == [claim.metric for claim in BYTES.values()]
    assert notes == [f"{claim.metric}: not measured, there is none" for claim in SPEED.values()]


def test_fewer_bits_cost_more_perplexity():
    task = tiny_task(3, held_out=(3, 64))
    for parameter in task.model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    rows = {row.metric: row for row in cache_quality_rows(task.model, task.held_out)}
    assert [row.metric for row in rows.values()] == [claim.metric for claim in QUALITY.values()]
    changes = [abs(row.ratio - 1) for row in rows.values()]
    assert 0 < changes[0] < changes[2]


def test_the_bits_that_hurt_are_those_of_the_keys():
    """Hence the bars: the same number of bits is better spent on keys."""
    from shoestring.numbers.token_cache_format import decode_rows, encode_rows

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 50, 64, generator=generator) for _ in range(3))
    k[..., ::9] += 8 * torch.randn(8, generator=generator)  # channels that are large in every token
    error, attend = {}, torch.nn.functional.scaled_dot_product_attention
    exact = attend(q, k, v)
    for widths in ((8, 4), (4, 8)):
        read = [
            decode_rows(*encode_rows(x, bits, "x"), bits, 64) for x, bits in zip((k, v), widths, strict=True)
        ]
        error[widths] = float((attend(q, *read) - exact).norm())
    assert error[8, 4] < error[4, 8]
