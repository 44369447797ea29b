"""What arithmetic says of published models and of hardware: against cards, and worked by hand."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from study import capacity, hardware, models, paths, theory
from study.errors import StudyError
from study.models import Model

PUBLISHED = [name for name in models.names() if models.load(name).card]
CHECKPOINTS = [
    (name, weight_format)
    for name in PUBLISHED
    for weight_format, one in models.load(name).checkpoints.items()
    if one.bytes
]
CARD, CHECKPOINT = 0.01, 0.002  # how far arithmetic may be off
KIMI, SPARK, MI355X = models.load("kimi-k2.5"), hardware.load("dgx-spark"), hardware.load("mi355x")


def test_the_models_and_the_hardware_that_were_asked_for_are_there() -> None:
    assert set(PUBLISHED) == {
        *("kimi-k2.5", "deepseek-v3.2", "llama-3.1-405b", "qwen3-vl-235b-a22b", "glm-5")
    }
    assert set(hardware.names()) == {
        *("mi300x", "mi325x", "mi350x", "mi355x", "h100", "h200", "b200", "dgx-spark")
    }


# --- against the cards ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_agree_with_the_card(name: str) -> None:
    model = models.load(name)
    assert model.card and model.source and model.card.source
    total = theory.counted(model, model.card.total_counts, active=False)
    active = theory.counted(model, model.card.active_counts, active=True)
    assert total == pytest.approx(model.card.total, rel=CARD)
    assert active == pytest.approx(model.card.active, rel=CARD)


@pytest.mark.parametrize(("name", "weight_format"), CHECKPOINTS)
def test_bytes_agree_with_the_checkpoint(name: str, weight_format: str) -> None:
    model = models.load(name)
    published = model.checkpoints[weight_format]
    reckoned = capacity.checkpoint_bytes(model, weight_format, published)
    assert reckoned == pytest.approx(published.bytes, rel=CHECKPOINT)


def test_the_checkpoint_of_deepseek_v3_with_its_mtp_layer() -> None:
    """688,586,727,753 bytes by its own index; V3.2 is V3 with an indexer beside the attention."""
    v32 = models.load("deepseek-v3.2")
    v3 = v32.model_copy(update={"index_heads": None, "index_dim": None, "index_top": None})
    with_mtp = v32.checkpoints["fp8"].model_copy(update={"includes_mtp": True})
    reckoned = capacity.checkpoint_bytes(v3, "fp8", with_mtp)
    assert reckoned == pytest.approx(688_586_727_753, rel=CHECKPOINT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_experiment_is_not_offered_a_published_model(name: str) -> None:
    with pytest.raises(StudyError, match=f"can build must be one of gqa-dense, .*was '{name}'"):
        models.synthetic(name)


def test_options_that_a_model_does_not_use_are_no_part_of_a_launchs_identity() -> None:
    """Else every new option would orphan what was measured."""
    dumped = json.loads(models.load("mla-moe").model_dump_json())
    assert set(dumped) == {
        *("name", "description", "attention", "feed_forward", "layers", "width", "heads"),
        *("ffn_width", "vocabulary", "context", "kv_heads", "head_dim", "kv_rank", "rope_dim"),
        *("nope_dim", "value_dim", "experts", "experts_per_token"),
    }
    assert Model(**models.load("glm-5").model_dump()) == models.load("glm-5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense_ffn_width": None}, "dense_layers are those of a mixture"),
        ({"source": ""}, "must say the source"),
        ({"checkpoints": {"fp8": {"quantised": ["heads"], "source": "x"}}}, "checkpoints.fp8"),
    ],
)
def test_a_file_of_a_published_model_says_what_is_wrong(
    change: dict[str, object], message: str
) -> None:
    content = yaml.safe_load((paths.MODELS / "glm-5.yaml").read_text())
    with pytest.raises(StudyError, match=message):
        models.parse("glm-5", yaml.safe_dump({**content, **change}))


# --- hardware -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hardware.names())
def test_every_figure_has_a_source(name: str) -> None:
    device = hardware.load(name)
    assert all(source.startswith("https://") for source in device.sources.values())
    rates = [device.rates_tflop_s.get(rate, 0.0) for rate in ("fp4", "fp8", "bf16")]
    assert [rate for rate in rates if rate] == sorted((r for r in rates if r), reverse=True)
    content = yaml.safe_load((paths.HARDWARE / f"{name}.yaml").read_text())
    del content["sources"]["power_w"]
    with pytest.raises(StudyError, match=r"every figure must have a source.*power_w"):
        hardware.parse(name, yaml.safe_dump(content))


def test_arithmetic_is_never_narrower_than_the_weights() -> None:
    assert MI355X.rate_flop_s("mxfp4") == 10066.3e12
    assert MI355X.rate_flop_s("bf16") == 2516.6e12
    assert hardware.load("h100").rate_flop_s("mxfp4") == 1979e12  # no 4 bits there
    assert SPARK.rate_flop_s("bf16") is None  # nobody states it


def test_unknown_hardware_lists_the_known() -> None:
    with pytest.raises(StudyError, match=r"one of b200, .*Did you mean 'mi355x'"):
        hardware.load("mi355")


# --- the cache ------------------------------------------------------------------------------------


def test_cache_of_published_models_worked_by_hand() -> None:
    assert theory.kv_bytes_per_token(KIMI) == 61 * (512 + 64) * 2
    # and the indexer's key: 128 values of 8 bits, one float for all of them
    assert theory.kv_bytes_per_token(models.load("deepseek-v3.2")) == 61 * (576 * 2 + 128 + 4)
    llama = models.load("llama-3.1-405b")
    assert theory.kv_bytes_per_token(llama) == 126 * 2 * 8 * 128 * 2
    assert theory.kv_bytes_per_token(llama, 1) * 2 == theory.kv_bytes_per_token(llama)


def test_tensor_parallelism_shares_heads_out_and_replicates_what_has_none() -> None:
    qwen = models.load("qwen3-vl-235b-a22b")  # 4 KV heads
    whole = theory.kv_bytes_per_token(qwen)
    each = [theory.kv_bytes_per_token(qwen, tensor_parallel=n) for n in (1, 2, 4, 8)]
    assert each == [whole, whole // 2, whole // 4, whole // 4]
    assert theory.kv_bytes_per_token(KIMI, tensor_parallel=8) == theory.kv_bytes_per_token(KIMI)


def test_sparse_attention_reads_all_keys_of_the_index_and_some_tokens() -> None:
    glm = models.load("glm-5")
    assert theory.kv_bytes_read(glm, 1000) == 1000 * theory.kv_bytes_per_token(glm)
    assert theory.kv_bytes_read(glm, 10_000) == 78 * (2048 * 1152 + 10_000 * 132)
    assert theory.kv_bytes_read(KIMI, 10_000) == 10_000 * 70_272


# --- what fits ------------------------------------------------------------------------------------


def test_bytes_of_a_weight_by_format() -> None:
    """A million weights: 8 bits of scale for 32 values (MXFP4), for 16 (NVFP4)."""
    assert capacity.BITS["mxfp4"] == 4 + 8 / 32
    assert capacity.BITS["nvfp4"] == 4 + 8 / 16
    llama = models.load("llama-3.1-405b")
    all_of_it = theory.counted(llama, ("attention", "dense"), active=False)
    left = theory.counted(llama, ("embedding", "head"), active=False)
    assert capacity.weights(llama, "nvfp4").bytes == all_of_it * 4.5 / 8 + left * 2
    with pytest.raises(StudyError, match=r"a format must be one of bf16, .*'fp5'"):
        capacity.weights(llama, "fp5")


def test_how_many_sparks() -> None:
    size = capacity.weights(KIMI, "nvfp4")
    assert size.bytes == 591e9
    assert capacity.devices_by_capacity(size, SPARK) == 5  # 591 / 128 = 4.6
    usable = capacity.devices_by_capacity(size, SPARK, capacity.USABLE_SHARE)
    assert usable == 6  # 591 / 115.2 = 5.1
    assert capacity.devices_by_divisibility(KIMI, usable) == 8  # 64 heads
    assert capacity.devices_by_experts(KIMI, size, SPARK, 1.0) == 6  # 384 experts, nominal
    assert capacity.devices_by_experts(KIMI, size, SPARK) == 8


def test_one_instance_does_not_fit_one_mi355x() -> None:
    for weight_format in KIMI.checkpoints:
        size = capacity.weights(KIMI, weight_format)
        assert size.bytes > MI355X.memory_bytes
    size = capacity.weights(KIMI, "mxfp4")
    laid = capacity.topologies(KIMI, size, MI355X, 8, 32_768)
    assert min(one.devices for one in laid) == 4
    four = next(one for one in laid if (one.kind, one.devices) == ("tensor", 4))
    assert four.replicas == 2
    room = MI355X.memory_bytes * 0.9 - size.bytes / 4
    assert four.kv_tokens == int(room // 70_272) and four.requests == four.kv_tokens // 32_768


@given(
    st.sampled_from(models.names()),
    st.sampled_from(sorted(capacity.BITS)),
    st.sampled_from(hardware.names()),
    st.integers(1, 64),
)
def test_a_layout_holds_what_it_says(
    name: str, weight_format: str, device_name: str, devices: int
) -> None:
    model, device = models.load(name), hardware.load(device_name)
    size = capacity.weights(model, weight_format)
    for one in capacity.topologies(model, size, device, devices, 1024):
        ranks = one.devices if one.kind == "expert" else 1  # each with requests of its own
        held = one.kv_tokens * one.kv_bytes_per_token / ranks
        usable = device.memory_bytes * capacity.USABLE_SHARE
        assert one.weight_bytes_per_device + held <= usable * (1 + 1e-12)
        assert one.devices * one.replicas == devices
        heads = model.heads if one.kind == "tensor" else model.experts
        assert heads and heads % one.devices == 0


@given(st.sampled_from(models.names()), st.integers(1, 256))
def test_divisibility_gives_whole_heads(name: str, at_least: int) -> None:
    model = models.load(name)
    devices = capacity.devices_by_divisibility(model, at_least)
    if devices is None:
        assert at_least > model.heads
        return
    assert devices >= at_least and model.heads % devices == 0
    kv = model.kv_heads or model.heads
    assert kv % devices == 0 or devices % kv == 0 or model.attention == "mla"
