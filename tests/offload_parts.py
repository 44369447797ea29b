"""Parts of the offload experiment with planted hits, bytes and times."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import stub

from study import theory
from study.chapter import Part
from study.chapters.offload_estimates import COLD, COMPUTED, FILE, MEMORY, OFF
from study.chapters.offload_estimates import RESTORED as BACK
from study.experiments import Offload
from study.frames import Frames
from study.models import Model

PROMPTS, REPEATED, TOKENS = 32, 16, 1024
BLOCK = {"gqa": 128, "mla": 16}
HEADER_BYTES = 88  # of a file; one a prompt and layer
REFUSAL = "Exception: CPU Offloading is only supported on 2 `platforms`"
# Seconds: cold and dropped prompts are computed, or restored; memory is the fastest.
TTFT_S = {COMPUTED: 0.060, BACK: 0.018, MEMORY: 0.012}
DRIFT = 1.1  # a block is this much slower than the one before, in all arms and phases
Cell = tuple[str, str, int, int]
VOID = tuple(("gqa-dense-file", BACK, 1, block) for block in range(3))


def asked(**parameters: object) -> Offload:
    """Apart from the defaults, which may change."""
    small = {"launches": 3, "prompts": PROMPTS, "repeated": REPEATED, "prompt_tokens": TOKENS}
    return Offload.of({**small, "output_tokens": 32, **parameters})


def happened(phase: str, mode: str, attention: str) -> str:
    """What this engine does: it has prefix caching for GQA, and none for MLA."""
    if phase == COLD:
        return COMPUTED
    if phase == MEMORY and attention == "gqa":
        return MEMORY
    return COMPUTED if mode == OFF else BACK


def part(
    experiment: Offload | None = None,
    *,
    rejected: Mapping[str, str] | None = None,
    void: Collection[Cell] = (),
    not_measured: Collection[str] = (),
    changed: Mapping[tuple[str, str], Mapping[str, float]] | None = None,
) -> Part:
    """A part with planted hits, bytes and TTFT. `changed`: columns of an arm's phase."""
    experiment = experiment or asked()
    in_force = {
        arm.name: {
            "prefix_caching": str(arm.model.attention == "gqa"),
            "block_size": str(BLOCK[arm.model.attention]),
            "kv_cache_tokens": str(experiment.held_tokens),
        }
        for arm in experiment.arms()
    }
    found = stub.frames(
        experiment, rejected=rejected, in_force=in_force, void=void, not_measured=not_measured
    )
    windows = found.windows
    if len(windows):
        models = {arm.name: arm.model for arm in experiment.arms()}
        planted = [
            _planted(dict(row), experiment, models[row["arm"]]) for _, row in windows.iterrows()
        ]
        windows = pd.DataFrame(planted)
        for (arm, phase), values in (changed or {}).items():
            here = (windows["arm"] == arm) & (windows["workload"] == phase)
            windows.loc[here, list(values)] = list(values.values())
    frames = Frames(found.launches, windows, found.judgements)
    return stub.part(experiment, frames, stub.outputs(found, _answer, passes=2))


def _planted(row: dict[str, Any], experiment: Offload, model: Model) -> dict[str, Any]:
    source = happened(row["workload"], row["offload"], row["attention"])
    whole = (TOKENS - 1) // BLOCK[row["attention"]] * BLOCK[row["attention"]]
    hits = whole * experiment.repeated
    files = experiment.prompts * model.layers
    stored = whole * experiment.prompts * theory.kv_bytes_per_token(model)
    filed = row["offload"] == FILE
    first = row["workload"] == COLD
    return {
        **row,
        "prefix_hits_tokens": float(hits if source == MEMORY else 0),
        "external_hits_tokens": float(hits if source == BACK else 0),
        "stored_bytes": (stored + files * HEADER_BYTES if first else 0) if filed else np.nan,
        "stored_files": float(files if first else 0) if filed else np.nan,
        "ttft_p50_s": TTFT_S[source] * DRIFT ** row["block"],
    }


def _answer(launch: Any, number: int, prompt: int, kind: str) -> dict[str, Any]:
    """The file mode restores in its second pass."""
    return {
        "tokens": [prompt, 2, 3],
        "logprobs": [-1.0, -2.0, -1.5] if kind == "prompt" else [-3.0, -0.5, -2.5],
        "external_hits_tokens": 512.0 if number and launch.offload == FILE else 0.0,
    }


NATIVES = ("gqa-dense-native", "mla-dense-native")
EVERY_ARM = [arm.name for arm in asked().arms()]


@cache
def case(name: str) -> Part:
    refused = dict.fromkeys(NATIVES, REFUSAL)
    match name:
        case "whole":
            return part(rejected=refused)
        case "void":
            return part(rejected=refused, void=VOID)
        case "one block":
            return part(asked(launches=1, models=["gqa-dense"]), rejected=refused)
        case "no off":
            return part(asked(modes=["file", "native"]), rejected=refused)
        case "everything rejected":
            return part(asked(models=["mla-dense"]), rejected=dict.fromkeys(EVERY_ARM, REFUSAL))
        case "all void":
            phases = (COLD, BACK, MEMORY)
            void = list(product(EVERY_ARM, phases, (1,), range(3)))
            return part(asked(models=["gqa-dense"]), void=void)
        case "nothing":
            return part(not_measured=EVERY_ARM)
    return replace(stub.part(asked(), stub.NOTHING), launches=())


CASES = (
    "whole",
    "void",
    "one block",
    "no off",
    "everything rejected",
    "all void",
    "nothing",
    "no launch",
)
