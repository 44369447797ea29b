"""The real engine: one small experiment from the shell to the frames, a refusal, a death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import studies

from study import estimates, frames, platform, theory
from study.experiments import Architecture
from study.progress import Progress
from study.run import run_experiment
from study.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SMALL = {"models": ["mla-moe"], "levels": [1, 4], "workloads": ["short:64/32"], "launches": 1}


def words() -> list[str]:
    """The small experiment as it is typed."""
    return [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scratch study whose one launch was measured by the notebook, run from the shell."""
    folder = studies.empty(tmp_path_factory.mktemp("study"))
    answer = subprocess.run(
        [sys.executable, "-m", "study", "run", "20_architecture", *words()],
        env={**os.environ, "STUDY_ROOT": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert "launch 1/1 · block 1/1 · mla-moe-2 · short:64/32 · level 4" in answer.stdout
    yield folder


def found(root: Path) -> frames.Frames:
    from study import plan

    launches = plan.launches(Architecture.of(SMALL), plan.setup())
    return frames.read(launches, Store(root / "data/raw"))


def test_the_engine_is_measured_and_says_what_is_in_force(root: Path) -> None:
    launch = found(root).launches.iloc[0]
    assert launch["outcome"] == "measured"
    assert launch["model_class"] == "DeepseekV3ForCausalLM"
    model = Architecture.of(SMALL).arms()[0].model
    assert launch["kv_bytes_per_token"] == str(theory.kv_bytes_per_token(model))
    if platform.engine().kind == "cpu":
        amx = "amx_tile" in platform.machine().instructions
        assert launch["attention_backend"] == ("AMX_MLA" if amx else "CPU_MLA")
        assert launch["block_size"] == ("128" if amx else "16")


def test_its_windows_are_judged_by_every_gate(root: Path) -> None:
    frame = found(root)
    assert list(estimates.first_tries(frame)["level"]) == [1, 4]
    of_window = frame.judgements[frame.judgements["scope"] == "window"]
    gates = of_window.groupby(["level", "again"])["gate"].agg(list)
    assert all(len(names) == len(set(names)) == 13 for names in gates)
    exact = frame.judgements[frame.judgements["gate"].isin(["lengths_delivered", "errors"])]
    assert set(exact["verdict"]) == {"pass"}
    assert (frame.windows["output_tok_s"] > 10).all()


def test_the_client_and_the_engine_count_the_same(root: Path) -> None:
    """To the request and the token; times are for the gates to judge."""
    import orjson
    import pandas as pd

    for folder in Store(root / "data/raw").attempts()[0].windows:
        content = orjson.loads((folder / "window.json").read_bytes())
        requests = pd.read_parquet(folder / "load/requests.parquet")
        chunks = pd.read_parquet(folder / "load/chunks.parquet")
        before, after = content["before"], content["after"]
        delta = {name: after[name] - before[name] for name in after}
        assert delta["requests_finished"] == len(requests)
        assert delta["output_tokens"] == requests["output_tokens"].sum() == chunks["tokens"].sum()
        assert delta["input_tokens"] == requests["input_tokens"].sum()


def test_the_notebook_left_figures_tables_and_no_secret(root: Path) -> None:
    figure = root / "figures/20_architecture-throughput"
    assert all(figure.with_suffix(suffix).stat().st_size > 0 for suffix in (".svg", ".png", ".csv"))
    assert list((root / "data/derived").glob("*.csv"))
    text = "".join(path.read_text() for path in root.glob("data/raw/*/record.json"))
    assert "VLLM_API_KEY" not in text


def test_running_it_again_measures_nothing(root: Path) -> None:
    before = sorted(path.name for path in (root / "data/raw").iterdir())
    began = time.monotonic()
    run_experiment(Architecture.of(SMALL), Store(root / "data/raw"))
    assert time.monotonic() - began < 5
    assert sorted(path.name for path in (root / "data/raw").iterdir()) == before


def test_ctrl_c_stops_the_server_and_says_how_to_go_on(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "study", "run", "20_architecture", *words(), "steady_s=60.0"],
        env={**os.environ, "STUDY_ROOT": str(studies.empty(tmp_path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "level 1" in line:
            break
    time.sleep(4.0)  # in the middle of the window
    family = psutil.Process(running.pid).children(recursive=True)
    assert any("vllm" in " ".join(one.cmdline()) for one in family)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "run the same command to go on" in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    attempt = Store(tmp_path / "data/raw").attempts()[0]
    assert attempt.record is not None
    assert attempt.record["status"] == "interrupted"


def test_an_engine_that_dies_in_a_window_is_said_and_leaves_nothing(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from study import store as storing

    monkeypatch.setattr(storing, "MAX_ATTEMPTS", 1)
    entered = threading.Event()
    monkeypatch.setattr(Progress, "window", lambda *_: entered.set())

    def kill() -> None:
        entered.wait(300)
        time.sleep(2.0)
        for process in psutil.Process().children(recursive=True):
            if "EngineCore" in process.name() or "EngineCor" in " ".join(process.cmdline()):
                process.kill()

    threading.Thread(target=kill, daemon=True).start()
    store = Store(scratch / "data/raw")
    launches = run_experiment(Architecture.of({**SMALL, "steady_s": 30.0}), store)
    launch = frames.read(launches, store).launches.iloc[0]
    assert launch["outcome"] == "failed"
    assert launch["reason"]
    assert not [one for one in psutil.Process().children(recursive=True) if one.is_running()]
