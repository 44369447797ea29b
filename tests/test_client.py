"""The real client against the real null server, over loopback: every fault by its kind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study.client import Client, Load, Recording, run_inline
from study.drive import arrivals_s
from study.errors import StudyError
from study.nullserver import serve, stats

pytestmark = pytest.mark.quiet

TTFT_MS, ITL_MS = 20.0, 5.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve(ttft_ms=TTFT_MS, itl_ms=ITL_MS) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as running:
        yield running


def load(base_url: str, **changes: object) -> Load:
    fields: dict[str, object] = {
        "base_url": base_url, "model": "null", "input_tokens": 16, "output_tokens": 8,
        "vocabulary": 1000, "concurrency": 4, "requests": 12, "request_timeout_s": 10.0,
    }  # fmt: skip
    fields |= changes
    for one, other in (("rate_per_s", "concurrency"), ("min_s", "requests")):
        if one in changes and other not in changes:
            fields[other] = None
    return Load(**fields)  # type: ignore[arg-type]


def kinds(recording: Recording) -> dict[str, int]:
    counts = recording.requests["error"].value_counts()
    return {str(kind): int(count) for kind, count in counts.items()}


# ------------------------------------------------------------------------------- what is measured


def test_counts_are_exact_and_times_are_those_of_the_server(server: str) -> None:
    recording = run_inline(load(server, keep_text=True))
    requests, chunks = recording.requests, recording.chunks
    assert kinds(recording) == {"": 12}
    assert requests["request"].tolist() == list(range(12))
    assert (requests["input_tokens"] == 16).all()
    assert (requests["output_tokens"] == 8).all()
    assert chunks["request"].tolist() == list(np.repeat(np.arange(12), 8))
    assert (chunks["tokens"] == 1).all()
    assert str(chunks["request"].dtype) == str(chunks["tokens"].dtype) == "int32"
    told = np.array([text.split() for text in requests["text"]], dtype=float) / 1e9
    received, written = told[:, 0], told[:, 1:]
    read = chunks["time_s"].to_numpy().reshape(12, 8)
    assert (read >= written).all()
    assert (requests["sent_s"] <= received).all()
    assert np.median(read - written) < 0.005
    assert (requests["first_s"] == read[:, 0]).all()
    assert (requests["last_s"] == read[:, -1]).all()
    assert (requests["due_s"] <= requests["sent_s"]).all()
    assert (requests["last_s"] <= requests["ended_s"]).all()
    assert np.allclose(requests["first_s"] - requests["due_s"], TTFT_MS / 1e3, atol=0.015)


def test_closed_loop_holds_the_level_by_the_servers_own_count(server: str) -> None:
    stats(server, reset=True)
    recording = run_inline(load(server, concurrency=16, requests=200, ramp_s=0.05))
    found = stats(server)
    assert kinds(recording) == {"": 200}
    assert found["in_flight_max"] == 16
    requests, info = recording.requests, recording.info
    assert requests["slot"].nunique() == 16
    info_s = info["full_s"] - info["started_s"]
    assert 0.04 < info_s < 0.10  # the last slot starts at 15/16 of the ramp
    first = requests.groupby("slot")["due_s"].min() - info["started_s"]
    assert np.allclose(first, np.arange(16) / 16 * 0.05)
    assert info["full_s"] < info["stopped_s"] <= info["ended_s"]
    assert info["stopped_because"] == "requests"
    steady = requests["ended_s"].between(info["full_s"], info["stopped_s"])
    following = requests[steady & (requests["ended_s"] < info["stopped_s"])]
    # Every end in the steady part is the due moment of that slot's next request.
    assert set(following["ended_s"]) <= set(requests["due_s"])


def test_open_loop_sends_by_the_drawn_schedule(server: str) -> None:
    asked = load(server, rate_per_s=200.0, requests=100, seed=5)
    recording = run_inline(asked)
    requests = recording.requests
    due_s = requests["due_s"] - recording.info["started_s"]
    assert kinds(recording) == {"": 100}
    assert np.allclose(due_s, arrivals_s(asked), atol=1e-9)
    late_s = requests["sent_s"] - requests["due_s"]
    assert (late_s >= 0).all()
    assert late_s.median() < 0.005
    assert recording.info["stopped_s"] >= requests["due_s"].max()


def test_arrivals_are_poisson_and_follow_the_seed() -> None:
    asked = load("http://h:1", rate_per_s=100.0, requests=20_000, seed=3)
    gaps_s = np.diff(arrivals_s(asked))
    assert gaps_s.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps_s.std() == pytest.approx(0.01, rel=0.03)
    assert (arrivals_s(asked) == arrivals_s(asked)).all()
    other = load("http://h:1", rate_per_s=100.0, requests=20_000, seed=4)
    assert (arrivals_s(asked) != arrivals_s(other)).any()
    timed = load("http://h:1", rate_per_s=100.0, min_s=1, min_latencies=0, max_s=20)
    assert arrivals_s(timed).max() < 20
    assert len(arrivals_s(timed)) == pytest.approx(2000, rel=0.1)


def test_open_loop_is_due_even_when_the_server_is_slow() -> None:
    with serve(ttft_ms=300, itl_ms=1) as base_url:
        recording = run_inline(load(base_url, rate_per_s=100.0, requests=50, output_tokens=2))
    assert kinds(recording) == {"": 50}
    assert recording.requests["slot"].nunique() > 20  # connections grew with the need
    assert (recording.requests["sent_s"] - recording.requests["due_s"]).median() < 0.01


def test_a_cap_shows_in_the_servers_count_and_in_the_waiting() -> None:
    with serve(ttft_ms=TTFT_MS, itl_ms=ITL_MS, cap=2) as base_url:
        recording = run_inline(load(base_url, concurrency=8, requests=24))
        found = stats(base_url)
    assert found["running_max"] == 2
    assert found["in_flight_max"] == 8
    service_s = (TTFT_MS + 7 * ITL_MS) / 1e3
    latency_s = recording.requests["last_s"] - recording.requests["due_s"]
    assert latency_s.median() > 3 * service_s


# -------------------------------------------------------------------------------------- stop rules


def test_duration_rule_waits_for_time_and_for_latencies(server: str) -> None:
    latency_s = (TTFT_MS + 7 * ITL_MS) / 1e3
    for min_s, min_latencies in ((0.4, 1.0), (0.1, 8.0)):
        asked = load(server, min_s=min_s, min_latencies=min_latencies, max_s=20.0)
        info = run_inline(asked).info
        lasted_s = info["stopped_s"] - info["full_s"]
        assert info["stopped_because"] == "duration"
        assert max(min_s, min_latencies * latency_s * 0.99) <= lasted_s < 1.5


def test_max_s_ends_a_load_that_never_gets_an_answer() -> None:
    with serve(fault="hang") as base_url:
        asked = load(base_url, min_s=0.1, min_latencies=1, max_s=0.3, request_timeout_s=0.2)
        recording = run_inline(asked)
    assert recording.info["stopped_because"] == "max_s"
    assert set(kinds(recording)) == {"timeout"}
    assert recording.info["wall_s"] < 1.5


# ------------------------------------------------------------------------------------------ faults

FAULTS = [
    ("drop", "reset", 0),
    ("drop=3", "reset", 3),
    ("close", "reset", 0),
    ("close=3", "incomplete", 3),
    ("error=2", "engine_error", 2),
    ("garbage=2", "sse", 2),
    ("no_usage", "incomplete", 8),
    ("no_done", "incomplete", 8),
    ("http=500", "http_5xx", 0),
    ("http=429", "http_4xx", 0),
    ("hang", "timeout", 0),
    ("hang=2", "timeout", 2),
]


@pytest.mark.parametrize(("fault", "kind", "chunks"), FAULTS)
@pytest.mark.parametrize("level", [{"concurrency": 4}, {"rate_per_s": 100.0}])
def test_every_third_request_at_fault_is_recorded_by_its_kind(
    fault: str, kind: str, chunks: int, level: dict[str, float]
) -> None:
    with serve(ttft_ms=5, itl_ms=1, fault=fault, fault_every=3) as base_url:
        recording = run_inline(load(base_url, requests=12, request_timeout_s=0.4, **level))
    requests = recording.requests
    assert kinds(recording) == {"": 8, kind: 4}
    failed = requests[requests["error"] == kind]
    assert (failed["chunks"] == chunks).all()
    assert (failed["error_text"] != "").all()
    assert failed["ended_s"].between(recording.info["started_s"], recording.info["ended_s"]).all()
    assert (requests[requests["error"] == ""]["output_tokens"] == 8).all()


@pytest.mark.parametrize(
    ("fault", "column", "expected"),
    [("early=5", "output_tokens", 5), ("extra_prompt=7", "input_tokens", 23)],
)
def test_other_lengths_than_asked_are_no_error_but_are_reported(
    fault: str, column: str, expected: int
) -> None:
    with serve(ttft_ms=5, itl_ms=1, fault=fault) as base_url:
        recording = run_inline(load(base_url))
    assert kinds(recording) == {"": 12}
    assert (recording.requests[column] == expected).all()


def test_two_tokens_in_a_chunk_are_counted_as_two() -> None:
    with serve(ttft_ms=5, itl_ms=1, fault="pair") as base_url:
        recording = run_inline(load(base_url))
    assert (recording.requests["chunks"] == 4).all()
    assert (recording.requests["output_tokens"] == 8).all()
    assert (recording.chunks["tokens"] == 2).all()


def test_events_in_two_reads_are_timed_by_the_second() -> None:
    with serve(ttft_ms=5, itl_ms=8, fault="halves") as base_url:
        recording = run_inline(load(base_url, keep_text=True))
    assert kinds(recording) == {"": 12}
    told = np.array([text.split()[1:] for text in recording.requests["text"]], dtype=float) / 1e9
    behind_s = recording.chunks["time_s"].to_numpy().reshape(12, 8) - told
    assert behind_s.min() > 0.0  # the second half leaves at least part of a tick later
    assert np.median(behind_s) > 0.0009


def test_a_request_may_name_its_own_fault(server: str) -> None:
    def status(fault: str) -> int:
        request = urllib.request.Request(
            server + "/v1/completions", b'{"prompt": [5], "max_tokens": 1}', {"x-fault": fault}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        refused.value.close()
        return refused.value.code

    assert [status(fault) for fault in ("http", "http=503", "nonsense")] == [500, 503, 400]


def test_without_uvloop_the_same_is_recorded(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    recording = run_inline(load(server, ramp_s=0.02))
    assert recording.info["event_loop"] == "asyncio"
    assert kinds(recording) == {"": 12}
    assert len(recording.chunks) == 12 * 8


def test_a_long_prompt_that_no_socket_takes_at_once_arrives_whole(server: str) -> None:
    recording = run_inline(load(server, input_tokens=1_000_000, concurrency=2, requests=3))
    assert kinds(recording) == {"": 3}
    assert (recording.requests["input_tokens"] == 1_000_000).all()


def test_a_time_out_replaces_the_connection_and_ends_at_its_time() -> None:
    with serve(fault="hang") as base_url:
        recording = run_inline(load(base_url, concurrency=2, requests=4, request_timeout_s=0.3))
        left = stats(base_url)
    took_s = recording.requests["ended_s"] - recording.requests["sent_s"]
    assert took_s.between(0.3, 0.6).all()
    assert kinds(recording) == {"timeout": 4}
    assert left["requests"] == 4
    assert recording.info["wall_s"] < 2


def test_a_dead_server_stops_the_load_after_twenty_refusals() -> None:
    with socket.socket() as taken:  # bound, not listening: refuses
        taken.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        recording = run_inline(load(base_url, concurrency=4, requests=10_000))
    assert set(kinds(recording)) == {"refused"}
    assert 20 <= len(recording.requests) <= 24
    assert recording.info["stopped_because"] == "server_gone"
    assert recording.info["full_s"] is None
    assert recording.requests["sent_s"].isna().all()


def test_a_failing_slot_backs_off() -> None:
    with serve(fault="http=500") as base_url:
        recording = run_inline(load(base_url, concurrency=2, min_s=0.1, min_latencies=1, max_s=0.5))
    assert 4 <= len(recording.requests) <= 2 * 11


def test_a_name_that_does_not_resolve_is_a_connect_failure() -> None:
    recording = run_inline(load("http://no-such-host.invalid:1", concurrency=1, requests=2))
    assert kinds(recording) == {"connect": 2}


# ----------------------------------------------------------------------------------- the worker


def test_the_worker_gives_what_an_inline_run_gives(
    client: Client, server: str, tmp_path: Path
) -> None:
    asked = load(server, keep_text=True)
    recording = client.run(asked, tmp_path / "new" / "window")
    inline = run_inline(asked)
    assert list(recording.requests.columns) == list(inline.requests.columns)
    assert (recording.requests.dtypes == inline.requests.dtypes).all()
    assert kinds(recording) == kinds(inline)
    assert set(recording.info) == set(inline.info)
    again = Recording.load(tmp_path / "new" / "window")
    pd.testing.assert_frame_equal(again.chunks, recording.chunks)
    names = {"requests.parquet", "chunks.parquet", "info.json"}
    assert {path.name for path in (tmp_path / "new" / "window").iterdir()} == names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["window"]  # nothing partial


def test_the_parent_is_free_while_the_load_runs(
    client: Client, server: str, tmp_path: Path
) -> None:
    stats(server, reset=True)
    client.start(load(server, concurrency=3, requests=9), tmp_path / "w")
    seen = 0.0
    while seen < 3:
        seen = stats(server)["in_flight_max"]
    with pytest.raises(StudyError, match="One load at a time"):
        client.start(load(server), tmp_path / "other")
    assert len(client.result().requests) == 9
    with pytest.raises(StudyError, match="call start first"):
        client.result()


def test_own_prompts_reach_the_worker(client: Client, server: str, tmp_path: Path) -> None:
    own = load(server, prompts=((5, 6, 7), (8,)), requests=4)
    assert client.run(own, tmp_path / "w").requests["input_tokens"].tolist() == [3, 1, 3, 1]


def test_a_folder_that_holds_something_is_refused(
    client: Client, server: str, tmp_path: Path
) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(StudyError, match="new or empty folder"):
        client.run(load(server), tmp_path)


def test_the_death_of_the_worker_is_told_with_its_last_words(server: str, tmp_path: Path) -> None:
    with Client() as client:
        client._send({"nonsense": True})
        client._pending = tmp_path / "w"
        with pytest.raises(StudyError, match=r"(?s)ended with code 1.*KeyError"):
            client.result()
    with Client() as client:
        client.start(load(server, requests=100_000), tmp_path / "w")
        client._worker().kill()
        with pytest.raises(StudyError, match="ended with code -9"):
            client.result()
        with pytest.raises(StudyError, match="ended with code -9"):
            client.start(load(server), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_worker_ends_with_its_parent(server: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, server], stdout=subprocess.PIPE, env=os.environ
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_until_gone(worker)


PARENT = """
import sys, tempfile, time
from pathlib import Path
from study.client import Client, Load
client = Client().__enter__()
load = Load(sys.argv[1], "null", 16, 8, 1000, concurrency=2, requests=10**6)
client.start(load, Path(tempfile.mkdtemp()) / "w")
print(client._worker().pid, flush=True)
time.sleep(60)
"""


def test_ctrl_c_ends_the_load_at_once(server: str, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    client, began_s = Client(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), client:
        worker = client._worker().pid
        main = threading.main_thread().ident or 0
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
        client.run(load(server, requests=10**6), tmp_path / "w")
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began_s < 5
    _wait_until_gone(worker)


def _wait_until_gone(process: int) -> None:
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s:
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"the worker {process} outlived its parent")


def test_the_worker_keeps_to_its_cores(server: str, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    with Client(cpus=[core]) as client:
        assert os.sched_getaffinity(client._worker().pid) == {core}
        assert kinds(client.run(load(server), tmp_path / "w")) == {"": 12}
