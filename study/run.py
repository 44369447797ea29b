"""One launch: start, prime, warm, windows in order, stop. Every exit leaves a truthful record."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TextIO

import psutil

from study import cores, engine, experience, frames, outputs, paths, plan, standing
from study.budget import Budget
from study.client import Client
from study.errors import StudyError
from study.experiment import STORAGE, Arm, Experiment
from study.plan import Launch
from study.progress import Progress
from study.search import Search, Seen
from study.server import Server, ServerError, free_port
from study.store import MAX_ATTEMPTS, LaunchWriter, Store, write_json
from study.window import Session

SERVER_INFO_S = 120.0  # the engine asks the whole machine for its versions before it answers
STORED = "kv-"  # how the folders begin in which an engine keeps KV cache


def run_experiment(
    experiment: Experiment, store: Store | None = None, out: TextIO | None = None
) -> tuple[Launch, ...]:
    """Measure every launch of the experiment that is not on disk yet; return all its launches.

    With a deadline in the environment (see study.budget) it stops in time.

    Raises: StudyError when nothing can be measured at all; an arm that fails does not raise.
    """
    store, say, setup = store or Store(), out or sys.stdout, plan.setup()
    budget = Budget.from_environment(experience.of_this_machine(store, setup))
    launches = plan.launches(experiment, setup)
    missing = budget.order(standing.missing(launches, store))
    if not missing:
        print(f"{experiment.name}: all {len(launches)} launches are on disk", file=say, flush=True)
        return launches
    to_do = plan.cost(missing).at(budget.slowness)
    print(f"{experiment.name}: {to_do} to measure", file=say, flush=True)
    if not any(map(budget.allows, missing)):
        print("no time is left for it: the budget is spent", file=say, flush=True)
        return launches
    progress = Progress(missing, out, budget.known)
    with store.measuring(), Client(cpus=cores.client()) as client:
        for number, launch in enumerate(missing, start=1):
            progress.launch(launch, number, experiment.launches)
            _try(launch, launches, store, client, progress, budget)
    return launches


def _try(
    launch: Launch,
    launches: tuple[Launch, ...],
    store: Store,
    client: Client,
    progress: Progress,
    budget: Budget,
) -> None:
    """Measure a launch; where it failed, once more at once, in the same block."""
    tries = 0
    while tries < MAX_ATTEMPTS and launch in standing.missing(launches, store):
        if not budget.allows(launch):
            if tries:
                progress.say("not tried again: the budget leaves no time for it")
            else:
                progress.skipped(launch, "not measured: the budget leaves no time for it")
            return
        tries += 1
        progress.say("starting the server")
        _revive(client)
        run_launch(launch, store, client, progress, budget.ordering)
        budget.known = experience.of_this_machine(store, launch.setup)
    if not tries:
        progress.skipped(launch, "settled by the engine's answer in an earlier block")


def _revive(client: Client) -> None:
    """Start a client again that died in an earlier launch, for want of memory say."""
    try:
        died = psutil.Process(client.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        died = True
    if died:
        client.__exit__(None, None, None)
        client.__enter__()


def run_launch(
    launch: Launch, store: Store, client: Client, progress: Progress, order: str = "random"
) -> None:
    """Measure one launch. Only an interruption or a full disk raises; the rest is an outcome.

    `order` is how its block was ordered, for the record.
    """
    writer = store.begin(launch)
    writer.update(order=order)
    try:
        outcome, reason = _measure(launch, writer, client, progress)
    except ServerError as error:
        outcome, reason = ("rejected" if error.refused else "failed"), error.reason
        writer.update(error=str(error))
    except StudyError as error:
        outcome, reason = "failed", str(error)
    except BaseException as error:
        writer.update(status="interrupted", reason=f"{type(error).__name__}: {error}")
        raise
    writer.end(outcome, reason)
    progress.launch_done(launch, outcome, reason)


def _measure(
    launch: Launch, writer: LaunchWriter, client: Client, progress: Progress
) -> tuple[str, str]:
    arm, port, name = launch.arm, free_port(), f"study-{launch.id}"
    # The weights are made up from the seed of the block: launches of a block share them.
    seed = launch.seed + launch.block
    folder = engine.model_folder(arm.model, seed, compared=arm.output_passes > 0)
    started = time.monotonic()
    with _storage(arm) as storage:
        command = engine.command(arm, sys.executable, folder, name, port, seed, str(storage))
        writer.update(command=command.as_shell(), compile_cache=engine.compile_cache())
        with Server(command, name, port, writer.log) as server, _interruption_noted(writer):
            bound = cores.bind(server.pid, engine.core_pid(server.log_text()))
            writer.update(ready_s=server.ready_s, cores=bound)
            longest = int(arm.flags["max_model_len"])
            beside = ThreadPoolExecutor()  # its answer takes seconds, and so do the prompts
            info = beside.submit(server.require, "GET", "/server_info", SERVER_INFO_S)
            beside.shutdown(wait=False)  # who interrupts the prompts does not wait for it
            said = outputs.capture(server, arm.model, longest, arm.output_passes)
            write_json(writer.folder / "outputs.json", said)
            in_force = engine.in_force(server.metrics(), info.result()[1], server.log_text())
            writer.update(in_force=in_force)
            _load(Session(launch, server, client, storage), writer, in_force, progress)
            stopping = time.monotonic()
        ended = time.monotonic()
    writer.update(stop_s=ended - stopping, wall_s=ended - started)
    return _outcome(arm.expected, in_force)


def _load(
    session: Session, writer: LaunchWriter, in_force: dict[str, str | None], progress: Progress
) -> None:
    """Every window in order, once more where it is void for passing reasons.

    Where the arm has a search, what it saw is put on record.
    """
    launch, numbers = session.launch, count()
    seen: dict[str, dict[int, float | None]]
    seen = {window.workload.name: {} for window in launch.arm.windows}
    for asked in plan.windows(launch.arm, seen):
        for window in (asked, asked.once_more()):
            progress.window(launch, window)
            folder = writer.window_folder(number := next(numbers), window.name)
            session.measure(number, window, folder)
            progress.window_done(launch, window)
            found = frames.just_measured(launch, folder, in_force, Store(writer.folder.parent))
            if not (found.of_the_moment and window.repeatable):
                break
        if window.second:  # what is void and measured once more needs no second opinion
            progress.say(f"{window.workload} · level {window.level} · by the second instrument")
            session.compare(number, window, folder)
        if search := launch.arm.search:
            seen[asked.workload.name][asked.level] = found.output_tok_s
            writer.update(search=_said(search, seen))


def _said(search: Search, seen: Mapping[str, Seen]) -> dict[str, object]:
    """What the search saw of each workload, in order, and where that leaves it."""
    return {
        workload: {"seen": list(so_far.items()), **asdict(search.next(so_far))}
        for workload, so_far in seen.items()
    }


@contextmanager
def _storage(arm: Arm) -> Iterator[Path | None]:
    """A folder for as long as the launch lasts, if a flag of the arm wants one."""
    if not any(STORAGE in str(value) for value in arm.flags.values()):
        yield None
        return
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    for left in paths.CACHE.glob(f"{STORED}*"):  # by a run that was killed; no other one runs now
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=STORED, dir=paths.CACHE) as folder:
        yield Path(folder)


@contextmanager
def _interruption_noted(writer: LaunchWriter) -> Iterator[None]:
    """Put an interruption on record before the server is stopped: there may be no time after it."""
    try:
        yield
    except KeyboardInterrupt:
        writer.update(status="interrupted", reason="KeyboardInterrupt")
        raise


def _outcome(expected: dict[str, str], in_force: dict[str, str | None]) -> tuple[str, str]:
    """Measured, or overridden when the engine says that it ran something else than asked."""
    other = [
        f"{name} was to be {wanted}, the engine ran {in_force[name]}"
        for name, wanted in expected.items()
        if in_force.get(name) not in (None, wanted)
    ]
    return ("overridden", "; ".join(other)) if other else ("measured", "")
