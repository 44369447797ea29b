"""What a chapter of the report is made of: one experiment, all that is on disk of it, and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from study import agreement, calibration, frames, pictures, same_output
from study.agreement import Seconds
from study.calibration import Calibration
from study.experiment import Experiment
from study.frames import Frames
from study.plan import Launch, launches
from study.sentences import Values
from study.standing import standings
from study.store import Store
from study.style import Drawn
from study.tables import Table


@dataclass(frozen=True)
class Text:
    """Markdown, to be shown as such."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text


Shown = Text | Drawn | Table


@dataclass(frozen=True, eq=False)
class Part:
    """One experiment of the study, with all that is on disk of it.

    outputs: what the fixed prompts gave (see study.same_output); seconds: what the second
    instrument said of the same launches; calibration: of the client on this machine, if any.
    """

    notebook: str
    experiment: Experiment
    launches: tuple[Launch, ...]
    found: Frames
    records: tuple[Mapping[str, Any], ...]
    outputs: pd.DataFrame
    example: pictures.Window | None
    seconds: Seconds = field(default_factory=Seconds)
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        return self.experiment.name


class Chapter(Protocol):
    """A module of study.chapters: how one experiment is told."""

    def summary(self, part: Part, values: Values) -> list[Shown]:
        """The headline: what was found, with intervals, in a few sentences."""

    def results(self, part: Part, values: Values) -> list[Shown]:
        """Figures, tables and sentences, each kept under `<notebook>-...`."""


class Analysis(Protocol):
    """A module of study.chapters: how a notebook that measures nothing is told, with its title."""

    def summary(self, values: Values) -> list[Shown]:
        """What was found, in a few sentences."""

    def results(self, values: Values) -> list[Shown]:
        """Figures, tables and sentences."""

    def appendix(self, values: Values) -> list[Shown]:
        """What only some readers want: every row."""


def read(experiment: Experiment, setup: dict[str, Any], store: Store | None = None) -> Part:
    """Everything on disk that the experiment asks for, from this machine and engine."""
    store = store or Store()
    asked = launches(experiment, setup)
    found = frames.read(asked, store)
    tried = [one.attempt for one in standings(asked, store)]
    return Part(
        notebook=experiment.notebook,
        experiment=experiment,
        launches=asked,
        found=found,
        records=tuple(one.record for one in tried if one and one.record),
        outputs=same_output.read(asked, store),
        example=pictures.example(found, store),
        seconds=agreement.read(asked, store),
        calibration=calibration.read(setup, store),
    )
