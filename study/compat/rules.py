"""What the articles state about what goes with what, put beside the tables of compatibility.

A rule is a set of cases in the table of one version; each case says whether the rule holds there.
Its class follows from how many cases hold in the article's version and in the latest one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pandas as pd

from study.compat import command as compat
from study.compat.stages import ALLOWED, REFUSED, UNKNOWN

STILL = "still true"
NO_LONGER = "no longer true"
THEN = "true then"
BACKEND = "a matter of the back end"
NEVER = "not true then"
OPEN = "unknown"
AITER_MLA = "ROCM_AITER_MLA"
OLD_HEADS, PLAIN_HEADS = (16, 128), 16


@dataclass(frozen=True)
class Case:
    """One place where a rule can hold. holds: None where it was not derived."""

    where: str
    holds: bool | None
    evidence: str


Cases = Callable[[pd.DataFrame], list[Case]]


@dataclass(frozen=True)
class Rule:
    """version: the engine's, in the source. offloading: of which table of `compat.read`."""

    source: str
    stated: str
    version: str
    cases: Cases
    offloading: bool = False


@dataclass(frozen=True)
class Found:
    """A rule, its cases then and now, and the class that follows from them."""

    rule: Rule
    then: tuple[Case, ...]
    now: tuple[Case, ...]
    latest: str

    @property
    def kind(self) -> str:
        before, after = share(self.then), share(self.now)
        if before is None:
            return OPEN
        if before == 0:
            return NEVER
        if before < 1:
            return BACKEND
        if after is None:
            return THEN
        return STILL if after == 1 else NO_LONGER


def share(cases: tuple[Case, ...]) -> float | None:
    """The share of cases in which a rule holds; None where any was not derived, or none is."""
    held = [case.holds for case in cases]
    if not held or None in held:
        return None
    return sum(map(bool, held)) / len(held)


def judge(rule: Rule, tables: pd.DataFrame) -> Found:
    """The rule in the article's version, and in the latest one for which it can be derived."""
    versions = sorted(tables["version"].unique(), key=compat.order)
    cases = {one: tuple(rule.cases(tables[tables["version"].eq(one)])) for one in versions}
    derived = [one for one in versions if share(cases[one]) is not None] or versions[-1:]
    return Found(rule, cases[rule.version], cases[derived[-1]], derived[-1])


@cache
def judged() -> tuple[Found, ...]:
    """Every rule, by the committed tables."""
    tables = {kind: compat.read(offloading=kind) for kind in (False, True)}
    return tuple(judge(rule, tables[rule.offloading]) for rule in RULES)


# --- the cases ------------------------------------------------------------------------------------


def needs_block_1(table: pd.DataFrame) -> list[Case]:
    """Per back end of MLA on ROCm: is 1 the only block size that runs?"""
    asked = _rocm(table, "mla", "mla-sparse")
    ran = asked[asked["outcome"].ne(REFUSED) & asked["kv_dtype"].eq("auto") & _heads(asked, 16)]
    return [
        Case(
            str(backend),
            None if rows["outcome"].eq(UNKNOWN).any() else bool(rows["block_size"].eq(1).all()),
            f"runs {_sizes(rows['block_size'])}, of which kernels read blocks of "
            f"{_sizes(rows['kernel_block'])}: {rows['evidence'].iloc[0]}",
        )
        for backend, rows in ran.groupby("backend")
    ]


def _sizes(found: pd.Series) -> str:
    """'1, 16, 32': those that are known."""
    return ", ".join(map(str, sorted(found.dropna().astype(int).unique())))


def takes_only(allowed: Callable[[int], bool]) -> Cases:
    """Per number of heads: does AITER's MLA take exactly those that are stated?"""

    def expected(heads: int) -> Callable[[pd.Series], bool]:
        return lambda row: _runs(row) == allowed(heads)

    def cases(table: pd.DataFrame) -> list[Case]:
        asked = _rocm(table, "mla")
        asked = asked[asked["asked_backend"].eq(AITER_MLA) & _plain(asked)]
        return [
            _case(row, f"{heads} heads", expected(heads))
            for heads in compat.HEADS
            for _, row in asked[_heads(asked, heads)].head(1).iterrows()
        ]

    return cases


def runs_heads(*heads: int) -> Cases:
    """Per number of heads, with AITER on and no back end named: does AITER's MLA run?"""

    def cases(table: pd.DataFrame) -> list[Case]:
        asked = _unnamed(_rocm(table, "mla"), aiter="on")
        return [
            _case(row, f"{one} heads", lambda row: _runs(row) and row["backend"] == AITER_MLA)
            for one in heads
            for _, row in asked[_heads(asked, one) & _plain(asked)].iterrows()
        ]

    return cases


def falls_through(table: pd.DataFrame) -> list[Case]:
    """8 heads, AITER on, no back end named: does Triton's MLA run instead?"""
    asked = _unnamed(_rocm(table, "mla"), aiter="on")
    rows = asked[_heads(asked, 8) & _plain(asked)]
    return [
        _case(row, "8 heads", lambda row: _runs(row) and row["backend"] == "TRITON_MLA")
        for _, row in rows.iterrows()
    ]


