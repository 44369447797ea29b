"""One launch, whatever happens: the record is true, nothing is lost, no process is left.

The engine here is a stand-in that can be told to go wrong; tests/test_study.py uses the real one.
"""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import psutil
import pytest

from study import budget, engine, experience, frames, platform, same_output, telemetry, validity
from study import plan as planning
from study.client import Client
from study.engine import Command
from study.experiment import Arm
from study.experiments import Architecture, BlockSize
from study.gates import headroom
from study.run import run_experiment
from study.store import Store

pytestmark = pytest.mark.quiet

PASSING = validity.PASSING
FAKE = str(Path(__file__).with_name("fake_engine.py"))
SMALL = {
    "models": ["gqa-dense"],
    "levels": [1, 4],
    "workloads": ["short:16/8"],
    "launches": 1,
    "steady_s": 0.3,
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Path:
    """The stand-in engine in the place of vLLM, in a scratch study."""

    def command(
        arm: Arm, python: str, _: Path, name: str, port: int, seed: int, storage: str
    ) -> Command:
        argv = (python, FAKE, "--port", str(port), "--served-model-name", name)
        return Command(argv, {"FAKE_FAULT": os.environ.get("FAKE_FAULT", "")})

    monkeypatch.setattr(engine, "command", command)
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("fake", "1.0", "cpu"))
    # Whoever runs tests may do other things meanwhile; that no window is void for.
    monkeypatch.setattr(telemetry, "cpu_times", lambda: telemetry.UNKNOWN)
    monkeypatch.setattr(headroom, "LAG_LIMIT_S", math.inf)
    # Nor is one measured twice, so that windows can be counted.
    monkeypatch.setattr(validity, "PASSING", frozenset())
    return scratch


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def run(**parameters: object) -> tuple[Store, frames.Frames, str]:
    experiment = Architecture.of({**SMALL, **parameters})
    store, out = Store(Path(os.environ["STUDY_ROOT"]) / "data/raw"), io.StringIO()
    launches = run_experiment(experiment, store, out)
    return store, frames.read(launches, store), out.getvalue()


def voiding(found: frames.Frames) -> set[str]:
    """The gates by which windows are void."""
    judged = found.judgements
    return set(judged.loc[(judged["verdict"] == "fail") & (judged["scope"] == "window"), "gate"])


def test_a_launch_from_start_to_frames(fake: Path) -> None:
    store, found, said = run()
    launch = found.launches.iloc[0]
    assert (launch["outcome"], launch["reason"], launch["windows"]) == ("measured", "", 2)
    assert list(found.windows["level"]) == [1, 4]
    assert voiding(found) <= PASSING  # a busy machine may drift, and nothing else may be
    failed = found.judgements[found.judgements["verdict"] == "fail"]
    void = found.windows["level"].isin(failed.loc[failed["scope"] == "window", "level"])
    assert list(found.windows["verdict"] == "void") == list(found.windows["reasons"] != "")
    assert list(found.windows["verdict"] == "void") == list(void)
    # 8 tokens, 2 ms apart at least: no stream can be faster
    assert (found.windows["output_tok_s"] <= found.windows["level"] / 0.002).all()
    assert (found.windows["tpot_p50_s"] >= 0.002).all()
    assert "launch 1/1 · block 1/1 · gqa-dense-2 · short:16/8 · level 4 · 1/2 windows" in said
    record = store.attempts()[0].record
    assert record is not None
    assert record["status"] == "ended"
    assert record["in_force"]["max_num_seqs"] == "64"
    known = experience.of_this_machine(store, planning.setup())
    assert (known.launches, known.took_s) == (1, record["wall_s"])


def test_warm_up_and_load_are_kept_apart(fake: Path) -> None:
    store, _, _ = run(levels=[4])
    folder = store.attempts()[0].windows[0]
    content = orjson.loads((folder / "window.json").read_bytes())
    slices = sorted((folder / "warm").glob("*/requests.parquet"))
    assert 2 <= len(slices) == len(content["warm_latencies_s"]) <= 6
    warm, load = (pd.read_parquet(path) for path in (slices[-1], folder / "load/requests.parquet"))
    assert len(pd.read_parquet(slices[0])) == 4
    assert content["after"]["requests_finished"] - content["before"]["requests_finished"] == len(
        load
    )
    assert warm["ended_s"].max() < load["due_s"].min()


def test_a_second_run_measures_nothing(fake: Path) -> None:
    run()
    store, found, said = run()
    assert "all 1 launches are on disk" in said
    assert len(store.attempts()) == 1
    assert len(found.windows) == 2


def test_more_launches_add_only_what_is_missing(fake: Path) -> None:
    run(levels=[1])
    store, found, said = run(levels=[1], launches=2)
    assert "1 launches, 1 windows" in said
    assert len(store.attempts()) == 2
    assert sorted(found.windows["block"]) == [0, 1]


