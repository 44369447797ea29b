"""The calibration: what it finds is what was planted, it is kept whole or not at all."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import orjson
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import calibrate as calibrating
from study import calibration, nullloads, plan, platform, protocol, truth
from study.calibrate import calibrate
from study.client import Client, Load
from study.nullloads import LOAD_S, Grid, NullLoad
from study.nullserver import serve, stats
from study.store import FORGIVEN, Store, write_json
from study.truth import Claims

pytestmark = pytest.mark.quiet

TINY = Grid((2,), (2.0,))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Store:
    """A scratch store, a stand-in for the engine, and a ramp of one short load."""
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("fake", "1.0", "cpu"))
    monkeypatch.setattr(nullloads, "RAMP_ITLS_MS", (8.0,))
    monkeypatch.setattr(nullloads, "RAMP_LEVEL", 4)
    monkeypatch.setattr(nullloads, "LOAD_S", 0.2)
    return Store(scratch / "data/raw")


def claims(late_s: float = 0.0, waves: int = 400) -> Claims:
    """Requests one after the other; the client notes every token `late_s` after its write."""
    received_s = np.arange(waves)[:, None] * 0.1
    written_s = received_s + 0.02 + 0.005 * np.arange(8)
    told_s = np.concatenate([received_s, written_s], axis=1)
    ttft_s = written_s[:, 0] + late_s - received_s[:, 0]
    return Claims("study", written_s[:, 0] + late_s, ttft_s, np.diff(written_s), told_s, 0, 0.1)


def test_a_planted_error_comes_back_and_none_is_none() -> None:
    said = {"tick_late_p99_ms": 1.0}
    good, late = truth.errors(claims(), said), truth.errors(claims(0.012), said)
    assert good["ttft_error_median_ms"] == pytest.approx(0, abs=1e-6)
    assert good["in_flight_mean"] == pytest.approx(0.055 / 0.1, rel=0.05)
    assert not truth.untrue(good)
    assert late["ttft_error_median_ms"] == pytest.approx(12)
    assert late["ttft_error_p99_ms"] == pytest.approx(12)
    assert truth.untrue(late)
    assert truth.untrue(truth.errors(claims(), {"tick_late_p99_ms": 11.0}))


def test_gaps_read_too_long_or_too_short_are_errors() -> None:
    good = claims()
    wrong = replace(good, gaps_s=good.gaps_s + np.resize([0.002, -0.002], good.gaps_s.shape))
    assert truth.errors(wrong, {"tick_late_p99_ms": 0})["itl_error_median_ms"] == pytest.approx(2)


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(2, 50), min_size=1, max_size=4, unique=True),
)
def test_every_level_meets_every_itl_long_enough(levels: list[int], itls_ms: list[float]) -> None:
    grid = Grid(tuple(levels), tuple(itls_ms))
    loads = list(grid.loads())
    assert {(load.level, load.itl_ms) for load in loads} == {
        (level, itl) for level in levels for itl in itls_ms
    }
    assert all(load.waves * load.latency_s >= LOAD_S for load in loads)
    rates = [load.chunks_per_s for load in grid.ramp()]
    assert rates == sorted(rates)
    assert grid.expected_s > sum(load.waves * load.latency_s for load in loads)


def test_it_is_measured_once_and_read_back(store: Store) -> None:
    said = io.StringIO()
    found = calibrate(TINY, store, said)
    points = found.points
    assert list(found.counted["kind"]) == ["grid", "ramp"]  # on a busy machine each in some tries
    first = found.counted.iloc[0]
    assert (first["level"], first["failed"]) == (2, 0)
    assert first["in_flight_mean"] == pytest.approx(2, rel=0.05)
    assert first["chunks_per_s"] == pytest.approx(first["asked_per_s"], rel=0.1)
    assert 0 < first["ttft_added_median_ms"] < first["ttft_error_median_ms"] < 5
    assert np.isnan(first["ttft_error_p99_ms"])  # of a handful of requests
    assert found.shared  # on a CPU engine client and API server have one core
    again = calibrate(TINY, store, said)
    assert again.points.equals(points)
    assert "on disk" in said.getvalue()
    assert len(list(store.folder.glob("calibration-*"))) == 1


@pytest.mark.parametrize(
    ("safe_per_s", "itls_ms"),
    [
        (1e9, [16, 8, 4, 2.8, 2, 1.4]),
        (40_000, [16, 8, 4, 4]),
        (10_000, [16, 16, 32]),
        (5_000, [16, 16, 32, 32, 64]),
        (0, [16, 16, 32, 32, 64, 64]),
    ],
)
def test_the_ramp_goes_up_until_it_breaks_twice_and_down_where_it_never_held(
    safe_per_s: float, itls_ms: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[float] = []

    def keep(load: NullLoad, *_: object) -> bool:
        if load.kind == "ramp":
            seen.append(load.itl_ms)
        return load.chunks_per_s <= safe_per_s

    monkeypatch.setattr(calibrating, "_keep", keep)
    monkeypatch.setattr(calibrating, "one_load", lambda *_: {})
    calibrating._loads(TINY, cast(Client, None), [0], tmp_path)
    assert seen == itls_ms


def test_a_load_of_the_grid_that_was_spoiled_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = iter([False, True, True, *[True] * 9])
    seen: list[float] = []

    def keep(load: NullLoad, *_: object) -> bool:
        seen.append(load.itl_ms)
        return next(answers)

    monkeypatch.setattr(calibrating, "_keep", keep)
    monkeypatch.setattr(calibrating, "one_load", lambda *_: {})
    calibrating._loads(Grid((1,), (20.0, 5.0)), cast(Client, None), [0], tmp_path)
    assert seen[:3] == [20.0, 20.0, 5.0] and seen[3] == nullloads.RAMP_ITLS_MS[0]


def test_what_did_not_keep_the_pace_is_calibrated_anew_where_that_is_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calibration._point
    spoiled = {"held": False, "true": False}
    monkeypatch.setattr(nullloads, "GENTLER_ITLS_MS", ())
    monkeypatch.setattr(calibration, "_point", lambda path: real(path) | spoiled)
    assert not calibrate(TINY, store, io.StringIO()).counted["held"].any()
    monkeypatch.setattr(calibration, "_point", real)
    assert not calibrate(TINY, store, said := io.StringIO()).counted["held"].any()
    assert "on disk" in said.getvalue()
    monkeypatch.setenv(FORGIVEN, "9999")
    found = calibrate(TINY, store, io.StringIO())
    assert len(list(store.folder.glob("calibration-*"))) == 2
    assert list(found.counted["kind"]) == ["grid", "ramp"]
    assert len(found.points) > 2 and found.counted.iloc[0]["held"]
    assert calibration.is_done(TINY, plan.setup(), store)
    spoiled_one = min(store.folder.glob("calibration-*"), key=lambda path: len(path.name))
    shutil.rmtree(spoiled_one)
    next_one = calibration.new_folder(TINY, plan.setup(), store)
    assert next_one.name == f"{spoiled_one.name}.3"  # never one that is there


def test_it_holds_for_one_client_one_machine_and_these_cores(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(TINY, store, io.StringIO())
    setup = plan.setup()
    assert calibration.read(setup, store) is not None
    other = {**setup, "machine": {**setup["machine"], "cores": 99}}
    assert calibration.read(other, store) is None
    monkeypatch.setattr(protocol, "digest", lambda *_: "another client")
    assert calibration.read(setup, store) is None
    assert not calibration.is_done(TINY, setup, store)


def test_a_load_of_which_nothing_completed_is_not_true(store: Store) -> None:
    path = store.folder / "00"
    nobody = "http://127.0.0.1:9"
    load = Load(nobody, "null", 8, 8, 1000, concurrency=2, requests=4, keep_text=True)
    with Client() as client:
        client.run(load, path)
    point = {"load": asdict(next(TINY.loads())), "stats": {"tick_late_p99_ms": 0.1}}
    write_json(path / calibration.POINT, point)
    assert not calibration.is_true(path)


def test_what_was_interrupted_is_repeated_and_never_half_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = calibrating.one_load, []

    def stopped(*arguments: object) -> dict[str, float]:
        seen.append(arguments)
        if len(seen) == 3:  # the warm-up and one load are done
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrating, "one_load", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrate(TINY, store, io.StringIO())
    assert not list(store.folder.glob("*calibration-*"))
    assert calibration.read(plan.setup(), store) is None
    killed = store.folder / ".calibration-left"
    killed.mkdir()
    (killed / "00").mkdir()
    monkeypatch.setattr(calibrating, "one_load", real)
    calibrate(TINY, store, io.StringIO())
    assert not killed.exists()
    content = orjson.loads(next(store.folder.glob("calibration-*/calibration.json")).read_bytes())
    assert content["budget"]["client"] == protocol.digest(calibration.CLIENT)


def test_launches_are_not_confused_by_it(store: Store) -> None:
    calibrate(TINY, store, io.StringIO())
    assert store.attempts() == []


HELD = """
import time
from study.nullserver import serve
with serve() as base_url:
    print(base_url, flush=True)
    time.sleep(60)
"""


def test_a_null_server_ends_with_the_process_that_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("http")
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(children) == 1
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_null_server_is_asked_directly_where_there_is_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies it began with
    with serve() as base_url:
        assert stats(base_url)
