"""The whole study of a profile: say what will be done, run what is missing, compile the report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from study import (
    budget,
    calibration,
    experience,
    notebooks,
    paths,
    plan,
    platform,
    profiles,
    speed,
    standing,
)
from study.acquaint import acquainted
from study.budget import Budget
from study.errors import StudyError
from study.experiments import Instrument
from study.page import render
from study.plan import Launch
from study.profiles import Choice, Profile
from study.store import Store

NOTEBOOK_S = 9.0  # a notebook's own cells: its kernel, tables and figures
REPORT_S = 45.0  # and the look at what the machine can do


def all_launches(profile: Profile) -> tuple[Launch, ...]:
    """Every launch of every experiment of the profile, each once."""
    setup = plan.setup()
    found = {
        launch.id: launch
        for experiment in profile.experiments.values()
        for launch in plan.launches(experiment, setup)
        if not launch.not_applicable
    }
    return tuple(found.values())


def in_reading_order(profile: Profile) -> list[str]:
    """Every notebook of the profile but the report: what is known before what is measured."""
    return sorted([*profile.experiments, *profile.analyses])


def rendering_s(profile: Profile) -> float:
    """How long the notebooks and the report take beside the measuring."""
    return speed.slowness() * (NOTEBOOK_S * len(in_reading_order(profile)) + REPORT_S)


def calibrating_s(profile: Profile, store: Store) -> float:
    """How long the calibrations take that are not on disk yet."""
    grids = {one.grid for one in profile.experiments.values() if isinstance(one, Instrument)}
    setup = plan.setup()
    return sum(grid.expected_s for grid in grids if not calibration.is_done(grid, setup, store))


def describe(profile: Profile, store: Store, budget_s: float | None = None) -> str:
    """What the profile will do on this machine, and how long that takes."""
    launches = all_launches(profile)
    missing = standing.missing(launches, store)
    known = experience.of_this_machine(store, plan.setup())
    to_do = plan.cost(missing).at(known.slowness)
    engine, machine = platform.engine(), platform.machine()
    rest_s = rendering_s(profile) + calibrating_s(profile, store)
    lines = [
        f"profile {profile.name}: {profile.description}",
        f"engine: {engine.package} {engine.version} ({engine.kind})",
        f"machine: {', '.join(machine.gpus) or 'no GPU'}, {machine.cores} cores ({machine.cpu}), "
        f"{machine.memory_gib} GiB",
        f"pace: {known}",
        f"the whole profile: {plan.cost(launches).at(known.slowness)}",
        f"still to measure:  {to_do}",
        f"without a server:  {', '.join(profile.analyses) or 'nothing'}",
        f"in all, with calibration, notebooks and report: about "
        f"{plan.duration(to_do.seconds + rest_s)}",
    ]
    if budget_s is not None:
        lines.append(_within(missing, budget_s - rest_s, Budget(known=known).slowness))
    return "\n".join(lines)


def _within(missing: tuple[Launch, ...], left_s: float, slowness: float) -> str:
    """What a budget leaves room for, in the order in which it would be measured: see _in_rounds."""
    fitting: list[Launch] = []
    place = {name: number for number, name in enumerate(one.experiment for one in missing)}
    order = sorted(missing, key=lambda one: (one.block, place[one.experiment], one.arm.rank))
    for launch in plan.paired(order):
        expected_s = slowness * launch.expected_s
        if budget.MARGIN * expected_s <= left_s:
            fitting.append(launch)
            left_s -= expected_s
    room = plan.cost(fitting).at(slowness)
    if not (rest := len(missing) - len(fitting)):
        return f"within the budget: {room}, which is all"
    return f"within the budget: {room}; of the launches, {rest} will be shown as not measured"


def reproduce(choice: Choice, budget_s: float | None = None) -> Path:
    """Run the study; return the report. Only what is not on disk yet is measured.

    With a budget every experiment's first block comes before any second block, and the report
    says what there was no time for.

    Raises: StudyError where a notebook failed, after all the others and the report.
    """
    began, failed = time.monotonic(), []
    profile, store = profiles.load(choice), Store()
    store.prepare()
    print(describe(profile, store, budget_s), flush=True)
    with acquainted(standing.missing(all_launches(profile), store)) as wait:
        if budget_s is not None:
            wait()
            os.environ[budget.DEADLINE] = str(began + budget_s - rendering_s(profile))
            _in_rounds(profile, store)
        for notebook in in_reading_order(profile):
            if notebook in profile.experiments:
                wait()
            if not _ran(notebook, notebook, dict(profile.experiments.get(notebook, ()))):
                failed.append(notebook)
    path = report(choice)
    print(f"\ndone in {plan.duration(time.monotonic() - began)}; the report: {path}")
    if failed:
        raise StudyError(
            f"every notebook must run to its end; {', '.join(failed)} did not (see above). Mend "
            "the cause and run the same command again; the report shows what there is."
        )
    return path


def _ran(notebook: str, title: str, parameters: Mapping[str, object]) -> bool:
    """Run a notebook of the profile; whether it came to its end. The others do not wait for it."""
    print(f"\n{title}", flush=True)
    try:
        notebooks.execute(notebook, parameters)
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _in_rounds(profile: Profile, store: Store) -> None:
    """Block by block over all experiments, for as long as there is time for a launch more.

    The last block of those that have most is the ordinary run's.
    """
    setup = plan.setup()
    for block in range(max((launch.block for launch in all_launches(profile)), default=0)):
        for notebook, experiment in profile.experiments.items():
            upto = experiment.model_copy(update={"launches": min(block + 1, experiment.launches)})
            missing = standing.missing(plan.launches(upto, setup), store)
            limit = Budget.from_environment(experience.of_this_machine(store, setup))
            if any(limit.allows(launch) for launch in missing):
                _ran(notebook, f"{notebook}, block {block + 1}", dict(upto))


def report(choice: Choice) -> Path:
    """Compile the report of a profile from what is on disk."""
    print(f"\n{notebooks.REPORT}", flush=True)
    executed = notebooks.execute(notebooks.REPORT, choice.parameters())
    paths.REPORT.mkdir(parents=True, exist_ok=True)
    return render(executed, paths.REPORT / "report.html")
