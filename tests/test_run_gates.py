"""Gates through a whole launch: the stand-in engine is told to go wrong, and the window is void."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import pandas as pd
import pytest
from test_run import SMALL as SMALL_ONE
from test_run import fake, nothing_is_left, run  # noqa: F401  (fixtures)

from study import frames, plan, telemetry
from study.experiments import Architecture
from study.telemetry import COLUMNS

pytestmark = pytest.mark.quiet

ONE = {"levels": [2]}


def of_gate(found: frames.Frames, gate: str) -> pd.Series:
    return found.judgements[found.judgements["gate"] == gate].iloc[0]


@pytest.mark.parametrize(
    ("fault", "gate", "words"),
    [
        ("compile-after=0", "warm", "JIT compilation during inference"),
        ("hits=8", "cache_temperature", "hit in memory"),
        ("slowing", "warm", "did not come to rest"),
    ],
)
def test_an_engine_that_is_not_warm_or_too_warm_voids_its_windows(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    gate: str,
    words: str,
) -> None:
    monkeypatch.setenv("FAKE_FAULT", fault)
    _, found, _ = run(**ONE)
    assert list(found.windows["verdict"]) == ["void"]
    judged = of_gate(found, gate)
    assert judged["verdict"] == "fail" and words in judged["text"]
    assert words in found.windows["reasons"][0]


def test_the_same_engine_without_a_flaw_is_warm_and_its_cache_is_cold(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "compile-after=1000000")
    store, found, _ = run(**ONE)
    for gate in ("warm", "cache_temperature", "conservation", "times", "not_repeated"):
        assert of_gate(found, gate)["verdict"] == "pass", of_gate(found, gate)["text"]
    folder = store.attempts()[0].windows[0]
    looks = pd.read_parquet(folder / "telemetry.parquet")
    load = orjson.loads((folder / "window.json").read_bytes())["load"]
    assert list(looks.columns) == list(COLUMNS)
    assert looks["time_s"].iloc[0] < load["started_s"] < load["ended_s"] < looks["time_s"].iloc[-1]
    assert looks["own_s"].is_monotonic_increasing


@pytest.mark.parametrize("cores_s", [5.0, 0.0])
def test_somebody_elses_work_on_this_machine_voids_the_window(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    cores_s: float,
) -> None:
    """Five of eight cores are busy, of which the study can have kept no more than two or three."""

    def cpu_times() -> dict[str, float]:
        return {"cores": 8.0, "busy_s": cores_s * time.monotonic(), "steal_s": 0.0}

    monkeypatch.setattr(telemetry, "cpu_times", cpu_times)
    _, found, _ = run(**ONE)
    judged = of_gate(found, "machine_quiet")
    assert judged["verdict"] == ("fail" if cores_s else "pass")
    assert (judged["text"] in found.windows["reasons"][0]) is bool(cores_s)
    assert found.windows["verdict"][0] == "void" or not cores_s


def test_a_window_recorded_before_there_was_more_is_judged_by_what_it_has(
    fake: Path,  # noqa: F811
) -> None:
    store, _, _ = run(**ONE)
    folder = store.attempts()[0].windows[0]
    content = orjson.loads((folder / "window.json").read_bytes())
    del content["log_bytes"], content["plan"]["phase"]
    (folder / "window.json").write_bytes(orjson.dumps(content))
    (folder / "telemetry.parquet").unlink()
    asked = Architecture.of({**SMALL_ONE, **ONE})
    found = frames.read(plan.launches(asked, plan.setup()), store)
    for gate in ("warm", "cache_temperature", "machine_quiet"):
        assert of_gate(found, gate)["verdict"] == "cannot judge"


def test_a_recording_that_is_there_twice_counts_once(fake: Path) -> None:  # noqa: F811
    """As when a folder was copied by hand to fill a gap."""
    store, _, _ = run(levels=[1, 2])
    first, second = store.attempts()[0].windows
    for name in ("requests.parquet", "chunks.parquet", "info.json"):
        (second / "load" / name).write_bytes((first / "load" / name).read_bytes())
    asked = Architecture.of({**SMALL_ONE, "levels": [1, 2]})
    found = frames.read(plan.launches(asked, plan.setup()), store)
    twice = found.judgements[found.judgements["gate"] == "not_repeated"]
    assert list(twice["verdict"]) == ["pass", "fail"]
    assert first.name in twice["text"].iloc[1]