def off_means_off(table: pd.DataFrame) -> list[Case]:
    """Block size 1, AITER off and no back end named: is it some other than AITER's MLA?"""
    asked = _unnamed(_rocm(table, "mla"), aiter="off")
    rows = asked[_heads(asked, PLAIN_HEADS) & asked["kv_dtype"].eq("auto")]
    rows = rows[rows["asked_block"].eq(1)]
    return [
        _case(row, "block size 1", lambda row: row["backend"] != AITER_MLA)
        for _, row in rows.iterrows()
    ]


def falls_back_on_fp8(table: pd.DataFrame) -> list[Case]:
    """AITER off, FP8 KV, no back end named: does AITER's MLA take over?"""
    asked = _unnamed(_rocm(table, "mla"), aiter="off")
    rows = asked[asked["kv_dtype"].eq("fp8") & asked["asked_block"].eq(0) & _heads(asked, 16)]
    return [
        _case(row, "FP8 KV", lambda row: _runs(row) and row["backend"] == AITER_MLA)
        for _, row in rows.iterrows()
    ]


def refuses_fp8(table: pd.DataFrame) -> list[Case]:
    """Sparse MLA on ROCm: is the FP8 flag refused at every block size?"""
    rows = _unnamed(_rocm(table, "mla-sparse"))
    rows = rows[rows["kv_dtype"].eq("fp8") & _heads(rows, PLAIN_HEADS)]
    return [
        _case(row, f"AITER {row['aiter']}, block {row['asked_block']}", lambda row: not _runs(row))
        for _, row in rows.iterrows()
    ]


def takes_fp8(table: pd.DataFrame) -> list[Case]:
    """GQA on ROCm with no back end named: does the FP8 flag run?"""
    rows = _unnamed(_rocm(table, "gqa"))
    rows = rows[rows["kv_dtype"].eq("fp8") & rows["asked_block"].eq(0) & _heads(rows, 16)]
    return [_case(row, f"AITER {row['aiter']}", _runs) for _, row in rows.iterrows()]


def no_offload(table: pd.DataFrame) -> list[Case]:
    """Per family of MLA on ROCm: is native KV offload refused?"""
    return [
        _case(row, f"{row['family']}, AITER {row['aiter']}", lambda row: not _runs(row))
        for _, row in _rocm(table, "mla", "mla-sparse").iterrows()
    ]


def _case(row: pd.Series, where: str, holds: Callable[[pd.Series], bool]) -> Case:
    said = f"{row['words']}: " if row["words"] else f"{row['outcome']}, {row['backend']}: "
    if row["words"] and " " in str(row.get("heads", "")):
        said = f"for any of {row['heads']} heads, as of the first of them: {said}"
    known = row["outcome"] != UNKNOWN
    return Case(where, holds(row) if known else None, f"{said}{row['evidence']}")


def _runs(row: pd.Series) -> bool:
    return bool(row["outcome"] == ALLOWED)


def _rocm(table: pd.DataFrame, *families: str) -> pd.DataFrame:
    return table[table["aiter"].ne("") & table["family"].isin(families)]


def _unnamed(table: pd.DataFrame, aiter: str = "") -> pd.DataFrame:
    found = table[table["asked_backend"].eq("")]
    return found[found["aiter"].eq(aiter)] if aiter else found


def _plain(table: pd.DataFrame) -> pd.Series:
    return table["asked_block"].eq(0) & table["kv_dtype"].eq("auto")


def _heads(table: pd.DataFrame, heads: int) -> pd.Series:
    return table["heads"].map(lambda text: str(heads) in text.split())


RULES = (
    Rule("georgiou-2026", "MLA needs KV block size 1 on ROCm", "0.14.1", needs_block_1),
    Rule(
        "georgiou-2026",
        "With AITER off, MLA does not run on AITER's back end (Kimi, `--block-size 1`)",
        "0.14.1",
        off_means_off,
    ),
    Rule("georgiou-2026", "MLA cannot use KV offload", "0.14.1", no_offload, offloading=True),
    Rule("georgiou-2026", "DeepSeek V3.2 must not have FP8 KV", "0.14.1", refuses_fp8),
    Rule("georgiou-2026", "GQA takes FP8 KV on ROCm", "0.14.1", takes_fp8),
    Rule(
        "metrum-2026",
        "AITER's MLA serves Kimi at TP=1 (64 heads a rank) and TP=8 (8 heads)",
        "0.15.0",
        runs_heads(64, 8),
    ),
    Rule(
        "semianalysis-2026-03",
        "AITER's MLA takes 16 or 128 heads a rank, and no others",
        "0.16.0",
        takes_only(lambda heads: heads in OLD_HEADS),
    ),
    Rule(
        "semianalysis-2026-03",
        "At 8 heads a rank with AITER on, MLA falls through to Triton's back end",
        "0.16.0",
        falls_through,
    ),
    Rule(
        "semianalysis-2026-03",
        "AITER's MLA takes 4, 8, or a multiple of 16 up to 128 heads a rank, and no others",
        "0.18.0",
        takes_only(lambda heads: heads in (4, 8) or (heads % 16 == 0 and heads <= 128)),
    ),
    Rule(
        "semianalysis-2026-03",
        "With FP8 KV, MLA falls back from Triton's back end to AITER's",
        "0.18.0",
        falls_back_on_fp8,
    ),
)
