"""What a search for the knee costs beside the whole grid of levels, and whether it finds the same.

    python benchmarks/adaptive.py              # simulated laws, with and without noise
    python benchmarks/adaptive.py --engine     # the real one, in about 15 minutes

The engine's part measures two models on three launches each with the whole grid, from 1 to four
times the batch limit in steps of sqrt(2), and on three launches each with the search; it also
replays the search on the windows of the grid. Writes data/derived/benchmark_search.csv or
benchmark_search_engine.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # so that it runs from anywhere

from laws import FIXED, SCENARIOS, Scenario, curves_of, replay, same_knee, seconds  # noqa: E402

from study import frames, paths  # noqa: E402
from study.experiments import Architecture  # noqa: E402
from study.knee import Knee, knee, knee_over_launches  # noqa: E402
from study.run import run_experiment  # noqa: E402
from study.search import Search  # noqa: E402

RUNS = 100
NOISE = 0.03
MODELS = ["gqa-dense", "mla-dense"]
BATCH = 16
LAUNCHES = 3


def main() -> None:
    """Print the table that was asked for and keep it."""
    if "--engine" in sys.argv[1:]:
        table, name = pd.concat([_measured(model) for model in MODELS]), "benchmark_search_engine"
    else:
        table, name = pd.DataFrame([_simulated(one) for one in SCENARIOS]), "benchmark_search"
    paths.DERIVED.mkdir(parents=True, exist_ok=True)
    table.to_csv(paths.DERIVED / f"{name}.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3g}".format))


# --- simulated ------------------------------------------------------------------------------------


def _simulated(scenario: Scenario) -> dict[str, object]:
    """One law: the knee of the grid and of the search, and both shares, without and with noise."""
    search = scenario.search
    exact, *noisy = curves_of(scenario, RUNS, NOISE)
    seen = replay(search, exact)
    found = [(replay(search, curve), curve) for curve in noisy]
    shares = [seconds(scenario, one) / seconds(scenario, exact) for one, _ in found]
    return {
        "law": scenario.name,
        "batch": scenario.batch,
        "latency_s": scenario.latency_s,
        "grid_knee": _knee(exact).level,
        "search_knee": _knee(seen).level,
        "share": seconds(scenario, seen) / seconds(scenario, exact),
        "same_with_noise": np.mean([same_knee(_knee(a), _knee(b)) for a, b in found]),
        "share_with_noise": np.mean(shares),
        "windows": np.mean([len(one) for one, _ in found]),
        "grid_windows": len(exact),
    }


def _knee(curve: dict[int, float]) -> Knee:
    return knee(list(curve), list(curve.values()))


# --- measured -------------------------------------------------------------------------------------


def _measured(model: str) -> pd.DataFrame:
    """A row for the grid, for the search replayed on it, and for launches that search."""
    search = Search(batch=BATCH, ceiling=4 * BATCH)
    grid = _windows(model, levels=list(search.grid), saturated=[])
    of_launches = (of_launch for _, of_launch in grid.groupby("launch"))
    asked = [one[one["level"].isin(replay(search, _curve(one)))] for one in of_launches]
    rows = {
        "grid": grid,
        "search replayed on it": pd.concat(asked),
        "search": _windows(model, levels=list(FIXED), saturated=[model]),
    }
    whole_s = grid["wall_s"].sum()
    return pd.DataFrame([_row(model, how, rows[how], whole_s) for how in rows])


def _row(model: str, how: str, windows: pd.DataFrame, whole_s: float) -> dict[str, object]:
    found = knee_over_launches(windows[windows["verdict"] == "valid"]).pooled
    return {
        "model": model,
        "levels": how,
        "launches": windows["launch"].nunique(),
        "windows": len(windows),
        "void": int((windows["verdict"] == "void").sum()),
        "load_s": windows["wall_s"].sum(),
        "share": windows["wall_s"].sum() / whole_s,
        "knee": found.level,
        "maximum_tok_s": found.maximum,
        "model_of_fit": found.model,
        "tried": "; ".join(
            " ".join(map(str, levels)) for _, levels in windows.groupby("launch")["level"]
        ),
    }


def _curve(windows: pd.DataFrame) -> dict[int, float]:
    valid = windows[windows["verdict"] == "valid"]
    return dict(zip(valid["level"], valid["output_tok_s"], strict=True))


def _windows(model: str, levels: list[int], saturated: list[str]) -> pd.DataFrame:
    """The windows of the launches, in the order in which they were measured."""
    asked = {"models": [model], "levels": levels, "saturated": saturated, "max_num_seqs": BATCH}
    asked |= {"workloads": ["short:128/64"], "launches": LAUNCHES, "steady_s": 2.5}
    return frames.read(run_experiment(Architecture.of(asked))).windows


if __name__ == "__main__":
    main()
