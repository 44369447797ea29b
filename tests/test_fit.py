"""`python -m study fit`: what it answers, in text and as JSON, and how it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import bounds, capacity, fit, hardware, models
from study.__main__ import main

SPARK = ["fit", "--model", "kimi-k2.5", "--hardware", "dgx-spark"]
KEYS = [
    *("weights_gb", "kv_bytes_per_token", "devices_by_capacity_nominal"),
    *("devices_by_capacity_usable", "devices_by_divisibility", "fits_one_device"),
    *("topologies", "bounds"),
]


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("more", [[], ["--format", "nvfp4"]])
def test_how_many_sparks_do_i_need(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    found = asked(capsys, *SPARK, *more)
    assert list(found) == KEYS
    assert (found["weights_gb"], found["kv_bytes_per_token"]) == (591.0, 70_272)
    devices = [found[f"devices_by_{how}"] for how in ("capacity_nominal", "capacity_usable")]
    assert [*devices, found["devices_by_divisibility"]] == [5, 6, 8]
    assert found["fits_one_device"] is False
    assert {(one["kind"], one["devices"]) for one in found["topologies"]} == {
        *(("tensor", 8), ("expert", 8))
    }


def test_one_instance_on_one_mi355x(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "fit", "--model", "kimi-k2.5", "--hardware", "mi355x")
    assert found["fits_one_device"] is False
    assert found["weights_gb"] > 288 and found["devices_by_capacity_nominal"] == 2
    small = asked(capsys, "fit", "--model", "gqa-dense-1b", "--hardware", "mi355x")
    assert small["fits_one_device"] is True


def test_more_requests_are_more_together_and_a_longer_context_holds_fewer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = asked(capsys, *SPARK, "--concurrency", "1", "--context", "8192")
    many = asked(capsys, *SPARK, "--concurrency", "16", "--context", "8192")
    long = asked(capsys, *SPARK, "--concurrency", "1", "--context", "65536")
    assert many["bounds"]["decode_tok_s"] > few["bounds"]["decode_tok_s"]
    assert long["topologies"][0]["requests"] < few["topologies"][0]["requests"]
    assert long["bounds"]["ttft_s"] > few["bounds"]["ttft_s"]


def test_the_arithmetic_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SPARK) == 0
    text = capsys.readouterr().out
    for step in (
        "591.0 / 128 GB = 4.62 -> 5",
        "591.0 / (0.9 x 128) GB = 5.13 -> 6",
        "8: 64 heads / 8 = 8 a device",
        "one instance on one device: no",
    ):
        assert step in text
    assert main(["fit", "--model", "qwen3-vl-235b-a22b", "--hardware", "h200"]) == 0
    assert "shared out over up to 4 devices" in capsys.readouterr().out


@given(st.sampled_from(["deepseek-v3.2", "kimi-k2.5"]), st.integers(1, 10**7))
def test_with_experts_shared_out_a_request_lies_whole_on_one_device(
    name: str, context: int
) -> None:
    model, device = models.load(name), hardware.load("mi355x")
    size = capacity.weights(model, capacity.usual_format(model, device))
    laid = capacity.topologies(model, size, device, 8, context)
    for one in (one for one in laid if one.kind == "expert"):
        assert one.requests == one.kv_tokens // one.devices // context * one.devices


@given(st.sampled_from(["gqa-dense-1b", "kimi-k2.5"]), st.integers(1, 40))
def test_replicas_decode_each_at_their_own_pace(name: str, concurrency: int) -> None:
    """The bound of all is the sum of what each could do alone with its even share."""
    model, device, context = models.load(name), hardware.load("mi355x"), 32_768
    size = capacity.weights(model, capacity.usual_format(model, device))
    laid = fit.fit(model, device, size, context, concurrency).topologies
    for one in (one for one in laid if one.kind == "tensor"):
        shares = [len(range(i, concurrency, one.replicas)) for i in range(one.replicas)]
        alone = (model, size, device)
        expected = sum(
            bounds.decode_tok_s(*alone, share, context, one.devices) for share in shares if share
        )
        assert one.decode_tok_s == pytest.approx(expected)


def test_a_model_too_large_for_all_its_heads_has_no_bounds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = hardware.load("h100").model_copy(update={"memory_gb": 1.0})
    monkeypatch.setattr("study.hardware.load", lambda _: tiny)
    found = asked(capsys, "fit", "--model", "llama-3.1-405b", "--hardware", "h100")
    assert found["devices_by_divisibility"] is None and found["bounds"] == {}
    assert main(["fit", "--model", "llama-3.1-405b", "--hardware", "h100"]) == 0
    assert "128 heads are fewer than the devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "kimi", "--hardware", "h100"], "one of deepseek-v3.2, .*mean 'kimi-k2.5'"),
        (["--model", "glm-5", "--hardware", "b20"], "hardware must be one of b200, .*mean 'b200'"),
        (["--model", "glm-5", "--hardware", "b200", "--format", "fp6"], "one of bf16, fp8, int4"),
    ],
)
def test_unknown_names_list_the_known(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    import re

    assert main(["fit", *words]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_count_that_cannot_be_is_a_wrong_call(value: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*SPARK, "--concurrency", value])
    assert raised.value.code == 2
