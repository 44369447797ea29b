"""Do the study's intervals and tests keep their promises? Simulated where the truth is known.

Requests in windows in launches: a launch is off by 3, 5 or 8 %, a window by 2 %, a request by 30 %,
and requests of a window are autocorrelated. Launches are normal on the log scale, or skewed (a
gamma of shape 4: skewness 1). Every number goes through the study's own estimators. Writes
data/derived/benchmark_coverage.csv and prints the same as Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import signal, special

from study import additive, dunnett, equivalence, knee, replication, stats
from study.finite import Floats
from study.interval import Interval

ROOT = Path(__file__).resolve().parents[1]
DERIVED = ROOT / "data" / "derived"
LAUNCHES = (3, 5, 10)
SPREADS = (0.03, 0.05, 0.08)  # of launches
WINDOW_SD, REQUEST_SD, CARRIED = 0.02, 0.3, 0.5  # and of a request, what the next one keeps
WINDOWS, REQUESTS = 2, 400  # of a launch, of a window
ARMS, CELLS = 4, 3  # of a family: one of them the baseline; workloads and levels
MARGIN = np.log1p(equivalence.MARGIN)
STEP = np.sqrt(2)
LEVELS = np.unique(np.round(STEP ** np.arange(15)))  # 1 to 128

Rng = np.random.Generator
Claim = Callable[[Rng, int], Iterator["Row"]]


@dataclass(frozen=True)
class Row:
    """One claim in one setting: the share of runs, its simulation error, and where it must lie."""

    claim: str
    setting: str
    launches: str
    spread: float
    share: float
    error: float
    least: float
    most: float
    runs: int

    @property
    def holds(self) -> bool:
        """Whether the share lies where it must."""
        return self.least <= self.share <= self.most


def row(
    claim: str, setting: str, n: int | str, spread: float,
    hits: list[bool], least: float, most: float,
) -> Row:  # fmt: skip
    share = float(np.mean(hits))
    error = float(np.sqrt(share * (1 - share) / len(hits)))
    return Row(claim, setting, str(n), spread, share, error, least, most, len(hits))


def at_most(runs: int, size: float = 0.05) -> float:
    """A test's size, and three standard errors of a simulation of it."""
    return float(size + 3 * np.sqrt(size * (1 - size) / runs))


# --- simulated launches ---------------------------------------------------------------------------


def launch_effects(rng: Rng, spread: float, skewed: bool, shape: tuple[int, ...]) -> Floats:
    """Log effects with mean 0."""
    if skewed:
        return np.asarray(spread * (rng.gamma(4, 0.5, shape) - 2))
    return np.asarray(rng.normal(0, spread, shape))


def launch_logs(rng: Rng, spread: float, skewed: bool, shape: tuple[int, ...]) -> Floats:
    """What a launch gives for a log mean whose truth is 0: the mean of its windows' requests.

    The mean of a window's `REQUESTS` autocorrelated requests is drawn from its own distribution.
    """
    lags = np.arange(1, REQUESTS)
    grown = 1 + 2 * float(((1 - lags / REQUESTS) * CARRIED**lags).sum())
    of_window = np.sqrt(WINDOW_SD**2 + REQUEST_SD**2 * grown / REQUESTS)
    windows = rng.normal(0, of_window, (*shape, WINDOWS)).mean(axis=-1)
    return np.asarray(launch_effects(rng, spread, skewed, shape) + windows)


def holds(interval: Interval, truth: float = 1.0) -> bool:
    return bool(interval.low <= truth <= interval.high)


# --- claims ---------------------------------------------------------------------------------------


def coverage(rng: Rng, runs: int) -> Iterator[Row]:
    """Nominal 95 % intervals cover 93 to 97 %, whatever the number of launches and their skew."""
    for n in LAUNCHES:
        for spread in SPREADS:
            for skewed in (False, True):
                setting = "skewed" if skewed else "normal"
                given = np.exp(launch_logs(rng, spread, skewed, (runs, n)))
                hits = [holds(stats.over_launches(one)) for one in given]
                yield row("interval over launches", setting, n, spread, hits, 0.93, 0.97)


