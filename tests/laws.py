"""Load curves with a known end: what is planted is known, so what is found can be judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from study.curves import TwoLines
from study.experiment import WindowPlan, Workload
from study.finite import Floats
from study.knee import Knee
from study.plan import load_s
from study.search import Search

Curve = dict[int, float]
LEVELS = np.array([1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128.0])  # steps of sqrt(2)
STEP = np.sqrt(2)
GRID = np.geomspace(LEVELS[0], LEVELS[-1], 20_000)


def law(levels: Floats, lam: float = 50.0, sigma: float = 0.02, kappa: float = 4e-4) -> Floats:
    return np.asarray(
        lam * levels / (1 + sigma * (levels - 1) + kappa * levels * (levels - 1)), dtype=np.float64
    )


def hard_cap(levels: Floats, cap: float = 1000.0) -> Floats:
    """50 tokens/s for each request in flight until the cap, which level 20 meets."""
    return np.minimum(50 * levels, cap)


def noisy(tok_s: Floats, rng: np.random.Generator, sd: float = 0.01) -> Floats:
    return np.asarray(tok_s * np.exp(rng.normal(0, sd, tok_s.shape)))


def true_knee(sigma: float, kappa: float, share: float = 0.95) -> float:
    fitted = law(GRID, 1.0, sigma, kappa)
    return float(GRID[np.argmax(fitted >= share * fitted.max())])


# --- searches -------------------------------------------------------------------------------------

ENDLESS = ("linear", "still rises")
FIXED = (1, 4)  # levels that the families measure anyway


@dataclass(frozen=True)
class Scenario:
    """A law of throughput on an engine: `batch` requests at once, a latency at level 1."""

    name: str
    law: Callable[[Floats], Floats]  # tokens/s in units of those at level 1
    batch: int
    latency_s: float
    ends: bool = True  # below four times the batch
    sharp: bool = True  # at a corner or a peak, so that noise cannot move the knee far

    @property
    def search(self) -> Search:
        return Search(batch=self.batch, ceiling=4 * self.batch)


def _laws(batch: int) -> dict[str, Callable[[Floats], Floats]]:
    def contention(levels: Floats) -> Floats:
        return law(np.minimum(levels, batch), 1, 2 / batch, 0)

    def falling(levels: Floats) -> Floats:
        return TwoLines(batch / 2, batch / 2, 1, -0.3, 0.0).predict(levels)

    def rising(levels: Floats) -> Floats:
        return TwoLines(batch, batch, 1, 0.3, 0.0).predict(levels)

    return {
        "linear to the batch": lambda levels: np.minimum(levels, batch),
        "linear to 0.6 of it": lambda levels: np.minimum(levels, 0.6 * batch),
        "linear to a quarter of it": lambda levels: np.minimum(levels, batch / 4),
        "contention to the batch": contention,
        "falls from half of it on": falling,
        "peak at half of it": lambda levels: law(levels, 1, 0.5 / batch, 4 / batch**2),
        "peak at a quarter of it": lambda levels: law(levels, 1, 2 / batch, 16 / batch**2),
        "levels off": lambda levels: law(levels, 1, 20 / batch, 0),
        "still rises": rising,
        "linear": lambda levels: levels,
    }


SCENARIOS = [
    Scenario(name, found, batch, latency_s, name not in ENDLESS, name != "levels off")
    for batch in (16, 64, 256)
    for latency_s in (0.15, 1.3)  # a small model on a CPU, a large one on a GPU
    for name, found in _laws(batch).items()
]


def curves_of(scenario: Scenario, runs: int, sd: float) -> list[dict[int, float]]:
    """Throughput at every level of the grid: first without noise, then `runs` times with it."""
    grid = scenario.search.grid
    exact = np.asarray(scenario.law(np.array(grid, dtype=float)), dtype=float)
    rng = np.random.default_rng(scenario.batch)
    drawn = [exact, *(noisy(exact, rng, sd) for _ in range(runs))]
    return [dict(zip(grid, map(float, rates), strict=True)) for rates in drawn]


def replay(search: Search, curve: Mapping[int, float], fixed: Sequence[int] = FIXED) -> Curve:
    """What a search sees of a curve, in order; a level that the curve lacks is a void window."""
    seen: dict[int, float | None] = {level: curve.get(level) for level in fixed}
    while (level := search.next(seen).level) is not None:
        seen[level] = curve.get(level)
    return {level: rate for level, rate in seen.items() if rate is not None}


def seconds(scenario: Scenario, curve: Mapping[int, float]) -> float:
    """Load time of these levels by the model of study.plan; latencies by Little's law."""
    workload = Workload(name="short", input_tokens=128, output_tokens=64)
    window = WindowPlan(workload=workload, level=1, steady_s=2.5)
    exact = scenario.law(np.array([*curve], dtype=float))
    latencies_s = scenario.latency_s * np.array([*curve]) / exact
    return sum(load_s(window, float(latency_s)) for latency_s in latencies_s)


def same_knee(one: Knee, other: Knee) -> bool:
    """Both within one step of sqrt(2), or neither reached."""
    if not (one.reached and other.reached):
        return one.reached is other.reached
    return bool(abs(np.log(one.level / other.level)) <= 1.01 * np.log(STEP))
