"""The chapter on published numbers: what becomes of each when it is derived again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import pandas as pd

from study.chapter import Shown, Text
from study.chapters import claims_figures as figures
from study.claims import published
from study.claims import tables as claims_tables
from study.claims.evidence import CONFIRMED, OTHER, OWN, PHYSICS, ROUNDING, UNKNOWN
from study.claims.findings import Finding, counts, findings, frame
from study.claims.published import Published
from study.claims.tables import Check
from study.sentences import Values
from study.tables import Table, count

BOOK = "00_claims"
SOURCES = published.FOLDER / "sources.csv"
IN_WORDS = "in words"  # what is stated without a number
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
WHOLE = 1000  # from here on without decimals
TITLE = "What the published numbers really say"
# The findings that a reader should not miss: a sentence, and the claims that carry it.
THEMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "What holds",
        "Ratios of printed rows are nearly all right, those of InferenceX and of Metrum's table "
        "of generations among them; InferenceX's tok/s/GPU counts input and output, as it says.",
        ("matched concurrency c=4", "iso-throughput 337", "peak throughput", "nodes needed"),
    ),
    (
        "Levels that were never in flight",
        "Throughput is flat from some level on because the load is: the same requests per second, "
        "each as long as before, are the same requests in flight.",
        ("saturation short", "saturation long", "1000 users", "client is not the limit"),
    ),
    (
        "What limits a server",
        "What must be read and what must be computed at a printed rate can be bounded, and the "
        "two bounds are far apart.",
        ("bottleneck",),
    ),
    (
        "Memory and power",
        "Weights have a size, and replicas that share nothing bound what one of them can do.",
        ("instance memory", "single request implied", "node power"),
    ),
    (
        "Gains, and what they are gains of",
        "A difference of means needs the spread of its runs, and two gains of one change need one "
        "definition.",
        ("AITER gain", "DeepSeek against Llama, multi-run", "DeepSeek c=64 per request",
         "effective 128/2048 c=1024", "iso-throughput 380"),
    ),
)  # fmt: skip


@cache
def _published() -> Published:
    return published.read()


@cache
def found() -> tuple[Finding, ...]:
    """Every claim of `data/published/claims.csv`, derived again."""
    return findings(published.claims(), _published())


@cache
def checked() -> tuple[Check, ...]:
    """Every table of `data/published/measurements.csv`, checked."""
    return claims_tables.checks(_published())


def summary(values: Values) -> list[Shown]:
    """Counts per class, whose claims they are, and the most telling findings."""
    return [
        Text(f"### {TITLE}"),
        Text(f"> {headline(found(), values)}"),
        sources(found()).keep(f"{BOOK}-sources"),
        *[Text(f"**{title}.** {text}\n\n{_told(names, values)}") for title, text, names in THEMES],
        Text(to_settle(values)),
    ]


def results(values: Values) -> list[Shown]:
    """Classes by source, what is contradicted, and the figures drawn again."""
    data = _published()
    against = [one for one in found() if one.found in (OWN, OTHER, PHYSICS)]
    number = values.count("claims.against", len(against))
    return [
        Text(f"### {TITLE}"),
        by_source(found()).keep(f"{BOOK}-classes"),
        Text(f"#### The {number} that do not hold"),
        table(against).keep(f"{BOOK}-against"),
        Text("#### Requests in flight\nWhat rate and latency leave of the nominal level."),
        figures.in_flight().keep(f"{BOOK}-in-flight"),
        Text("#### Throughput and errors of two generations"),
        figures.throughput_and_errors(data).keep(f"{BOOK}-throughput-errors"),
        figures.tokens_per_watt(data).keep(f"{BOOK}-tokens-per-watt"),
        Text("#### Before and after a release"),
        figures.interactivity(data).keep(f"{BOOK}-interactivity"),
        Text("#### Is the gain significant?"),
        figures.aiter(data).keep(f"{BOOK}-aiter"),
    ]


def appendix(_: Values) -> list[Shown]:
    """Every claim and every table, with class, computed value and reason."""
    return [
        Text(f"### {TITLE}"),
        Text("#### Every claim"),
        table(found()).keep(f"{BOOK}-claims"),
        Text("#### Every table"),
        of_tables(checked()).keep(f"{BOOK}-tables"),
    ]


# --- sentences ------------------------------------------------------------------------------------


def headline(every: Sequence[Finding], values: Values) -> str:
    """How many claims are in each class."""
    number = {one: n for one, n in counts(every).items() if n}
    said = {one: values.count(f"claims.class.{one}", n) for one, n in number.items()}
    sources = values.count("claims.sources", len({one.claim.source for one in every}))
    total = values.count("claims.all", len(every))
    listed = "; ".join(f"**{n}** {one}" for one, n in said.items())
    return (
        f"{total} claims of {sources} sources, derived again from the figures that they print: "
        f"{listed}. A class follows from comparing what is computed with what is stated, within "
        "the rounding of the printed digits."
    )


def _told(names: Sequence[str], values: Values) -> str:
    by_name = {one.claim.claim: one for one in found()}
    return "\n".join(f"- {sentence(by_name[name], values)}" for name in names)


def sentence(one: Finding, values: Values) -> str:
    """A claim, its class and the reason, as one line."""
    key = f"claims.{one.claim.source}.{one.claim.claim}"
    statement = values.label(f"{key}.statement", one.claim.statement)
    source = values.label(f"{key}.source", one.claim.source)
    stated = values.label(f"{key}.stated", one.claim.stated or IN_WORDS)
    why = values.label(f"{key}.why", one.evidence.why)
    name = values.label(f"{key}.name", one.claim.claim)
    return f"*{name}: {statement}* (`{source}`, stated: {stated}): **{one.found}**. {why}"


def to_settle(values: Values) -> str:
    """What data would decide the claims that nobody can derive."""
    open_ones = [one for one in found() if one.found == UNKNOWN]
    number = values.count("claims.open", len(open_ones))
    wanted = values.label(
        "claims.missing", "; ".join(dict.fromkeys(one.evidence.missing for one in open_ones))
    )
    return f"**What would settle the {number} that cannot be derived:** {wanted}."


# --- tables ---------------------------------------------------------------------------------------


def sources(every: Sequence[Finding]) -> Table:
    """A row per source of these claims: what it is called, who, title, date and address."""
    asked = list(dict.fromkeys(one.claim.source for one in every))
    known = pd.read_csv(SOURCES, dtype=str, keep_default_na=False).set_index("source")
    data = known.reindex(asked, fill_value="").rename_axis("source").reset_index()
    told = data.replace("", "not known")
    shown = told.drop(columns="called").assign(source=told["source"] + " (" + told["called"] + ")")
    return Table(
        shown.rename(columns=str.capitalize),
        data,
        "The sources under the names that claims and tables use, in brackets those of the text; "
        "*the article* is that of the claim's own source. Pages may have been changed since their "
        "figures were taken down.",
    )


def by_source(every: Sequence[Finding]) -> Table:
    """Claims by source and class."""
    rows = [
        {"source": source, **counts([one for one in every if one.claim.source == source])}
        for source in dict.fromkeys(one.claim.source for one in every)
    ]
    data = pd.DataFrame(rows)
    return Table(
        data,
        data,
        f"Claims by source and class. *{CONFIRMED}*: the computed value has the printed digits; "
        f"*{ROUNDING}*: it may have them, given how its inputs were rounded. A bound can refute a "
        f"claim, but not confirm it: then it is *{UNKNOWN}*, and what is missing is said.",
    )


def table(every: Sequence[Finding]) -> Table:
    """A row per claim."""
    data = frame(every)
    if data.empty:
        return Table(data, data, "No claim.")
    words = [
        _words(row["statement"], row["computed_unit"], row["why"], row["missing"])
        for row in data.to_dict("records")
    ]
    shown = data[["source", "claim", "stated", "computed", "class"]].assign(
        stated=[_stated(one) for one in every],
        computed=[" | ".join(_figure(n.value) for n in one.evidence.computed) for one in every],
        why=words,
    )
    return Table(
        shown.rename(columns=str.capitalize),
        data,
        "Stated beside computed; several numbers are separated by bars. Limits that rounding "
        "leaves the computed value are in the CSV.",
    )


def of_tables(every: Sequence[Check]) -> Table:
    """A row per check of a table."""
    data = claims_tables.frame(every)
    words = [
        _words("", row["computed_unit"], row["why"], row["missing"])
        for row in data.to_dict("records")
    ]
    shown = data[["source", "table", "model", "check", "class"]].assign(why=words)
    return Table(
        shown.rename(columns=str.capitalize),
        data,
        "What each table of published figures lets one check; printed and computed values are in "
        "the CSV. A level is refuted where fewer requests than it were made, where rate x p99 is "
        "too small for it, or where it shows the rate and latency of a much lower level.",
    )


def _stated(one: Finding) -> str:
    """The stated number, or those that the statement holds; a number that only stands for its words
    is no figure of the source."""
    printed = {said.replace(",", "") for said in NUMBER.findall(one.claim.statement)}
    held = [f"{number.value:g}" for number in one.evidence.stated]
    if one.claim.stated or not held or not printed.issuperset(held):
        return one.claim.stated or IN_WORDS
    return " | ".join(held)


def _figure(value: float) -> str:
    """One digit more than `number` gives: most claims are printed with two or three."""
    return count(value) if abs(value) >= WHOLE or value == round(value) else f"{value:.4g}"


def _words(statement: str, unit: str, why: str, missing: str) -> str:
    said = [f"{statement}." if statement else "", f"Computed: {unit}." if unit else "", why]
    said.append(f"Missing: {missing}." if missing else "")
    return " ".join(filter(None, said))