def two_stage(rng: Rng, runs: int) -> Iterator[Row]:
    """A pilot, as many launches as it asks for, and the interval after them."""
    for n in LAUNCHES:
        for spread in SPREADS:
            for skewed in (False, True):
                draw = partial(launch_logs, rng, spread, skewed)
                found = [_staged(draw, n) for _ in range(runs)]
                setting = "skewed" if skewed else "normal"
                hits = [holds(one) for one in found]
                total = f"{n}, then {np.mean([one.n for one in found]):.0f}"
                yield row("two-stage interval", setting, total, spread, hits, 0.93, 0.97)


def _staged(draw: Callable[[tuple[int, ...]], Floats], pilot: int) -> Interval:
    first = np.exp(draw((pilot,)))
    values = np.append(first, np.exp(draw((replication.needed(first).more,))))
    return replication.two_stage_interval(values, pilot)


def percentiles(rng: Rng, runs: int) -> Iterator[Row]:
    """A p90 by the launches' own p90s, whatever the autocorrelation of their requests."""
    truth = float(np.exp(REQUEST_SD * special.ndtri(0.9)))
    for n in LAUNCHES:
        p90s = (np.quantile(_requests(rng, n), 0.9, axis=1) for _ in range(runs))
        hits = [holds(stats.over_launches(one), truth) for one in p90s]
        yield row("p90 over launches", "normal", n, 0.05, hits, 0.93, 0.97)


def naive(rng: Rng, runs: int) -> Iterator[Row]:
    """What the rules are there for: with requests taken for replicates, no interval holds."""
    for n in LAUNCHES:
        hits = [holds(stats.mean_interval_log(_requests(rng, n))) for _ in range(runs)]
        yield row("requests as replicates (naive)", "normal", n, 0.05, hits, 0, 0.9)


def _requests(rng: Rng, n: int) -> Floats:
    """Every request of n launches of one window each: launches x requests, autocorrelated."""
    shared = launch_effects(rng, 0.05, False, (n, 1)) + rng.normal(0, WINDOW_SD, (n, 1))
    fresh = rng.normal(0, REQUEST_SD, (n, REQUESTS))
    fresh[:, 1:] *= np.sqrt(1 - CARRIED**2)
    return np.asarray(np.exp(shared + signal.lfilter([1], [1, -CARRIED], fresh)))


def families(rng: Rng, runs: int) -> Iterator[Row]:
    """A/A: families in which nothing differs, and any comparison says that something does."""
    for n in LAUNCHES:
        for skewed in (False, True):
            setting = "skewed" if skewed else "normal"
            logs = launch_logs(rng, 0.05, skewed, (runs, CELLS, n, ARMS))
            logs += rng.normal(0, 0.05, (runs, 1, n, 1))  # of blocks
            hits = [any(_dunnett(cell) for cell in one) for one in logs]
            yield row("A/A, Dunnett", setting, n, 0.05, hits, 0, at_most(runs))
            hits = [any(_bonferroni(cell) for cell in one) for one in logs]
            yield row("A/A, Bonferroni", setting, n, 0.05, hits, 0, at_most(runs))


