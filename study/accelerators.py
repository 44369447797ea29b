"""What the GPUs of this machine say of themselves while they work: clock, heat, power, throttling.

Asked of the driver's own tool, in a thread of its own as an answer takes it a tenth of a second.
Where there is no tool, or it answers otherwise than is known here, all is NaN.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

COLUMNS = ("gpu_clock_mhz", "gpu_celsius", "gpu_watt", "gpu_throttled")
NOTHING: Mapping[str, float] = dict.fromkeys(COLUMNS, float("nan"))
UNLIKE = (AttributeError, TypeError)  # an answer of another shape than is known here
ANSWER_S = 10.0
ASK_S = 2.0  # a tool takes CPU time of its own: AMD's is a Python program

# Bits of NVML's reasons to lower a clock (nvml.h) that are no wish of the user: hardware slowdown,
# heat by software and by hardware, power brake. A power cap (4) is how a full GPU runs.
HELD_BACK = 0x08 | 0x20 | 0x40 | 0x80
NVIDIA = (
    "nvidia-smi",
    "--query-gpu=clocks.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active",
    "--format=csv,noheader,nounits",
)
AMD = ("amd-smi", "metric", "--json")
OLDER_AMD = ("rocm-smi", "--showclocks", "--showtemp", "--showpower", "--json")
# The same for AMD: heat of socket, memory and regulators, and the processor's hot signal; no power.
HOT = ("prochot", "socket_thermal", "vr_thermal", "hbm_thermal")


def nvidia(text: str) -> dict[str, float]:
    """All that answered in one: the lowest clock, the highest temperature, total power, any
    throttled."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line]
    return {
        "gpu_clock_mhz": min(float(row[0]) for row in rows),
        "gpu_celsius": max(float(row[1]) for row in rows),
        "gpu_watt": sum(float(row[2]) for row in rows),
        "gpu_throttled": float(any(int(row[3], 16) & HELD_BACK for row in rows)),
    }


def amd(text: str) -> dict[str, float]:
    """The same from `amd-smi`; throttling is NaN where no GPU reports it (before MI300)."""
    said = json.loads(text)
    cards = said["gpu_data"] if isinstance(said, dict) else said
    clocks = [
        value
        for card in cards
        for name, clock in card["clock"].items()
        if name.startswith("gfx") and not math.isnan(value := _value(clock["clk"]))
    ]
    return {
        "gpu_clock_mhz": min(clocks),
        "gpu_celsius": max(_value(card["temperature"]["hotspot"]) for card in cards),
        "gpu_watt": sum(_value(card["power"]["socket_power"]) for card in cards),
        "gpu_throttled": _throttled([_active(card.get("throttle", {})) for card in cards]),
    }


def _throttled(active: Sequence[float]) -> float:
    """Whether any is; unknown as long as one of those that are not shown to be is unknown."""
    return 1.0 if 1.0 in active else float(sum(active))


def _value(said: object) -> float:
    """The number of {"value": 42, "unit": "W"}; NaN for "N/A"."""
    return float(said["value"]) if isinstance(said, dict) else float("nan")


def _active(throttle: object) -> float:
    """Whether any of HOT holds the clocks back now; NaN if none is reported."""
    named = throttle if isinstance(throttle, dict) else {}
    states = [
        named.get(f"{name}_violation_status", named.get(f"{name}_violation_active", "N/A"))
        for name in HOT
    ]
    reported = [state for state in states if state != "N/A"]
    return float("ACTIVE" in reported) if reported else float("nan")


def older_amd(text: str) -> dict[str, float]:
    """The same from `rocm-smi`, which does not say whether a clock was held back."""
    cards = [card for card in json.loads(text).values() if isinstance(card, dict)]
    return {
        "gpu_clock_mhz": min(_numbers(cards, "sclk clock speed")),
        "gpu_celsius": max(_numbers(cards, "Temperature (Sensor junction)")),
        "gpu_watt": sum(_numbers(cards, "Graphics Package Power")),
        "gpu_throttled": float("nan"),
    }


def _numbers(cards: Sequence[Mapping[str, str]], name: str) -> list[float]:
    """The values of this name, without the dress of "(1700Mhz)"."""
    found = [value for card in cards for key, value in card.items() if name in key]
    if not found:
        raise ValueError(f"no {name!r} in the answer")
    return [float(value.strip("() ").lower().removesuffix("mhz")) for value in found]


@dataclass
class Gpus:
    """The latest answer of the tool; asking goes on in the background, one call at a time."""

    command: tuple[str, ...]
    parse: Callable[[str], dict[str, float]]
    _latest: Mapping[str, float] | None = None
    _asking: threading.Thread | None = None
    _asked_s: float = -math.inf

    def look(self) -> Mapping[str, float]:
        """The latest answer, about two seconds old at most while one looks on."""
        is_asking = self._asking is not None and self._asking.is_alive()
        if self.command and not is_asking and time.monotonic() - self._asked_s >= ASK_S:
            self._asked_s = time.monotonic()
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()
            if self._latest is None:
                self._asking.join()  # the first look, before the window
        return self._latest or NOTHING

    def _ask(self) -> None:
        try:
            answer = subprocess.run(
                self.command, capture_output=True, text=True, timeout=ANSWER_S, check=True
            )
            self._latest = self.parse(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, *UNLIKE):
            self._latest = NOTHING


def tool() -> tuple[tuple[str, ...], Callable[[str], dict[str, float]]]:
    """How the GPU that a server gets is asked, and how the answer is read; no command without a
    tool."""
    if shutil.which(NVIDIA[0]):
        return (*NVIDIA, *_only("-i", used("CUDA_VISIBLE_DEVICES"))), nvidia
    inner = "HIP" if os.environ.get("HIP_VISIBLE_DEVICES") else "CUDA"  # HIP obeys either
    number = used("ROCR_VISIBLE_DEVICES", f"{inner}_VISIBLE_DEVICES")
    if shutil.which(AMD[0]):
        return (*AMD, *_only("-g", number)), amd
    if shutil.which(OLDER_AMD[0]):
        return (*OLDER_AMD, *_only("-d", number)), older_amd
    return (), nvidia


def _only(option: str, number: str) -> tuple[str, ...]:
    return (option, number) if number else ()


def used(*variables: str) -> str:
    """The driver's number of the first GPU that these variables leave, each of those of the one
    before: a server takes no other. Empty where one of them names GPUs otherwise than by number.
    """
    place = 0
    for said in reversed([os.environ.get(name, "") for name in variables]):
        if said:
            numbers = said.split(",")
            if place >= len(numbers) or not numbers[place].isdecimal():
                return ""
            place = int(numbers[place])
    return str(place)


def find() -> Gpus:
    """The GPUs of this machine, not asked yet."""
    return Gpus(*tool())
