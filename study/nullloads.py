"""What the client is calibrated with: loads against a null server, each at a pace of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

TTFT_MS, OUTPUT_TOKENS, INPUT_TOKENS = 20.0, 32, 128
LOAD_S = 1.5  # at least so long, or a level of one has too few requests
RAMP_LEVEL, RAMP_TOKENS_S = 256, 0.7
RAMP_ITLS_MS = (16.0, 8.0, 4.0, 2.8, 2.0, 1.4)  # in the end in steps of sqrt(2)
GENTLER_ITLS_MS = (32.0, 64.0)  # where even the first of these broke: a slow or busy machine
BESIDE_S = 0.6  # of each load: a null server's start, and the decoding of what it sent

GRID, RAMP = "grid", "ramp"


@dataclass(frozen=True)
class NullLoad:
    """One load against a null server that keeps this pace."""

    kind: str
    level: int
    itl_ms: float
    output_tokens: int
    waves: int  # requests of each slot

    @property
    def expected_s(self) -> float:
        return self.waves * self.latency_s + BESIDE_S

    @property
    def latency_s(self) -> float:
        return (TTFT_MS + (self.output_tokens - 1) * self.itl_ms) / 1e3

    @property
    def chunks_per_s(self) -> float:
        """The rate at which its chunks come when everybody keeps the pace."""
        return self.level * self.output_tokens / self.latency_s


@dataclass(frozen=True)
class Grid:
    """The loads of a calibration: every level at every ITL, then a ramp until something breaks."""

    levels: tuple[int, ...]
    itls_ms: tuple[float, ...]

    def loads(self) -> Iterator[NullLoad]:
        """The loads of the grid, the gentle ones first."""
        for level, itl_ms in itertools.product(sorted(self.levels), sorted(self.itls_ms)[::-1]):
            latency_s = (TTFT_MS + (OUTPUT_TOKENS - 1) * itl_ms) / 1e3
            waves = max(2, math.ceil(LOAD_S / latency_s))
            yield NullLoad(GRID, level, itl_ms, OUTPUT_TOKENS, waves)

    def ramp(self) -> Iterator[NullLoad]:
        """The loads of the ramp, each with more chunks a second than the one before."""
        yield from map(_ramp_load, RAMP_ITLS_MS)

    def gentler(self) -> Iterator[NullLoad]:
        """Loads below the ramp, each with fewer chunks a second than the one before."""
        yield from map(_ramp_load, GENTLER_ITLS_MS)

    @property
    def expected_s(self) -> float:
        """How long it takes, roughly, if the ramp goes on to its end."""
        return sum(load.expected_s for load in [*self.loads(), *self.ramp()])


def _ramp_load(itl_ms: float) -> NullLoad:
    return NullLoad(RAMP, RAMP_LEVEL, itl_ms, round(RAMP_TOKENS_S * 1e3 / itl_ms), 2)
