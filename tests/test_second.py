"""The second instrument: called as it should be, its words kept, its file read by the referee."""

from __future__ import annotations

import io
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from audit_results import closed_loop

from study import agreement, engine, platform, second, validity
from study.agreement import COMPARISONS
from study.audit import formats as audit_files
from study.engine import Command
from study.experiment import Arm
from study.experiments import Instrument
from study.plan import Launch, launches
from study.run import run_experiment
from study.server import Server
from study.store import Store

pytestmark = pytest.mark.quiet

FAKE = str(Path(__file__).with_name("fake_engine.py"))
SETUP: dict[str, Any] = {"engine": {"kind": "cpu"}, "packages": {}, "machine": {}}
SMALL = {"workloads": ["short:64/16"], "launches": 1, "steady_s": 0.5}
SERVER = cast(Server, SimpleNamespace(base_url="http://h:1", name="m", api_key="k"))
# Our own load generator writes the same format: a second instrument that is there in any test.
STAND_IN = """
import sys
from study import load, second
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(second.BEFORE, "{}")
sys.argv[1:] = [
    "--base-url", words["--base-url"], "--model", words["--model"],
    "--concurrency", words["--max-concurrency"], "--requests", words["--num-prompts"],
    "--input-tokens", words["--random-input-len"], "--output-tokens", words["--random-output-len"],
    "--save", words["--result-dir"] + "/" + words["--result-filename"],
]
import argparse
parser = argparse.ArgumentParser()
load.add_arguments(parser)
code = load.main(parser.parse_args())
print(second.CPU, 1.25)
sys.exit(code)
"""
PASSING = validity.PASSING
LACKING = "raise ImportError('Please install vllm[bench] for bench support')"
Calls = Callable[[str], None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Another program in the place of the tool."""

    def program(text: str) -> None:
        def command(options: Mapping[str, object], cpus: Sequence[int], warm: bool) -> list[str]:
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            return [sys.executable, "-c", text, *words]

        monkeypatch.setattr(second, "command", command)

    return program


def one(index: int = 0, block: int = 0) -> dict[str, object]:
    asked = Instrument.of({"levels": [1, 4], "second_levels": [1, 4], "launches": 2})
    found = [launch for launch in launches(asked, SETUP) if launch.block == block]
    window = found[0].arm.windows[index]
    return second.arguments(found[0], index, window, SERVER, 40, Path("there"))


def test_it_gets_the_load_of_the_window_and_prompts_of_its_own() -> None:
    asked = one(index=1)
    assert (asked["max-concurrency"], asked["num-prompts"]) == (4, 40)
    assert (asked["random-input-len"], asked["random-output-len"]) == (128, 64)
    seeds = {one(index, block)["seed"] for index in range(4) for block in range(2)}
    assert len(seeds) == 8
    words = second.command(asked, [1, 2], warm=True)
    assert words[1:5] == ["-m", "study.second", "1,2", "warm"]
    assert {"--ignore-eos", "--save-detailed"} <= set(words)
    assert "k" not in words  # the key goes through the environment
    assert second.environment("k")["OPENAI_API_KEY"] == "k"


def test_it_finds_the_server_where_everything_else_goes_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert not urllib.request.proxy_bypass("127.0.0.1:8000")
    monkeypatch.setenv("no_proxy", second.environment()["no_proxy"])
    assert urllib.request.proxy_bypass("127.0.0.1:8000")


def test_the_users_own_prompts_are_not_given_to_it(tmp_path: Path) -> None:
    prompts = tmp_path / "own.jsonl"
    prompts.write_text('{"prompt_token_ids": [5, 6, 7]}\n')
    asked = Instrument.of({"workloads": [f"own:@{prompts}/8", "short:64/8"]})
    given = {window.workload.name: window.second for window in asked.arms()[0].windows}
    assert given == {"own": False, "short": True}


@pytest.mark.parametrize(
    ("program", "outcome", "words"),
    [
        (LACKING, "not applicable", "Please install vllm[bench]"),
        ("raise RuntimeError('it broke')", "failed", "it broke"),
        ("import time; time.sleep(60)", "failed", "not done after"),
    ],
)
def test_without_it_the_outcome_says_why_in_its_own_words(
    program: str, outcome: str, words: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second, "LIMIT_S", 2.0)
    calls(program)
    found, reason, _ = second._run({}, [0], "")
    assert found == outcome
    assert words in reason


def test_a_loud_and_late_tool_leaves_what_it_said(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second, "LIMIT_S", 2.0)
    calls("import time; print('here', flush=True); time.sleep(60)")
    assert "here" in second._run({}, [0], "")[2]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Store:
    """The stand-in engine in a scratch study."""

    def command(
        arm: Arm, python: str, _: Path, name: str, port: int, seed: int, storage: str
    ) -> Command:
        argv = (python, FAKE, "--port", str(port), "--served-model-name", name)
        names = ("FAKE_FAULT", "FAKE_TOKEN_S")
        return Command(argv, {name: os.environ[name] for name in names if name in os.environ})

    monkeypatch.setattr(engine, "command", command)
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("fake", "1.0", "cpu"))
    monkeypatch.setattr(validity, "PASSING", frozenset())  # no second tries: files are counted
    return Store(scratch / "data/raw")


def measured(store: Store) -> tuple[tuple[Launch, ...], agreement.Seconds]:
    asked = run_experiment(Instrument.of(SMALL), store, io.StringIO())
    return asked, agreement.read(asked, store)


def test_three_instruments_on_one_launch(
    fake: Store, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls(STAND_IN)
    monkeypatch.setenv("FAKE_TOKEN_S", "0.010")  # long beside what a busy machine adds to each
    asked, found = measured(fake)
    assert len(found.files) == len(asked) == 2
    assert set(found.files["outcome"]) == {"measured"}
    assert set(found.files["cpu_s"]) == {1.25}
    assert (found.files["requests"] == found.files["client_requests"]).all()
    assert (found.files["output_most"] == 16).all()
    assert (found.files["full_s"] < found.files["duration_s"]).all()
    ratio = found.ratios.groupby("comparison")["point"].median()
    assert set(ratio.index) >= set(COMPARISONS) - {"engine_bench_tokens", "engine_bench_ttft"}
    assert ratio["engine_tokens"] == 1  # exactly: every token is counted by both
    # One clock in one machine: the two clients agree, unless the machine is far too busy.
    assert ratio["bench_rate_full"] == pytest.approx(1, rel=0.25)
    assert ratio["bench_tpot_full"] == pytest.approx(1, rel=0.25)


def test_a_window_that_is_measured_once_more_is_compared_once(
    fake: Store, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls(STAND_IN)
    monkeypatch.setattr(validity, "PASSING", PASSING)
    monkeypatch.setenv("FAKE_FAULT", "compile-after=0")  # void, and void again
    asked, found = measured(fake)
    assert len(found.files) == len(asked) == 2
    for one in fake.attempts():
        said = [json.loads((folder / "window.json").read_text()) for folder in one.windows]
        assert ["second" in window for window in said] == [False, True]


def test_ramp_and_drain_lower_the_rate_as_printed_and_not_while_the_level_is_full(
    tmp_path: Path,
) -> None:
    """4 + 4 + 2 requests of 32 tokens in 0.72 s each: for a third of the time half of them run."""
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(closed_loop(level=4, requests=10, noise=0)))
    said = agreement._theirs(audit_files.read(path).windows[0])
    assert said["bench_rate"] == pytest.approx(10 * 32 / (3 * 0.72))
    assert said["bench_rate_full"] == pytest.approx(4 * 32 / 0.72, rel=0.03)


def test_a_missing_tool_leaves_the_window_as_it_is(fake: Store, calls: Calls) -> None:
    calls(LACKING)
    asked, found = measured(fake)
    assert set(found.files["outcome"]) == {"not applicable"}
    assert found.files["reason"].str.contains("vllm\\[bench\\]").all()
    assert set(found.ratios["comparison"]) == {"engine_tokens", "engine_ttft"}
    best = [fake.best(launch.id) for launch in asked]
    assert all(one is not None and len(one.windows) == 1 for one in best)
    assert np.isnan(found.files["cpu_s"]).all()
