"""Results of others, judged: what `study audit` says of the files and tables in `data/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from study import paths
from study.audit import command as audit
from study.audit import joint, published
from study.audit.command import Audited
from study.chapter import Shown, Text
from study.gates.judgement import Judgement
from study.sentences import Values
from study.store import write_atomically
from study.tables import Table, number

BOOK = "90_report-others"
EXTERNAL = paths.PACKAGE.parent / "data" / "external"
VERDICTS = ("pass", "fail", "cannot judge")
BETTER_FIRST = ("pass", "cannot judge", "fail")
SUPPORTED = {"pass": "supported", "fail": "not supported", "cannot judge": "cannot judge"}
FINDINGS = ("distinct_levels", "one_length", "saturation")


def appendix(values: Values) -> list[Shown]:
    """Every file and table of others that the study keeps, with what can be said of it."""
    files, tables = judged([EXTERNAL]), judged(kept_tables())
    return [
        Text(f"#### Result files\n{_counted('files', 'result files', files, values)}"),
        by_gate(files).keep(f"{BOOK}-gates"),
        Text(f"#### The cookbook's tables\n{_counted('tables', 'tables', tables, values)}"),
        by_table(tables).keep(f"{BOOK}-tables"),
        Text("The same for files of your own: `python -m study audit PATH...`"),
    ]


def judged(paths: Sequence[Path]) -> list[Audited]:
    """What the audit says of each of these result files, or of those below these folders."""
    found = audit.found_files(paths)
    wholes = audit.wholes_of(paths, found)
    files = joint.judge_together([audit.audit_file(path) for path in found], wholes)
    return [audit.audited(file) for file in files]


def kept_tables() -> list[Path]:
    """The cookbook's tables as CSV, one a file, in `data/derived`: as `study audit` reads them."""
    folder = paths.DERIVED / BOOK
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in published.tables().items():
        stem = name.replace(", ", "_").replace(" ", "-")
        files.append(folder / f"{stem}.csv")
        write_atomically(files[-1], table.to_csv(index=False).encode(), durably=False)
    return files


def _counted(key: str, what: str, found: Sequence[Audited], values: Values) -> str:
    counts = Counter(one.verdict for one in found)
    said = ", ".join(
        f"{values.count(f'others.{key}.{verdict}', counts[verdict])} {verdict}"
        for verdict in ("valid", "void", "undecided")
    )
    total = values.count(f"others.{key}.all", len(found))
    return (
        f"Of {total} {what}, judged by nothing but what is in them: {said}. *Undecided* means that "
        "nothing contradicts the numbers and nothing confirms them: a summary can refute a level, "
        "only the times of its requests can confirm it."
    )


def by_gate(found: Sequence[Audited]) -> Table:
    """A row per gate: in how many files it passed, failed, or could not judge.

    A gate that says several things of a file counts once, with the worst of them.
    """
    reasons = pd.DataFrame(
        [(one.file, said.gate, said.verdict) for one in found for said in one.reasons],
        columns=["file", "gate", "verdict"],
    )
    # The order in which the last one is the worst.
    reasons["verdict"] = pd.Categorical(reasons["verdict"], BETTER_FIRST, ordered=True)
    worst = reasons.groupby(["gate", "file"])["verdict"].max().reset_index()
    data = pd.crosstab(worst["gate"], worst["verdict"].astype(str))
    data = data.reindex(columns=list(VERDICTS), fill_value=0).reset_index()
    data.columns.name = None
    shown = data.rename(columns={"gate": "Gate", "pass": "Pass", "fail": "Fail"})
    return Table(
        shown.rename(columns={"cannot judge": "Cannot judge"}),
        data,
        "Files by gate and by the worst that the gate says of them. A percentile that its sample "
        "cannot carry is withheld; it does not void its file.",
    )


def by_table(found: Sequence[Audited]) -> Table:
    """A row per table: refuted levels with the most that was in flight, tokens per request that
    its lowest level implies, levels that are one load, and whether saturation is supported."""
    names = {
        "table": "Table",
        "refuted": "Refuted levels (in flight at most)",
        "tokens": "Tokens per request",
        "saturation": "Saturation",
        "distinct": "Distinct levels",
    }
    data = pd.DataFrame([_table_row(one) for one in found], columns=list(names))
    return Table(
        data.rename(columns=names),
        data,
        "What the printed rates and latencies allow. In flight at most: the requests made; or what "
        "the lowest level of the same load allows, with 5 % of noise in rate and in latency; or "
        "rate x p99, an upper bound of the mean if the mean is not above the p99. Tokens per "
        "request are an assumption, fitted on the lowest level as if it was full and its p99 the "
        "mean; a second load must agree with them, and twice the bound is allowed for where they "
        "are used. Levels that are one load are so by rate and latency alone; those above the "
        "lowest are refuted where the load goes on to twice that level.",
    )


def _table_row(one: Audited) -> dict[str, str]:
    together = {said.gate: said for said in one.reasons if said.gate in FINDINGS}
    refuted = [
        f"{said.text.split(':')[0].removeprefix('level ')} ({number(float(said.observed))})"
        for said in one.reasons
        if (said.gate, said.verdict) == ("level_reached", "fail")
    ]
    return {
        "table": Path(one.file).stem.replace("_", ", "),
        "refuted": ", ".join(refuted) or "none",
        "tokens": _tokens(together.get("one_length")),
        "saturation": SUPPORTED[together["saturation"].verdict] if together else "one level",
        "distinct": together["distinct_levels"].text if together else "One level only.",
    }


def _tokens(said: Judgement | None) -> str:
    if said is None:
        return "not needed"
    return "no one length" if said.verdict == "fail" else number(float(said.observed))