def _dunnett(logs: Floats) -> bool:
    """Whether one of the arms is told from the first, inside blocks (rows)."""
    blocks, arms = logs.shape
    place = np.arange(logs.size)
    names = tuple(map(str, range(arms)))
    model = additive.fit(logs.ravel(), place % arms, place // arms, names, blocks)
    found = dunnett.simultaneous(model, names[0], names[1:], families=CELLS)
    return any(abs(one.value) > found.reach * one.error for one in found.estimates.values())


def _bonferroni(logs: Floats) -> bool:
    ratios = (logs[:, 1:] - logs[:, :1]).T
    family = CELLS * (ARMS - 1)
    return any(not holds(stats.of_blocks(one, comparisons=family).effect) for one in ratios)


def equivalences(rng: Rng, runs: int) -> Iterator[Row]:
    """At the margin, TOST says "equivalent" in at most 5 %; without a difference, as it can."""
    for n in LAUNCHES:
        for spread in SPREADS:
            pairs = launch_logs(rng, spread, True, (runs, n, 2))
            ratios = pairs[..., 0] - pairs[..., 1]
            said = [equivalence.equivalent(stats.of_blocks(one + MARGIN)) for one in ratios]
            hits = [one.p_value < 0.05 for one in said]
            yield row("TOST at the margin", "skewed", n, spread, hits, 0, at_most(runs))


def knees(rng: Rng, runs: int) -> Iterator[Row]:
    """The knee of three launches lies within one step of sqrt(2) of the law's own."""
    tested = float(LEVELS[-1])
    gunther = {
        f"Gunther's law, knee at {at:.0f}": (partial(_gunther, sigma, kappa), at)
        for sigma, kappa in ((0.05, 0.001), (0.1, 0.0002), (0.02, 0.002))
        for at in [_knee_of(partial(_gunther, sigma, kappa))]
    }
    caps = {f"hard cap at {at}": (partial(np.minimum, at), 0.95 * at) for at in (12, 40)}
    for name, (law, truth) in {**gunther, **caps}.items():
        assert truth < tested / STEP
        hits = [_near(_curves(rng, law), truth) for _ in range(runs)]
        yield row("knee within a step", name, 3, 0.05, hits, 0.95, 1)


def _gunther(sigma: float, kappa: float, level: Floats) -> Floats:
    return level / (1 + sigma * (level - 1) + kappa * level * (level - 1))


def _knee_of(law: Callable[[Floats], Floats]) -> float:
    """The smallest of all levels in the range that has 95 % of the law's maximum there."""
    level = np.linspace(1, LEVELS[-1], 100_000)
    rate = law(level)
    return float(level[np.argmax(rate >= knee.SHARE * rate.max())])


def _curves(rng: Rng, law: Callable[[Floats], Floats]) -> pd.DataFrame:
    """Three launches that are off by 5 %, and windows by 2 %."""
    launch = np.repeat(np.arange(3), LEVELS.size)
    logs = rng.normal(0, 0.05, 3)[launch] + rng.normal(0, WINDOW_SD, launch.size)
    level = np.tile(LEVELS, 3)
    return pd.DataFrame(
        {"launch": launch, "level": level, "output_tok_s": 100 * law(level) * np.exp(logs)}
    )


def _near(curves: pd.DataFrame, truth: float) -> bool:
    found = knee.knee_over_launches(curves).pooled
    return bool(found.reached and truth / STEP <= found.level <= truth * STEP)


# --- the table ------------------------------------------------------------------------------------

CLAIMS: tuple[Claim, ...] = (coverage, two_stage, percentiles, naive, families, equivalences, knees)


def simulate(runs: int, knee_runs: int, seed: int = 0) -> pd.DataFrame:
    """A row per claim and setting, as in `Row`, and whether it holds."""
    of: dict[Claim, int] = {families: runs, knees: knee_runs}
    rows = [
        one
        for place, claim in enumerate(CLAIMS)
        for one in claim(np.random.default_rng([seed, place]), of.get(claim, runs // 2))
    ]
    return pd.DataFrame([{**asdict(one), "holds": one.holds} for one in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--runs", type=int, default=10_000, help="of families; half of other claims"
    )
    parser.add_argument("--knee-runs", type=int, default=400)
    asked = parser.parse_args()
    table = simulate(asked.runs, asked.knee_runs)
    DERIVED.mkdir(parents=True, exist_ok=True)
    table.to_csv(DERIVED / "benchmark_coverage.csv", index=False)
    print(markdown(table))
    if not table["holds"].all():
        raise SystemExit("Some claim does not hold.")


def markdown(table: pd.DataFrame) -> str:
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    for values in table.itertuples(index=False):
        lines.append(" | ".join(f"{v:.4g}" if isinstance(v, float) else f"{v}" for v in values))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