def test_a_refusal_is_an_outcome_and_is_tried_once(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "refuse")
    store, found, _ = run()
    launch = found.launches.iloc[0]
    assert launch["outcome"] == "rejected"
    assert "No common block size" in launch["reason"]
    assert found.windows.empty
    assert len(store.attempts()) == 1


def test_a_crash_at_the_start_is_tried_twice_and_said(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "crash")
    store, found, _ = run()
    assert list(found.launches["outcome"]) == ["failed"]
    assert len(store.attempts()) == 2
    record = store.attempts()[0].record
    assert record is not None
    assert "to run it by hand" in record["error"]


@pytest.mark.parametrize(("after", "where"), [(0, "while it warmed up"), (150, "in a window")])
def test_a_death_under_load_keeps_what_was_measured(
    fake: Path, monkeypatch: pytest.MonkeyPatch, after: int, where: str
) -> None:
    # The warm-up of level 1 takes at most 141 requests, its load would go on until it dies.
    monkeypatch.setenv("FAKE_FAULT", f"die-after={after}")
    store, found, _ = run(steady_s=20.0)
    launch = found.launches.iloc[0]
    assert launch["outcome"] == "failed"
    assert "out of registers" in launch["reason"]
    record = store.attempts()[0].record
    assert record is not None
    assert f"the server died {where}" in record["error"]
    assert launch["windows"] == 0


