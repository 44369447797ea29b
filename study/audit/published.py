"""Published figures (`data/published/measurements.csv`) as tables that `study audit` reads."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from study.audit.formats import Window, table_windows
from study.claims.published import MEASUREMENTS

COOKBOOK = "vultr-cookbook-2026-03"
COLUMN_OF = {
    "total_throughput": "total_tok_s",
    "output_throughput": "output_tok_s",
    "request_rate": "request_s",
    "e2e_p50": "e2e_p50_s",
    "e2e_p99": "e2e_p99_s",
}
SCALE = {"ms": 1e-3}  # everything else is in SI units
_REQUESTS = re.compile(r"([\d,]+) requests per level")


def tables(source: str = COOKBOOK, path: Path = MEASUREMENTS) -> dict[str, pd.DataFrame]:
    """The per-level tables of one source, by a name made of table, model and, where a table has
    two arms, their note. Columns as in `study.audit.formats.COLUMNS`, one row a level.

    Lengths are those that the source states as asked; it states none as delivered.
    """
    published = pd.read_csv(path)
    rows = published[published["source"].eq(source) & published["metric"].isin(COLUMN_OF)]
    rows = rows.assign(
        column=rows["metric"].map(COLUMN_OF),
        value=rows["value"] * rows["unit"].map(SCALE).fillna(1.0),
        note=rows["note"].fillna(""),
        model=rows["model"].fillna(""),
    )
    found: dict[str, pd.DataFrame] = {}
    for (table, model), of_model in rows.groupby(["table", "model"], sort=False):
        for note, of_arm in of_model.groupby("note", sort=False):
            arm = str(note).split(";")[0] if of_model["note"].nunique() > 1 else ""
            name = ", ".join(part for part in (str(table), str(model), arm) if part)
            found[name] = _by_level(of_arm, str(note))
    return found


def windows(table: pd.DataFrame) -> tuple[Window, ...]:
    """The levels of one of the tables, as the audit reads them from a file."""
    cells = table.astype(object).where(table.notna(), "").astype(str)
    return table_windows([list(cells.columns), *cells.to_numpy().tolist()])


def _by_level(rows: pd.DataFrame, note: str) -> pd.DataFrame:
    table = rows.pivot_table(index="concurrency", columns="column", values="value")
    table = table.rename_axis(index="level", columns=None).reset_index()
    asked = rows.drop_duplicates("concurrency").set_index("concurrency")
    for name in ("input_tokens", "output_tokens"):
        if asked[name].notna().any():
            table[name] = table["level"].map(asked[name])
    requests = _REQUESTS.search(note)
    if requests:
        table["requests"] = float(requests[1].replace(",", ""))
    return table
