"""Calibrate the client: measure it against a null server, on the cores that real windows have."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from study import calibration, cores, nullserver, plan
from study.calibration import Calibration
from study.client import Client, Load
from study.errors import StudyError
from study.nullloads import INPUT_TOKENS, TTFT_MS, Grid, NullLoad
from study.store import Store, now, write_json

UNFINISHED = f".{calibration.PREFIX}"


def calibrate(grid: Grid, store: Store | None = None, out: TextIO | None = None) -> Calibration:
    """Measure the loads of the grid unless they are on disk; return all that is known.

    What was interrupted is measured anew, whole; so is, where failures are forgiven (`RETRY=1`),
    what did not keep the pace. Then the better try at each load counts.
    """
    store, say, setup = store or Store(), out or sys.stdout, plan.setup()
    if calibration.is_done(grid, setup, store):
        print("calibration: on disk", file=say, flush=True)
    else:
        loads = f"{len(calibration.asked(grid))} loads, about {plan.duration(grid.expected_s)}"
        print(f"calibration: {loads}", file=say, flush=True)
        with store.measuring():
            _measure(grid, setup, store)
    found = calibration.read(setup, store)
    if found is None:
        raise StudyError(f"A calibration must be readable once measured; see {store.folder}.")
    return found


def _measure(grid: Grid, setup: Mapping[str, Any], store: Store) -> None:
    """All loads into a hidden folder, which gets its name when it is whole."""
    for left in store.folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=store.folder))
    try:
        began = now()
        with Client(cpus=cores.client()) as client:
            _loads(grid, client, cores.api_server(setup["engine"]["kind"]), partial)
        budget, asked = calibration.budget(setup), calibration.asked(grid)
        content = {"budget": budget, "asked": asked, "started_utc": began, "ended_utc": now()}
        write_json(partial / calibration.FILE, content)
        partial.chmod(0o755)
        partial.rename(calibration.new_folder(grid, setup, store))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _loads(grid: Grid, client: Client, cpus: list[int], into: Path) -> None:
    """The grid, then the ramp until it breaks at some rate; if it never held, downwards.

    What was not true is tried twice, because a neighbour on the machine can spoil a load, but never
    make one better: one spoiled load of the grid can void most windows of the study.
    """
    first = next(grid.loads())
    with tempfile.TemporaryDirectory() as scratch:
        one_load(first, client, cpus, Path(scratch) / "warm")  # its first load imports

    def kept(load: NullLoad) -> bool:
        return _keep(load, client, cpus, into) or _keep(load, client, cpus, into)

    for load in grid.loads():
        kept(load)
    if not list(itertools.takewhile(kept, grid.ramp())):
        for load in grid.gentler():
            if kept(load):
                return


def _keep(load: NullLoad, client: Client, cpus: list[int], into: Path) -> bool:
    """Measure one load into the next numbered folder; whether client and server were true."""
    path = into / f"{len(list(into.iterdir())):02d}"
    stats = one_load(load, client, cpus, path)
    write_json(path / calibration.POINT, {"load": asdict(load), "stats": stats})
    return calibration.is_true(path)


def one_load(load: NullLoad, client: Client, cpus: list[int], into: Path) -> dict[str, float]:
    """One load, all slots at once as a batch's tokens come; what the server says of it."""
    with nullserver.serve(TTFT_MS, load.itl_ms, cpus=cpus) as base_url:
        asked = Load(
            base_url=base_url,
            model="null",
            input_tokens=INPUT_TOKENS,
            output_tokens=load.output_tokens,
            vocabulary=1000,
            concurrency=load.level,
            requests=load.waves * load.level,
            keep_text=True,
        )
        client.run(asked, into)
        return nullserver.stats(base_url)
