"""What the client adds, as it was measured against the null server on this machine.

    data/raw/calibration-<hash>/calibration.json   last of all: what was asked, and of what
    data/raw/calibration-<hash>/<nn>/              a load: recording with text, then point.json

The hash is that of the client's code, the machine, the cores that client and server had, and the
loads asked for; one measured anew gets a folder of its own, `calibration-<hash>.2`. A folder is
there whole or not at all. What is stated is computed from all of them here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from study import cores, protocol, truth
from study.client import Recording
from study.gates.level import LEVEL_TOLERANCE
from study.nullloads import GRID, RAMP, Grid, NullLoad
from study.steady import floats, least_sample
from study.store import FORGIVEN, Store
from study.truth import Claims

# What stands between a token's write and its time in our data, and what the truth is told by.
CLIENT = ("client", "connection", "drive", "prompts", "wire", "nullserver", "nullstreams")
PACKAGES = ("python", "uvloop", "numpy")
PREFIX = "calibration-"
FILE = "calibration.json"
POINT = "point.json"


@dataclass(frozen=True)
class Calibration:
    """What the client adds under the core budget of real windows.

    `points`, a row per load, in order: the fields of its NullLoad; asked_per_s (its chunk rate);
    all fields of `study.truth.errors`; ttft_added_median_ms, ttft_added_p99_ms (of the error of
    TTFT the client's own part: sending late and reading late; the rest is the way to the server
    and its wake-up; a p99 of TTFT that its sample cannot carry is NaN); held
    (no request failed, and level and chunk rate were held by the server's own clock); true (held,
    and errors and lateness within study.truth.TRUE_MS).
    """

    points: pd.DataFrame
    client_cpus: tuple[int, ...]
    server_cpus: tuple[int, ...]

    @property
    def shared(self) -> bool:
        """Whether client and server had no core of their own."""
        return set(self.client_cpus) == set(self.server_cpus)

    @property
    def breaking_per_s(self) -> float:
        """The lowest chunk rate that the ramp asked for and that client and null server together
        did not keep, or not truly, and did not when asked again; NaN where it kept all."""
        ramp = self.points[self.points["kind"] == RAMP]
        broken = ramp.loc[~ramp.groupby("itl_ms")["true"].transform("any"), "asked_per_s"]
        return float(broken.min())

    @property
    def safe_per_s(self) -> float:
        """The highest chunk rate of the ramp that was still true; NaN where none was."""
        ramp = self.points[self.points["kind"] == RAMP]
        kept = ramp[ramp["true"]]
        if not math.isnan(self.breaking_per_s):
            kept = kept[kept["asked_per_s"] < self.breaking_per_s]
        return float(kept["chunks_per_s"].max())

    @cached_property
    def counted(self) -> pd.DataFrame:
        """Of the tries at each load the best, by whether it was held, was true, and by what the
        client added: a neighbour can spoil a load, but never make one better."""
        tries = self.points.reset_index(drop=True)
        added_ms = tries["ttft_added_median_ms"] + tries["itl_error_median_ms"]
        keys = {"held": tries["held"], "true": tries["true"], "fine": -added_ms.fillna(np.inf)}
        order = pd.DataFrame(keys).sort_values(list(keys), kind="stable").index
        best = tries.loc[order].drop_duplicates(["kind", "level", "itl_ms"], keep="last")
        return best.sort_index()

    def harder(self, level: int, chunks_per_s: float) -> pd.Series | None:
        """The gentlest load that was at least as hard; None where none was."""
        points = self.counted
        found = points[(points["level"] >= level) & (points["chunks_per_s"] >= chunks_per_s)]
        return None if found.empty else found.iloc[int(_weight(found).argmin())]

    def easier(self, level: int, chunks_per_s: float) -> pd.Series | None:
        """The hardest load that was no harder; None where none was."""
        points = self.counted
        found = points[(points["level"] <= level) & (points["chunks_per_s"] <= chunks_per_s)]
        return None if found.empty else found.iloc[int(_weight(found).argmax())]


def _weight(points: pd.DataFrame) -> pd.Series:
    """How hard a load was: more streams and more chunks are harder."""
    return points["level"] * points["chunks_per_s"]


def budget(setup: Mapping[str, Any]) -> dict[str, Any]:
    """What a calibration holds for: client code, packages, machine and cores."""
    return {
        "client": protocol.digest(CLIENT),
        "packages": {name: setup["packages"].get(name) for name in PACKAGES},
        "machine": json.loads(json.dumps(setup["machine"])),  # as it is read back
        "client_cpus": cores.client(),
        "server_cpus": cores.api_server(setup["engine"]["kind"]),
    }


def asked(grid: Grid) -> list[dict[str, Any]]:
    """Every load of the grid and the ramp, as kept in the file."""
    return [asdict(load) for load in (*grid.loads(), *grid.ramp())]


def new_folder(grid: Grid, setup: Mapping[str, Any], store: Store) -> Path:
    """Where the next calibration for this grid belongs."""
    name = _name(grid, setup)
    ends = [path.name.removeprefix(name) for path in store.folder.glob(f"{name}*")]
    last = max((int(end.removeprefix(".") or 1) for end in ends), default=0)
    return store.folder / (f"{name}.{last + 1}" if last else name)


def is_done(grid: Grid, setup: Mapping[str, Any], store: Store) -> bool:
    """Whether it need not be measured: it was, and kept the pace of the whole grid.

    Or not, but nobody asked for another try since then (`RETRY=1`).
    """
    before = _before(grid, setup, store)
    if not before:
        return False
    last = max(orjson.loads((path / FILE).read_bytes())["started_utc"] for path in before)
    return last >= os.environ.get(FORGIVEN, "") or _kept(before)


def _name(grid: Grid, setup: Mapping[str, Any]) -> str:
    identity = json.dumps([budget(setup), asked(grid)], sort_keys=True)
    return f"{PREFIX}{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _before(grid: Grid, setup: Mapping[str, Any], store: Store) -> list[Path]:
    """The folders of this calibration that are whole."""
    return [path.parent for path in store.folder.glob(f"{_name(grid, setup)}*/{FILE}")]


def _kept(folders: Sequence[Path]) -> bool:
    """Whether client and null server kept the pace of every load of the grid, in some try."""
    found = Calibration(pd.concat([_points(path) for path in folders]), (), ()).counted
    return bool(found.loc[found["kind"] == GRID, "held"].all())


def read(setup: Mapping[str, Any], store: Store | None = None) -> Calibration | None:
    """All that was calibrated for this client, machine and cores; None where nothing was."""
    wanted, found = budget(setup), []
    for path in sorted((store or Store()).folder.glob(f"{PREFIX}*/{FILE}")):
        if orjson.loads(path.read_bytes())["budget"] == wanted:
            found.append(_points(path.parent))
    if not found:
        return None
    cpus = (tuple(wanted[f"{who}_cpus"]) for who in ("client", "server"))
    return Calibration(pd.concat(found, ignore_index=True), *cpus)


@cache  # a folder under this name is whole, and never edited
def _points(calibration: Path) -> pd.DataFrame:
    return pd.DataFrame([_point(path) for path in sorted(calibration.glob("[0-9]*"))])


def _point(path: Path) -> dict[str, Any]:
    said = orjson.loads((path / POINT).read_bytes())
    load = NullLoad(**said["load"])
    recording = Recording.load(path)
    claims = truth.claims_of(recording)
    found = truth.errors(claims, said["stats"]) | _added(recording, claims)
    kept = (found["in_flight_mean"] / load.level, found["chunks_per_s"] / load.chunks_per_s)
    held = not found["failed"] and all(abs(share - 1) <= LEVEL_TOLERANCE for share in kept)
    true = held and not truth.untrue(found)
    if found["completed"] < least_sample(0.99):
        found |= dict.fromkeys(("ttft_error_p99_ms", "ttft_added_p99_ms"), math.nan)
    state = {"held": held, "true": true}
    return {**asdict(load), "asked_per_s": load.chunks_per_s, **found, **state}


def _added(recording: Recording, claims: Claims) -> dict[str, float]:
    """The client's own part in its TTFT; NaN where no request completed."""
    if not len(claims.told_s):
        return {"ttft_added_median_ms": math.nan, "ttft_added_p99_ms": math.nan}
    fine = recording.requests[recording.requests["error"] == ""]
    sent_late_s = floats(fine, "sent_s") - floats(fine, "due_s")
    added_ms = (sent_late_s + claims.first_s - claims.told_s[:, 1]) * 1e3
    return {
        "ttft_added_median_ms": float(np.median(added_ms)),
        "ttft_added_p99_ms": float(np.quantile(added_ms, 0.99)),
    }


def is_true(path: Path) -> bool:
    """Whether client and null server were true at the load in this folder."""
    return bool(_point(path)["true"])
