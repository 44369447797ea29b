"""Where the wall time of `make reproduce` goes: starts, warm-ups, windows, stops, all else.

    python benchmarks/where_time_goes.py

Reads what the last run left: the records in data/raw that were made while the executed notebooks
in build/ ran, and the notebooks' own times. Writes data/derived/benchmark_time.csv.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from anywhere, installed or not

from study import paths  # noqa: E402
from study.calibration import FILE, PREFIX  # noqa: E402
from study.store import Attempt, Store  # noqa: E402

ALL_ELSE_LIMIT = 0.10


def main() -> None:
    """Print the shares and keep them."""
    executed = [json.loads(path.read_text()) for path in sorted(paths.BUILD.glob("*.ipynb"))]
    if not executed:
        sys.exit(
            "there must be executed notebooks in build/; there are none. Run `make reproduce`."
        )
    times = [notebook["metadata"]["papermill"] for notebook in executed]
    began = min(datetime.fromisoformat(one["start_time"]) for one in times)
    total_s = sum(float(one["duration"]) for one in times)
    attempts = [one for one in Store().attempts() if _since(one, began)]
    if not attempts:
        sys.exit("the last run must have measured something; all was on disk already.")
    parts = pd.DataFrame([_parts(one) for one in attempts]).sum()
    parts["calibration"] = _calibration_s(began)
    parts["all else"] = total_s - parts.sum()
    table = pd.DataFrame({"seconds": parts, "share": parts / total_s}).rename_axis("part")
    table.to_csv(paths.DERIVED / "benchmark_time.csv")
    print(f"{len(attempts)} launches, {total_s:.0f} s in notebooks")
    print(table.to_string(formatters={"seconds": "{:.1f}".format, "share": "{:.1%}".format}))
    verdict = "within" if parts["all else"] <= ALL_ELSE_LIMIT * total_s else "above"
    print(f"all else is {verdict} the limit of {ALL_ELSE_LIMIT:.0%}")


def _since(attempt: Attempt, began: datetime) -> bool:
    record = attempt.record or {}
    ended = record.get("ended_utc")
    return ended is not None and datetime.fromisoformat(ended).timestamp() >= began.timestamp()


def _parts(attempt: Attempt) -> dict[str, float]:
    record = attempt.record or {}
    windows = [json.loads((folder / "window.json").read_text()) for folder in attempt.windows]
    return {
        "server starts": record.get("start_s") or _refused_s(record),
        "warm-ups": sum(one["warm_s"] for one in windows),
        "windows": sum(one["load_s"] for one in windows),
        "second instrument": sum(one["second"]["wall_s"] for one in windows if "second" in one),
        "server stops": record.get("stop_s") or 0.0,
    }


def _calibration_s(began: datetime) -> float:
    """How long the client was measured against the null server since then."""
    spans = [
        [datetime.fromisoformat(said[name]) for name in ("started_utc", "ended_utc")]
        for path in paths.RAW.glob(f"{PREFIX}*/{FILE}")
        for said in [json.loads(path.read_text())]
    ]
    return sum((end - start).total_seconds() for start, end in spans if end >= began)


def _refused_s(record: Mapping[str, Any]) -> float:
    """How long a server took to end without ever being ready, in whole seconds."""
    if "wall_s" in record:
        return 0.0
    began, ended = (datetime.fromisoformat(record[name]) for name in ("started_utc", "ended_utc"))
    return (ended - began).total_seconds()


if __name__ == "__main__":
    main()
