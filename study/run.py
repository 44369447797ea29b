"""One launch: start, prime, warm, windows in order, stop. Every exit leaves a truthful record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import TextIO

import psutil

from study import cores, engine, experience, frames, plan, standing
from study.budget import Budget
from study.client import Client
from study.errors import StudyError
from study.experiment import Experiment
from study.plan import Launch
from study.progress import Progress
from study.search import Search, Seen
from study.server import ServerError
from study.starts import Start, Starts
from study.store import MAX_ATTEMPTS, LaunchWriter, Store
from study.window import Session

SETTLED = "settled by the engine's answer in an earlier block"


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
    missing = plan.paired(budget.order(standing.missing(launches, store)))
    if not missing:
        print(f"{experiment.name}: all {len(launches)} launches are on disk", file=say, flush=True)
        return launches
    to_do = plan.cost(missing).at(budget.slowness)
    print(f"{experiment.name}: {to_do} to measure", file=say, flush=True)
    if not any(map(budget.allows, missing)):
        print("no time is left for it: the budget is spent", file=say, flush=True)
        return launches
    with (
        store.measuring(),
        Client(cpus=cores.client()) as client,
        closing(Starts(store, budget.ordering)) as starts,
    ):
        progress = Progress(missing, out, budget.known)
        run = Run(launches, store, starts, client, progress, budget)
        for number, launch in enumerate(missing):
            progress.launch(launch, number + 1, experiment.launches)
            run.settle(launch, missing[number + 1 :])
    return launches


@dataclass(frozen=True)
class Run:
    """The launches of an experiment, and what they are measured with."""

    launches: tuple[Launch, ...]
    store: Store
    starts: Starts
    client: Client
    progress: Progress
    budget: Budget

    def settle(self, launch: Launch, later: Sequence[Launch]) -> None:
        """Measure a launch; where it failed, once more at once, in the same block.

        `later`: those whose turn comes after it, in order.
        """
        for tries in range(MAX_ATTEMPTS):
            to_do = standing.missing(self.launches, self.store)
            if launch not in to_do:
                if not tries:
                    self.progress.skipped(launch, SETTLED)
                return
            done_s = launch.start_s if self.starts.waits(launch) else 0.0
            if not self.budget.allows(launch, done_s=done_s):
                self._no_time(launch, again=tries > 0)
                return
            _revive(self.client)
            if tries:
                self.starts.close()  # a second try has the machine to itself
            following = next((one for one in later if one in to_do and not tries), None)
            self.measure(*self._together(launch, following))
            self.budget.known = experience.of_this_machine(self.store, launch.setup)

    def _together(self, launch: Launch, following: Launch | None) -> tuple[Launch, Launch | None]:
        """The launch, and the next one where their servers start together and time is left."""
        if following is not None and not self.starts.waits(launch):
            first, second = plan.paired([launch, following])
            if first.together and self.budget.allows(first, second):
                return first, second
        return replace(launch, together=False), None

    def _no_time(self, launch: Launch, again: bool) -> None:
        if self.starts.waits(launch):
            self.starts.close()
        if again:
            self.progress.say("not tried again: the budget leaves no time for it")
        else:
            self.progress.skipped(launch, "not measured: the budget leaves no time for it")

    def measure(self, launch: Launch, beside: Launch | None) -> None:
        """Measure one launch. Only an interruption or a full disk raises; the rest is an outcome.

        `beside`: the next launch, if its server is to start beside this one's.
        """
        start = self.starts.of(launch)
        try:
            outcome, reason = self._measure(start, beside)
        except ServerError as error:
            outcome, reason = ("rejected" if error.refused else "failed"), error.reason
            start.writer.update(error=str(error))
        except StudyError as error:
            outcome, reason = "failed", str(error)
        except BaseException as error:
            start.writer.update(status="interrupted", reason=f"{type(error).__name__}: {error}")
            raise
        start.writer.end(outcome, reason)
        self.progress.launch_done(start.launch, outcome, reason)

    def _measure(self, start: Start, beside: Launch | None) -> tuple[str, str]:
        launch, writer = start.launch, start.writer
        with closing(start), _interruption_noted(writer):
            self.progress.say(_starting(start, beside))
            self.starts.bring_up(start, beside)
            began, server = time.monotonic(), start.server()
            bound = cores.bind(server.pid, engine.core_pid(server.log_text()))
            waiting = self.starts.waiting
            writer.update(cores=bound, waiting=waiting.launch.id if waiting else None)
            idle = waiting.pid if waiting else None
            session = Session(launch, server, self.client, start.storage, idle)
            _load(session, writer, start.in_force, self.progress)
            stopping = time.monotonic()
        ended = time.monotonic()
        writer.update(stop_s=ended - stopping, wall_s=start.took_s + ended - began)
        return _outcome(launch.arm.expected, start.in_force)


def _starting(start: Start, beside: Launch | None) -> str:
    if start.begun:
        return "its server has waited, ready"
    return "starting the server" + (f", and that of {beside.arm.name} beside it" if beside else "")


def _revive(client: Client) -> None:
    """Start a client again that died in an earlier launch, for want of memory say."""
    try:
        died = psutil.Process(client.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        died = True
    if died:
        client.__exit__(None, None, None)
        client.__enter__()


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
