"""The whole study of a profile: say what will be done, run what is missing, compile the report."""

from __future__ import annotations

import time
from pathlib import Path

from study import notebooks, paths, plan, platform, profiles, standing
from study.plan import Launch
from study.profiles import Profile
from study.report import render
from study.store import Store

RENDERING_S = 40.0  # the notebooks' own cells and the report


def all_launches(profile: Profile) -> tuple[Launch, ...]:
    """Every launch of every experiment of the profile."""
    setup = plan.setup()
    return tuple(
        launch
        for experiment in profile.experiments.values()
        for launch in plan.launches(experiment, setup)
    )


def describe(profile: Profile, store: Store) -> str:
    """What the profile will do on this machine, and how long that takes."""
    launches = all_launches(profile)
    missing = standing.missing(launches, store)
    engine, machine = platform.engine(), platform.machine()
    lines = [
        f"profile {profile.name}: {profile.description}",
        f"engine: {engine.package} {engine.version} ({engine.kind})",
        f"machine: {', '.join(machine.gpus) or 'no GPU'}, {machine.cores} cores ({machine.cpu}), "
        f"{machine.memory_gib} GiB",
        f"the whole profile: {plan.cost(launches)}",
        f"still to measure:  {plan.cost(missing)}",
        f"then the report, about {RENDERING_S:.0f} s",
    ]
    return "\n".join(lines)


def reproduce(name: str) -> Path:
    """Run the study; return the report. Only what is not on disk yet is measured."""
    profile = profiles.load(profiles.chosen(name))
    store = Store()
    store.prepare()
    print(describe(profile, store), flush=True)
    began = time.monotonic()
    for notebook, experiment in profile.experiments.items():
        print(f"\n{notebook}", flush=True)
        notebooks.execute(notebook, dict(experiment))
    path = report(profile.name)
    print(f"\ndone in {plan.duration(time.monotonic() - began)}; the report: {path}")
    return path


def report(name: str) -> Path:
    """Compile the report of a profile from what is on disk."""
    profile = profiles.load(profiles.chosen(name))
    print(f"\n{notebooks.REPORT}", flush=True)
    executed = notebooks.execute(notebooks.REPORT, {"profile": profile.name})
    paths.REPORT.mkdir(parents=True, exist_ok=True)
    return render(executed, paths.REPORT / "report.html")
