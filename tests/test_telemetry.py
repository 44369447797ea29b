"""The machine, as its kernel shows it: whose work it is, and nothing where it shows nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from study import accelerators, telemetry
from study.gates.machine import grown
from study.telemetry import COLUMNS, Telemetry

BUSY = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
pytestmark = [
    pytest.mark.quiet,
    pytest.mark.skipif(not Path("/proc/stat").exists(), reason="another kernel"),
]


def looked(stranger: bool) -> tuple[float, float]:
    """CPU seconds of the study and of others while one process works for a second and a half."""
    if stranger:  # its parent ends at once, so nobody here has started it
        started = subprocess.run(
            ["sh", "-c", '"$0" -c "$1" & sleep 0.3', sys.executable, BUSY], check=True
        )
        assert started.returncode == 0
    child = None if stranger else subprocess.Popen([sys.executable, "-c", BUSY])
    with Telemetry(None, os.getpid()) as telemetry:
        time.sleep(1.0)
    if child is not None:
        child.wait()
    frame = telemetry.frame()
    assert list(frame.columns) == list(COLUMNS) and 3 <= len(frame) <= 4
    own_s = grown(frame, "own_s")
    return own_s, grown(frame, "busy_s") - own_s


def test_work_is_put_down_to_who_started_it() -> None:
    own_s, _ = looked(stranger=False)
    assert own_s > 0.3  # of a second, on a machine that may be full
    own_s, others_s = looked(stranger=True)
    assert own_s < 0.2 and others_s > 0.3


def test_a_tool_that_the_study_calls_and_waits_for_is_its_own_work() -> None:
    """As the one that is asked for the GPUs: it is no stranger, though it is gone at every look."""
    busy = BUSY.replace("1.5", "0.3")
    with Telemetry(None, os.getpid()) as looking:
        subprocess.run([sys.executable, "-c", busy], check=True)
    assert grown(looking.frame(), "own_s") > 0.1


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's files, made up."""
    monkeypatch.setattr(telemetry, "PROC", tmp_path / "proc")
    monkeypatch.setattr(telemetry, "SYS", tmp_path / "sys")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def last_look() -> dict[str, float]:
    with Telemetry(os.getpid(), os.getpid()) as looking:
        pass
    return {str(name): float(value) for name, value in looking.frame().iloc[-1].items()}


def test_a_kernel_that_shows_nothing_gives_nothing_and_no_error(kernel: Path) -> None:
    look = last_look()
    shown = {name for name, value in look.items() if not np.isnan(value)}
    assert shown == {"time_s", "own_s", "pace_s", "memory_free_bytes", "gpus"}
    assert look["own_s"] == 0


def test_what_the_kernel_writes_is_read_in_seconds(kernel: Path) -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    ours = "cpu0 4 8 12 400 5 7 8 10 0 0\ncpu1 6 12 18 599 0 0 0 30 0 0\n"
    theirs = "cpu2 500 500 500 0 0 0 0 500 0 0\n"  # a core that others were given
    write(kernel / "proc/stat", f"cpu  510 520 530 999 5 7 8 540 0 0\n{ours}{theirs}intr 5\n")
    pid = os.getpid()
    inside = " ".join(str(number) for number in range(1, 30))
    write(kernel / f"proc/{pid}/stat", f"{pid} (a ) (b) S {inside}")
    write(kernel / f"proc/{pid}/schedstat", "5000000000 250000000 77\n")
    write(kernel / "proc/loadavg", "1.25 0.5 0.1 1/100 5\n")
    cpus = kernel / "sys/devices/system/cpu"
    write(cpus / "cpu0/cpufreq/scaling_cur_freq", "2600000\n")
    for number, events in enumerate((1, 2, 70)):
        write(cpus / f"cpu{number}/thermal_throttle/core_throttle_count", f"{events}\n")
    write(kernel / "sys/fs/cgroup/cpu.stat", "nr_throttled 2\nthrottled_usec 1500000\n")
    look = last_look()
    assert (look["cores"], look["load_1m"], look["clock_mhz"]) == (2, 1.25, 2600)
    assert look["busy_s"] == pytest.approx(100 * tick_s)  # without idle, waiting and interrupts
    assert look["steal_s"] == pytest.approx(40 * tick_s)
    # After the state come ten numbers, then user and system time.
    # And after those the same of the children that it has waited for.
    assert look["own_s"] == pytest.approx((11 + 12 + 13 + 14) * tick_s)
    assert look["client_wait_s"] == pytest.approx(0.25)
    assert (look["heat_throttles"], look["quota_throttled_s"]) == (3, 1.5)


# --- GPUs -----------------------------------------------------------------------------------------

HELD_BACK = ["0x0000000000000008", "0x0000000000000020", "0x0000000000000040", "0x80"]
FREE = ["0x0000000000000000", "0x0000000000000001", "0x0000000000000004"]  # idle, a power cap


@pytest.mark.parametrize("reason", [*HELD_BACK, *FREE])
def test_nvidias_answer(reason: str) -> None:
    said = accelerators.nvidia(f"1980, 61, 402.11, 0x0\n1755, 68, 398.20, {reason}\n")
    assert said == {
        "gpu_clock_mhz": 1755,
        "gpu_celsius": 68,
        "gpu_watt": pytest.approx(800.31),
        "gpu_throttled": float(reason in HELD_BACK),
    }


