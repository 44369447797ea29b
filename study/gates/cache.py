"""Where prompts' KV cache came from, and where it was meant to come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from study.gates.evidence import WindowEvidence
from study.gates.judgement import Judgement, Verdict
from study.steady import completed

Source = Literal["computed", "memory", "restored", "mixed"]

NEARLY = 0.95  # of the tokens that can be reused, to say that they were: the tolerance of a level


def came_from(memory_tokens: float, restored_tokens: float, reusable_tokens: float) -> Source:
    """Where the reusable part of the prompts came from, by the engine's hits in tokens."""
    enough = NEARLY * reusable_tokens
    if memory_tokens + restored_tokens <= reusable_tokens - enough:
        return "computed"
    if memory_tokens >= enough:
        return "memory"
    return "restored" if restored_tokens >= enough else "mixed"


def meant(phase: str, restores: bool, caches: bool) -> Source:
    """What a phase means, where a connector `restores` and a prefix cache `caches`, or not."""
    if phase == "cold":
        return "computed"
    if phase == "memory" and caches:
        return "memory"
    return "restored" if restores else "computed"


Tokens = TypeVar("Tokens", float, pd.Series)


def reusable(input_tokens: Tokens, block_size: Tokens) -> Tokens:
    """Tokens of a prompt in whole blocks; its last token is always computed."""
    return (input_tokens - 1) // block_size * block_size


def cache_temperature(seen: WindowEvidence) -> Judgement:
    """Prompts meet the cache that the workload means: fresh ones not a single hit, those that
    come back hits for nearly all that can be reused, from memory or restored."""

    def judge(verdict: Verdict, observed: float | str, limit: str, text: str) -> Judgement:
        return Judgement("cache_temperature", "window", verdict, observed, limit, text)

    restores, caches = _in_force(seen.in_force)
    memory, restored = seen.counted("prefix_hits_tokens"), seen.counted("external_hits_tokens")
    restored = 0.0 if math.isnan(restored) and not restores else restored
    if seen.phase is None or math.isnan(memory + restored):
        text = "The engine's cache hits, or what the window means, are not on record."
        return judge("cannot judge", math.nan, "as the workload means", text)
    said = f"{memory:,.0f} tokens hit in memory, {restored:,.0f} were restored"
    if seen.phase == "cold":
        verdict: Verdict = "fail" if memory + restored > 0 else "pass"
        text = f"Every prompt is new to the cache: {said}."
        return judge(verdict, memory + restored, "0 tokens", text)
    most = _reusable_tokens(seen)
    if math.isnan(most):
        text = f"Prompts came back: {said}; of how many is not known."
        return judge("cannot judge", math.nan, "as the workload means", text)
    wanted, found = meant(seen.phase, restores, caches), came_from(memory, restored, most)
    text = f"Prompts came back, to be {wanted}: {said}, of {most:,.0f} that can be reused."
    return judge("pass" if found == wanted else "fail", found, wanted, text)


def _in_force(in_force: Mapping[str, str | None]) -> tuple[bool, bool]:
    return in_force.get("kv_connector") is not None, in_force.get("prefix_caching") == "True"


def _reusable_tokens(seen: WindowEvidence) -> float:
    """Over all completed requests; NaN where the engine did not say its block size."""
    block_size = seen.in_force.get("block_size")
    if block_size is None:
        return math.nan
    lengths = np.atleast_1d(np.asarray(seen.input_tokens, dtype=np.float64))
    numbers = seen.requests.loc[completed(seen.requests), "request"].to_numpy()
    asked = lengths[numbers % len(lengths)]
    return float(sum(reusable(tokens, float(block_size)) for tokens in asked))