def test_windows_before_a_death_are_kept(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first window takes at most 160 requests, all three at least 320.
    monkeypatch.setenv("FAKE_FAULT", "die-after=200")
    _, found, _ = run(levels=[1, 2, 4])
    assert list(found.launches["outcome"]) == ["failed"]
    assert 1 <= len(found.windows) < 3


@pytest.mark.parametrize(
    ("fault", "words"), [("mute", "must answer GET /server_info"), ("dies", "out of registers")]
)
def test_an_unanswered_question_fails_the_launch_and_the_study_goes_on(
    fake: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setattr("study.server.DYING_S", 0.1 if fault == "mute" else 5.0)
    monkeypatch.setenv("FAKE_FAULT", fault)
    store, found, _ = run()
    assert list(found.launches["outcome"]) == ["failed"]
    assert words in found.launches["reason"][0]
    assert len(store.attempts()) == 2


def test_a_client_that_died_is_started_again_for_the_next_launch(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is killed for want of memory."""
    from study import run as running

    killed: list[int] = []

    class Dying(Client):
        def run(self, load: Any, into: Path) -> Any:
            if not killed:
                killed.append(self.pid)
                os.kill(self.pid, signal.SIGKILL)
            return super().run(load, into)

    monkeypatch.setattr(running, "Client", Dying)
    store, found, _ = run(levels=[1])
    assert [attempt.outcome for attempt in store.attempts()] == ["failed", "measured"]
    assert "The client process must live" in str(store.attempts()[0].record)
    assert len(found.windows) == 1 and voiding(found) <= PASSING


def test_the_cache_of_a_run_that_was_killed_is_swept_away(fake: Path) -> None:
    left = fake / ".cache" / "kv-left"
    left.mkdir(parents=True)
    (left / "block").write_text("bytes")
    run(levels=[1])
    assert not left.exists()


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from study import engine, platform
from study.engine import Command
from study.experiments import Architecture, BlockSize
from study.run import run_experiment
import test_run
def command(arm, python, folder, name, port, seed, storage):
    argv = (python, test_run.FAKE, "--port", str(port), "--served-model-name", name)
    return Command(argv, {{}})
engine.command = command
platform.engine = lambda: platform.Engine("fake", "1.0", "cpu")
run_experiment(Architecture.of({{**test_run.SMALL, "steady_s": 20.0}}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_anywhere_it_leaves_no_process_and_goes_on(scratch: Path, number: int) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent))
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "level 1" in line:
            break
    time.sleep(1.0)  # in the middle of the window
    family = psutil.Process(running.pid).children(recursive=True)
    assert len(family) >= 3  # guard, engine, client
    os.kill(running.pid, number)
    running.wait(30)
    running.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    attempt = Store(scratch / "data/raw").attempts()[0]
    assert attempt.record is not None
    expected = "interrupted" if number == signal.SIGINT else "started"
    assert attempt.record["status"] == expected
    assert attempt.outcome is None


def test_the_order_is_start_warm_load_stop(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from study import run as running
    from study import window
    from study.server import Server

    order: list[str] = []
    start, stop = Server._start, Server.stop

    class Noting(Client):
        def run(self, load: Any, into: Path) -> Any:
            order.append("/".join(into.parts[into.parts.index("windows") + 1 :]))
            return super().run(load, into)

    monkeypatch.setattr(running, "Client", Noting)
    monkeypatch.setattr(window, "WARM_AGREEMENT", 1.0)

    def noted_start(server: Server) -> None:
        order.append("start")
        start(server)

    def noted_stop(server: Server) -> None:
        order.append("stop")
        stop(server)

    monkeypatch.setattr(Server, "_start", noted_start)
    monkeypatch.setattr(Server, "stop", noted_stop)
    run()
    assert order == [
        "start",
        "00-short-1/warm/0",
        "00-short-1/warm/1",
        "00-short-1/load",
        "01-short-4/warm/0",
        "01-short-4/warm/1",
        "01-short-4/load",
        "stop",
    ]


def test_an_arm_that_runs_something_else_is_overridden(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found, _ = run(max_num_seqs=32)  # the stand-in says 64, whatever it is told
    launch = found.launches.iloc[0]
    assert launch["outcome"] == "overridden"
    assert "max_num_seqs was to be 32, the engine ran 64" in launch["reason"]
    assert set(found.windows["verdict"]) == {"void"}


def test_a_plan_is_made_before_anything_starts(fake: Path) -> None:
    launches = planning.launches(Architecture.of(SMALL), planning.setup())
    assert str(planning.cost(launches)).startswith("1 launches, 2 windows, about ")


def test_prompts_of_ones_own_are_sent_and_their_lengths_checked(fake: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Hello"}\n{"prompt": "Good evening, server"}\n')
    _, found, _ = run(workloads=[f"own:@{path}/8"])
    lengths = found.judgements[found.judgements["gate"] == "lengths_delivered"]
    assert set(lengths["verdict"]) == {"pass"}
    assert set(lengths["limit"]) == {"5 to 20 in, 8 out"}
    assert set(found.windows["input_tokens"]) == {20}


def test_prompts_that_change_while_it_runs_are_not_sent(fake: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Hello"}\n')
    asked = Architecture.of({**SMALL, "workloads": [f"own:@{path}/8"]})
    path.write_text('{"prompt": "Good evening"}\n')
    store = Store(fake / "data/raw")
    launches = run_experiment(asked, store, io.StringIO())
    found = frames.read(launches, store).launches
    assert set(found["outcome"]) == {"failed"}
    assert found["reason"].str.contains("has changed since").all()


def test_fixed_prompts_are_answered_before_the_windows(fake: Path) -> None:
    asked = BlockSize.of({**SMALL, "workloads": ["short:64/8"], "block_sizes": [32]})
    store = Store(fake / "data/raw")
    outputs = same_output.read(run_experiment(asked, store, io.StringIO()), store)
    assert list(outputs["kind"]) == ["prompt", "twin"] * 6
    assert all(outputs["error"] == "") and all(len(one) == 2 for one in outputs["tokens"])
    assert [list(one) for one in outputs["runners_up"][0]] == [[7, -2.0], [4, -3.0]]


def test_with_the_deadline_gone_nothing_is_started(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(budget.DEADLINE, str(time.monotonic() - 1))
    store, found, said = run()
    assert "no time is left" in said
    assert store.attempts() == []
    assert set(found.launches["outcome"]) == {"not measured"}


def test_a_launch_that_fits_is_measured_though_an_earlier_one_does_not(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget.Budget, "allows", lambda _, launch, **__: launch.block == 1)
    _, found, said = run(levels=[1], launches=2)
    assert dict(zip(found.launches["block"], found.launches["outcome"], strict=True)) == {
        0: "not measured",
        1: "measured",
    }
    assert "the budget leaves no time for it" in said


def test_a_search_asks_for_windows_while_the_server_is_up(fake: Path) -> None:
    """The stand-in serves any number at once, so throughput rises up to the ceiling."""
    store, found, said = run(saturated=["gqa-dense"], ceiling=8)
    folders = [folder.name for folder in store.attempts()[0].windows]
    assert folders[:2] == ["00-short-1", "01-short-4"]
    assert list(found.windows["searched"]) == [False, False] + [True] * (len(folders) - 2)
    chosen = list(found.windows["level"])[2:]
    assert chosen[0] == 8 and set(chosen) <= {2, 3, 6, 8}
    assert "level 8 · 2/" in said
    record = store.attempts()[0].record
    assert record is not None
    short = record["search"]["short"]
    assert [level for level, _ in short["seen"]] == list(found.windows["level"])
    assert short["level"] is None and short["why"] == "ceiling reached"
    rows = found.windows.itertuples()
    rates = [row.output_tok_s if row.verdict == "valid" else None for row in rows]
    assert [rate for _, rate in short["seen"]] == rates
    assert len(found.asked().windows) == 2
    assert set(found.asked().judgements["level"]) == {1, 4}


def test_a_void_window_is_void_to_the_search_as_well(fake: Path) -> None:
    """The stand-in says 64 whatever it is told, so the treatment is not in force."""
    store, found, _ = run(saturated=["gqa-dense"], ceiling=8, max_num_seqs=32)
    assert set(found.windows["verdict"]) == {"void"}
    record = store.attempts()[0].record
    assert record is not None
    assert record["search"]["short"]["why"] == "levels above are void"
    assert {rate for _, rate in record["search"]["short"]["seen"]} == {None}
