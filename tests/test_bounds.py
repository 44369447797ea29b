"""How fast it can be: hand-worked cases, units, and what must rise or fall with what."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import bounds, capacity, hardware, models, theory
from study.hardware import Hardware

KIMI, LLAMA = models.load("kimi-k2.5"), models.load("llama-3.1-405b")
H100, SPARK = hardware.load("h100"), hardware.load("dgx-spark")
BF16 = capacity.weights(LLAMA, "bf16")
SAID = dict.fromkeys(("memory_gb", "bandwidth_gb_s", "rates_tflop_s"), "made up")
ROUND = Hardware(
    name="round", description="", memory_gb=1000, bandwidth_gb_s=1000,
    rates_tflop_s={"bf16": 1000}, sources=SAID,
)  # fmt: skip
DENSE = models.load("gqa-dense-1b")
SIZE = capacity.weights(DENSE, "bf16")
LEVELS = st.integers(1, 4096)
CONTEXTS = st.integers(0, 131_072)


# --- decode ---------------------------------------------------------------------------------------


def test_a_step_of_one_token_worked_by_hand() -> None:
    weights = 16 * (2048 * 128 * 2 * (16 + 8) + 3 * 2048 * 8192) + 4096 * 2048
    step = bounds.decode_step(DENSE, SIZE, 1, 100)
    assert step.weight_bytes == 2 * weights
    assert step.kv_bytes == 100 * 16 * 2 * 8 * 128 * 2
    assert step.flop == 2 * weights
    seconds = (step.weight_bytes + step.kv_bytes) / 1e12
    assert step.seconds(ROUND, "bf16") == pytest.approx(seconds)
    assert bounds.decode_tok_s(DENSE, SIZE, ROUND, 1, 100) == pytest.approx(1 / seconds)


def test_a_large_batch_is_limited_by_arithmetic() -> None:
    """At 1 byte of bandwidth a FLOP, weights of 2 bytes: from 1 000 requests on."""
    flop = 2 * theory.read_parameters(DENSE)
    assert bounds.decode_tok_s(DENSE, SIZE, ROUND, 4096, 0) == pytest.approx(1e15 / flop)
    assert bounds.decode_tok_s(DENSE, SIZE, ROUND, 999, 0) < 1e15 / flop


def test_the_threads_rule_of_thumb_counts_fewer_bytes_than_the_checkpoint_has() -> None:
    """273 / (32 x 0.5) = 17 tok/s; but attention and head are bf16 in the NVFP4 checkpoint."""
    size = capacity.weights(KIMI, "nvfp4")
    read = bounds.decode_step(KIMI, size, 1, 0).weight_bytes
    quantised = theory.counted(KIMI, size.quantised, active=True)
    assert read == (theory.read_parameters(KIMI) - quantised) * 2 + quantised * 4.5 / 8
    assert bounds.decode_tok_s(KIMI, size, SPARK, 1, 0) == pytest.approx(9.54, abs=0.01)


@given(LEVELS, CONTEXTS, st.sampled_from([1, 2, 4, 8]))
def test_more_in_flight_is_more_together_and_never_more_for_each(
    level: int, context: int, parallel: int
) -> None:
    for model, size in ((KIMI, capacity.weights(KIMI, "nvfp4")), (LLAMA, BF16)):
        now, more = (
            bounds.decode_tok_s(model, size, H100, batch, context, parallel)
            for batch in (level, level + 1)
        )
        assert more >= now * (1 - 1e-9)
        assert more / (level + 1) <= now / level * (1 + 1e-9)


@given(LEVELS, CONTEXTS)
def test_context_costs_devices_help_and_an_estimate_stays_below_its_bound(
    level: int, context: int
) -> None:
    size = capacity.weights(KIMI, "nvfp4")
    here = bounds.decode_tok_s(KIMI, size, H100, level, context)
    assert bounds.decode_tok_s(KIMI, size, H100, level, context + 1000) <= here
    assert bounds.decode_tok_s(KIMI, size, H100, level, context, 8) >= here
    assert bounds.likely_decode_tok_s(KIMI, size, H100, level, context) <= here * (1 + 1e-9)


def test_experts_touched_worked_by_hand() -> None:
    assert bounds.distinct_experts(8, 2, 1) == pytest.approx(2)
    assert bounds.distinct_experts(8, 2, 2) == pytest.approx(8 * (1 - 0.75**2))
    assert bounds.distinct_experts(384, 8, 64) == pytest.approx(284.2, abs=0.1)


@given(st.integers(1, 512), st.integers(1, 8), LEVELS)
def test_experts_touched_are_between_one_tokens_and_all(experts: int, k: int, tokens: int) -> None:
    k = min(k, experts)
    touched = bounds.distinct_experts(experts, k, tokens)
    assert k - 1e-9 <= touched <= min(experts, k * tokens) + 1e-9
    assert touched <= bounds.distinct_experts(experts, k, tokens + 1) + 1e-9


def test_expert_parallelism_shares_only_the_experts_out() -> None:
    size = capacity.weights(KIMI, "nvfp4")
    one = bounds.decode_step(KIMI, size, 4, 1000)
    eight = bounds.decode_step(KIMI, size, 4, 1000, expert_parallel=8)
    routed = size.bytes_of("experts", theory.parts(KIMI, active=True)["experts"])
    assert one.weight_bytes - eight.weight_bytes == pytest.approx(routed * 7 / 8)
    assert (one.kv_bytes, one.flop) == (eight.kv_bytes, eight.flop)


# --- prefill and whole windows --------------------------------------------------------------------


def test_prefill_worked_by_hand() -> None:
    layers, head = theory.parameters(DENSE, active=True), 4096 * 2048
    pairs = 10 * 11 / 2
    attention = 2 * 16 * 16 * 2 * 128 * pairs
    assert bounds.prefill_flop(DENSE, 10) == 2 * layers * 10 + 2 * head + attention
    long = bounds.prefill_s(DENSE, SIZE, ROUND, 4096)
    assert long == pytest.approx(bounds.prefill_flop(DENSE, 4096) / 1e15)
    short = bounds.prefill_s(DENSE, SIZE, ROUND, 1)  # then reading the weights takes longer
    assert short == pytest.approx(2 * theory.read_parameters(DENSE) / 1e12)
    assert bounds.prefill_s(DENSE, SIZE, SPARK, 4096) is None  # no rate for bf16 is stated


def test_sparse_attention_stops_growing_with_the_square() -> None:
    glm = models.load("glm-5")
    dense = glm.model_copy(update={"index_top": None})
    assert bounds.prefill_flop(glm, 2048) == bounds.prefill_flop(dense, 2048)
    top = 2048
    pairs = 65_536 * 65_537 / 2 - (top * (top + 1) / 2 + (65_536 - top) * top)
    saved = bounds.prefill_flop(dense, 65_536) - bounds.prefill_flop(glm, 65_536)
    assert saved == pytest.approx(2 * 78 * 64 * (192 + 64 + 256) * pairs)


@given(st.integers(1, 100_000))
def test_a_longer_prompt_takes_longer(tokens: int) -> None:
    assert bounds.prefill_flop(KIMI, tokens + 1) > bounds.prefill_flop(KIMI, tokens)


@given(LEVELS, st.integers(1, 32_768), st.integers(2, 4096))
def test_a_window_is_bounded_by_its_decoding_and_by_its_prompts(
    level: int, given_tokens: int, made: int
) -> None:
    bound = bounds.serving_tok_s(DENSE, SIZE, H100, level, given_tokens, made)
    # Prefill makes the first token; each other one is decoded beside all before it.
    contexts = [0, *(given_tokens + decoded for decoded in range(1, made))]
    context = sum(contexts) / made
    assert bound <= bounds.decode_tok_s(DENSE, SIZE, H100, level, context) * (1 + 1e-12)
    rate = H100.rate_flop_s("bf16")
    assert rate and bound * bounds.prefill_flop(DENSE, given_tokens) / made <= rate


# --- what parallelism and kernels cost ------------------------------------------------------------


def test_all_reduces_by_the_articles_figures() -> None:
    """5 to 15 us each, 60 layers: 300 to 900 us with one a layer, twice that with two."""
    sixty = KIMI.model_copy(update={"layers": 60})
    assert [bounds.all_reduce_s(sixty, x * 1e-6, 1) for x in (5, 15)] == [
        pytest.approx(300e-6), pytest.approx(900e-6),
    ]  # fmt: skip
    assert bounds.all_reduce_s(sixty, 5e-6) == pytest.approx(600e-6)


def test_an_all_reduce_on_the_wire_worked_by_hand() -> None:
    # 7168 values of 2 bytes, 7/8 of them twice over 25 GB/s
    wire = bounds.all_reduce_wire_s(KIMI, 1, 8, SPARK)
    assert wire == pytest.approx(2 * 7 / 8 * 7168 * 2 / 25e9)
    assert bounds.all_reduce_wire_s(KIMI, 1, 1, SPARK) == 0
    assert bounds.all_reduce_wire_s(KIMI, 1, 8, ROUND) is None


def test_launches_are_taxed_once_in_a_graph() -> None:
    assert bounds.launch_tax_s(60, 10, 5e-6, graphs=False) == pytest.approx(3e-3)
    assert bounds.launch_tax_s(60, 10, 5e-6, graphs=True) == pytest.approx(5e-6)


# --- speculation ----------------------------------------------------------------------------------


def test_speculation_worked_by_hand() -> None:
    """Three drafts at 0.8: 1 + 0.8 + 0.64 + 0.512 = 2.952 tokens in 1.3 steps."""
    assert bounds.tokens_per_round(0.8, 3) == pytest.approx(2.952)
    assert bounds.speculation_speedup(0.8, 3, 0.1) == pytest.approx(2.952 / 1.3)
    assert bounds.speculation_speedup(0.0, 3, 0.1) == pytest.approx(1 / 1.3)
    assert bounds.tokens_per_round(1.0, 3) == 4
    assert bounds.break_even_acceptance(1, 0.25) == pytest.approx(0.25)  # 1 + a = 1.25
    assert bounds.break_even_acceptance(3, 0.0) == 0
    assert math.isnan(bounds.break_even_acceptance(3, 1.0))


@given(st.integers(1, 12), st.floats(0.01, 0.9), st.floats(1.0, 3.0))
def test_speculation_loses_below_its_break_even_and_gains_above(
    drafts: int, cost: float, verify: float
) -> None:
    even = bounds.break_even_acceptance(drafts, cost, verify)
    if math.isnan(even):
        assert bounds.speculation_speedup(1.0, drafts, cost, verify) <= 1
        return
    assert bounds.speculation_speedup(even, drafts, cost, verify) == pytest.approx(1, abs=1e-6)
    assert bounds.speculation_speedup(even * 0.98, drafts, cost, verify) < 1 + 1e-9
    assert bounds.speculation_speedup(min(1.0, even * 1.02), drafts, cost, verify) > 1 - 1e-9


# --- what it is worth -----------------------------------------------------------------------------


def test_both_axes_of_the_trade_off() -> None:
    size = capacity.weights(KIMI, "nvfp4")
    points = bounds.interactivity(KIMI, size, H100, [1, 8, 64], 8192, 8)
    for point in points:
        assert point.tok_s_user * point.batch == pytest.approx(point.tok_s_device * 8)
        assert point.likely_tok_s_user <= point.tok_s_user * (1 + 1e-9)
    assert [point.tok_s_user for point in points] == sorted(
        (point.tok_s_user for point in points), reverse=True
    )


def test_energy_and_price_worked_by_hand() -> None:
    assert bounds.energy_j_per_token(2172, 1785) == pytest.approx(1.2168, abs=1e-4)
    # 8 devices at 2 an hour: 16 an hour; 1 000 tok/s are 3.6 million tokens an hour
    assert bounds.cost_per_million_tokens(2.0, 8, 1000) == pytest.approx(16 / 3.6)


@given(st.floats(0.01, 100), st.integers(1, 64), st.floats(0.1, 1e6))
def test_price_times_tokens_is_what_the_devices_cost(
    price: float, devices: int, tok_s: float
) -> None:
    million = bounds.cost_per_million_tokens(price, devices, tok_s)
    assert million * tok_s * 3600 / 1e6 == pytest.approx(price * devices)
