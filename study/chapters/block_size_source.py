"""What the engine answered to each block size, beside what was derived from its source.

The two know nothing of each other: launches on this machine, and the tables of `study.compat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from study.chapters import block_size_estimates as sizes
from study.chapters.compatibility import usual
from study.compat.stages import ALLOWED, OVERRIDDEN, REFUSED
from study.estimates import rows_of
from study.frames import Frames
from study.plan import Launch
from study.sentences import Values
from study.style import spelled

OUTCOME = {ALLOWED: "measured", OVERRIDDEN: "overridden", REFUSED: "rejected"}
# By a part of a GPU's name: the device that was derived for its architecture.
STANDS_FOR = {
    "MI300X": "MI325X", "MI325X": "MI325X", "MI350X": "MI355X", "MI355X": "MI355X",
    "H100": "H100", "H200": "H100", "B200": "B200",
}  # fmt: skip
COLUMNS = ("model", "asked", "outcome", "in_force", "derived", "derived_size", "same")


def device(setup: Mapping[str, Any]) -> str:
    """The derived device that is this machine's; empty where none is."""
    machine = setup["machine"]
    if setup["engine"]["kind"] == "cpu":
        return "CPU with AMX" if "amx_tile" in machine.get("instructions", ()) else "CPU"
    names = " ".join(machine["gpus"])
    return next((derived for part, derived in STANDS_FOR.items() if part in names), "")


def beside(found: Frames, launches: Sequence[Launch], table: pd.DataFrame) -> pd.DataFrame:
    """A row per answer of the engine that was derived too. Columns: COLUMNS; sizes in tokens.

    `table`: that of `study.compat`. Derived with no back end named and AITER off, as launches are.
    An answer is the same with the same outcome and, where the server ran, the same size in force.
    """
    if not launches:
        return pd.DataFrame(columns=list(COLUMNS))
    setup = launches[0].setup
    heads = {launch.arm.factors["model"]: launch.arm.model.heads for launch in launches}
    # A build says for what: 0.18.0+rocm700.
    of_version = table[table["version"].eq(setup["engine"]["version"].partition("+")[0])]
    by_heads = {count: _derived(of_version, count, device(setup)) for count in set(heads.values())}
    rows = []
    for row in rows_of(sizes.answers(found)):
        known = by_heads[heads[row.model]]
        known = known[known["family"].eq(row.attention) & known["asked_block"].eq(row.asked)]
        if row.outcome in OUTCOME.values() and len(known):
            rows.append(_row(row, OUTCOME[known["outcome"].iloc[0]], known["block_size"].iloc[0]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _derived(table: pd.DataFrame, heads: int, device: str) -> pd.DataFrame:
    """What is known for that device; not what could not be decided."""
    known = usual(table, heads)
    decided = known["outcome"].isin(OUTCOME) & known["aiter"].ne("on")
    return known[decided & known["device"].eq(device)]


def _row(answer: Any, derived: str, size: Any) -> dict[str, object]:
    same = answer.outcome == derived and (derived == "rejected" or answer.in_force == size)
    told = (answer.model, answer.asked, answer.outcome, answer.in_force, derived, size, bool(same))
    return dict(zip(COLUMNS, told, strict=True))


def sentence(
    name: str, found: Frames, launches: Sequence[Launch], values: Values, table: pd.DataFrame
) -> str:
    """How many answers are those of the source, and each that is another one."""
    both = beside(found, launches, table)
    if both.empty:
        return "For this version and device, no answer was derived from the engine's source."
    key, setup = f"{name}.source", launches[0].setup
    version = values.label(f"{key}.version", setup["engine"]["version"])
    where = values.label(f"{key}.device", device(setup))
    told = values.count(f"{key}.compared", len(both))
    same = values.count(f"{key}.same", int(both["same"].sum()))
    said = (
        f"Derived from the source of {version} for *{where}*, without a server: "
        f"**{same} of {told}** answers are those that the engine gave."
    )
    for row in rows_of(both[~both["same"]]):
        at = f"{key}.{row.model}.{row.asked}"
        asked = values.count(f"{at}.asked", row.asked)
        model = values.label(f"{at}.model", spelled(str(row.model)))
        said += f" {model} at {asked}: {row.outcome}, where the source says {row.derived}."
    return said