def amd_card(number: int, mhz: object, states: Sequence[str]) -> dict[str, object]:
    """A GPU as `amd-smi metric --json` tells of it; of its eight graphics clocks only the first."""
    heat = dict(zip(accelerators.HOT, states, strict=True)) | {"ppt": "ACTIVE"}
    return {
        "gpu": number,
        "power": {"socket_power": {"value": 310.5, "unit": "W"}},
        "clock": {"gfx_0": {"clk": mhz}, "gfx_1": {"clk": "N/A"}, "mem_0": {"clk": {"value": 900}}},
        "temperature": {"hotspot": {"value": 50 + number, "unit": "C"}},
        "throttle": {f"{name}_violation_status": state for name, state in heat.items()},
    }


@pytest.mark.parametrize(
    ("states", "throttled"),
    [
        (["NOT ACTIVE"] * 4, 0.0),
        (["NOT ACTIVE", "ACTIVE", "NOT ACTIVE", "NOT ACTIVE"], 1.0),
        (["N/A", "N/A", "N/A", "NOT ACTIVE"], 0.0),
        (["N/A"] * 4, np.nan),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_amds_answer(states: list[str], throttled: float, wrapped: bool) -> None:
    cards = [amd_card(0, {"value": 2100, "unit": "MHz"}, states)]
    cards.append(amd_card(1, {"value": 1700, "unit": "MHz"}, states[::-1]))
    said = accelerators.amd(json.dumps({"gpu_data": cards} if wrapped else cards))
    assert (said["gpu_clock_mhz"], said["gpu_celsius"], said["gpu_watt"]) == (1700, 51, 621)
    assert said["gpu_throttled"] == pytest.approx(throttled, nan_ok=True)


def test_one_gpu_that_does_not_report_throttling_leaves_it_unknown() -> None:
    clock = {"value": 2100, "unit": "MHz"}
    for state, throttled in (("NOT ACTIVE", np.nan), ("ACTIVE", 1.0)):
        cards = [amd_card(0, clock, [state] * 4), amd_card(1, clock, ["N/A"] * 4)]
        said = accelerators.amd(json.dumps(cards))["gpu_throttled"]
        assert said == pytest.approx(throttled, nan_ok=True)


def test_the_answer_of_amds_older_tool() -> None:
    card = (
        '"Temperature (Sensor junction) (C)": "55.0", "sclk clock speed:": "(2100Mhz)", '
        '"Current Socket Graphics Package Power (W)": "310.5"'
    )
    said = accelerators.older_amd(f'{{"card0": {{{card}}}, "system": "x"}}')
    assert (said["gpu_clock_mhz"], said["gpu_celsius"], said["gpu_watt"]) == (2100, 55, 310.5)
    assert np.isnan(said["gpu_throttled"])


@pytest.mark.parametrize(
    ("tool", "variables", "words"),
    [
        ("nvidia-smi", {}, ["-i", "0"]),
        ("nvidia-smi", {"CUDA_VISIBLE_DEVICES": "2,3"}, ["-i", "2"]),
        ("nvidia-smi", {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, []),
        ("amd-smi", {"HIP_VISIBLE_DEVICES": "1,2"}, ["-g", "1"]),
        ("amd-smi", {"CUDA_VISIBLE_DEVICES": "3"}, ["-g", "3"]),
        ("rocm-smi", {"HIP_VISIBLE_DEVICES": "1"}, ["-d", "1"]),
        ("rocm-smi", {"ROCR_VISIBLE_DEVICES": "4,6", "HIP_VISIBLE_DEVICES": "1"}, ["-d", "6"]),
        ("rocm-smi", {"ROCR_VISIBLE_DEVICES": "4", "HIP_VISIBLE_DEVICES": "1"}, []),
    ],
)
def test_only_the_gpu_that_a_server_gets_is_asked(
    tool: str,
    variables: dict[str, str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command, parse = accelerators.tool()
    known = {
        "nvidia-smi": (accelerators.NVIDIA, accelerators.nvidia),
        "amd-smi": (accelerators.AMD, accelerators.amd),
        "rocm-smi": (accelerators.OLDER_AMD, accelerators.older_amd),
    }[tool]
    assert (list(command), parse) == ([*known[0], *words], known[1])


@pytest.mark.parametrize(
    "command",
    [("echo", "[N/A], 61, x, 0x0"), ("echo", '[{"clock": 1}]'), ("false",), ("no-such-tool",)],
)
def test_an_answer_that_is_not_understood_is_no_answer(command: tuple[str, ...]) -> None:
    for parse in (accelerators.nvidia, accelerators.amd, accelerators.older_amd):
        gpus = accelerators.Gpus(command, parse)
        assert all(np.isnan(value) for value in gpus.look().values())


def test_the_first_look_waits_for_an_answer_and_the_next_do_not() -> None:
    command = ("sh", "-c", "sleep 0.3; echo 1980, 61, 402.11, 0x8")
    gpus = accelerators.Gpus(command, accelerators.nvidia)
    assert gpus.look()["gpu_throttled"] == 1
    began = time.monotonic()
    assert gpus.look()["gpu_clock_mhz"] == 1980
    assert time.monotonic() - began < 0.2


def test_the_tool_is_called_no_oftener_than_it_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    command = ("sh", "-c", f"echo >> {calls}; echo 1980, 61, 402.11, 0x0")
    gpus = accelerators.Gpus(command, accelerators.nvidia)
    for _ in range(5):
        gpus.look()
    assert calls.read_text() == "\n"
    monkeypatch.setattr(accelerators, "ASK_S", 0.0)
    gpus.look()
    assert gpus._asking is not None
    gpus._asking.join()
    assert calls.read_text() == "\n\n"
