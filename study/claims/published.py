"""What others have printed (`data/published/`), as text: its digits say how it was rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd

from study.claims.printed import Number, printed
from study.errors import StudyError, unknown_name
from study.paths import PACKAGE

FOLDER = PACKAGE.parent / "data" / "published"
MEASUREMENTS = FOLDER / "measurements.csv"
CLAIMS = FOLDER / "claims.csv"


@dataclass(frozen=True)
class Claim:
    """A row of claims.csv: what a source concludes, in our words."""

    source: str
    claim: str
    statement: str
    stated: str
    unit: str
    basis: str


CLAIM_COLUMNS = tuple(one.name for one in fields(Claim))


@dataclass(frozen=True)
class Published:
    """Every figure that the sources print; all cells are text, blank where nothing is stated."""

    measurements: pd.DataFrame

    def rows(self, **where: object) -> pd.DataFrame:
        """The rows with these cells, as in `rows(source="metrum-2026", concurrency=128)`."""
        found = self.measurements
        for name, value in where.items():
            found = found[found[name] == str(value)]
        return found

    def number(self, **where: object) -> Number:
        """The one figure with these cells; a StudyError when there are none or several."""
        found = self.rows(**where)
        if len(found) != 1:
            raise StudyError(f"one published figure must have {where}; {len(found)} have it")
        return printed(str(found["value"].iloc[0]))

    def curve(self, **where: object) -> dict[int, Number]:
        """Figures by concurrency, in its order."""
        found = {
            int(row["concurrency"]): printed(row["value"])
            for row in self.rows(**where).to_dict("records")
        }
        return dict(sorted(found.items()))

    def lacks(self, what: str, **where: object) -> str:
        """The name of a figure that no source prints, once it is known that none does.

        So that a claim is never called underivable by mere assertion: a StudyError if the figure
        has come to light, for then the claim must be derived from it.
        """
        found = self.rows(**where)
        if len(found):
            raise StudyError(f"{what} is published after all: derive the claim from {where}")
        return what


def read() -> Published:
    """The figures of `measurements.csv`."""
    return Published(pd.read_csv(MEASUREMENTS, dtype=str, keep_default_na=False))


def claims(sources: Sequence[str] = ()) -> tuple[Claim, ...]:
    """The rows of `claims.csv`, of these sources or of all; a StudyError for an unknown one."""
    rows = pd.read_csv(CLAIMS, dtype=str, keep_default_na=False)
    for source in sources:
        if source not in set(rows["source"]):
            raise unknown_name("a source", source, set(rows["source"]))
    wanted = rows[rows["source"].isin(sources)] if sources else rows
    return tuple(Claim(*row) for row in wanted[list(CLAIM_COLUMNS)].to_numpy().tolist())
