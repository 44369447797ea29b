"""The chapter on compatibility: what each version allows, what changed, what articles state.

It rests on the committed tables (see `study.compat`), and needs no server and no engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from study import platform, style
from study.chapter import Shown, Text
from study.compat import command as compat
from study.compat import rules as compat_rules
from study.compat.devices import DEVICES
from study.compat.source import open_tree
from study.compat.stages import ALLOWED, OVERRIDDEN, REFUSED, UNKNOWN
from study.errors import StudyError
from study.sentences import Values
from study.style import INK, MUTED, OUTCOME_COLOUR, PAPER, Drawn, look, spelled
from study.tables import Table

HEADS = 16  # of the figure: what every back end takes
KEY = ["device", "aiter", "family", "asked_backend", "kv_dtype", "asked_block", "heads"]
COLOUR = {
    ALLOWED: OUTCOME_COLOUR["measured"],
    OVERRIDDEN: OUTCOME_COLOUR["overridden"],
    REFUSED: OUTCOME_COLOUR["rejected"],
    UNKNOWN: OUTCOME_COLOUR["not measured"],
}
SWITCHED = "≠"
FADED = 0.75


BOOK = "05_compatibility"
TITLE = "What each version of the engine allows"


def summary(values: Values) -> list[Shown]:
    """How much was derived, the confound, and what became of the articles' rules."""
    return [Text(f"### {TITLE}"), Text(f"> {lead(compat.read(), compat_rules.judged(), values)}")]


def results(_: Values) -> list[Shown]:
    """Block sizes by version, flags that select a back end, and the articles' rules."""
    table = compat.read()
    return [
        Text(f"### {TITLE}"),
        grid(table).keep(f"{BOOK}-grid"),
        switches(table).keep(f"{BOOK}-switches"),
        rules(compat_rules.judged()).keep(f"{BOOK}-rules"),
    ]


def appendix(_: Values) -> list[Shown]:
    """What changed from version to version."""
    return [Text(f"### {TITLE}"), changes(compat.read()).keep(f"{BOOK}-changes")]


def by_device_and_heads(table: pd.DataFrame) -> pd.DataFrame:
    """A row per device and number of heads, where the table names several in one."""
    single = table.assign(device=table["device"].str.split(", "), heads=table["heads"].str.split())
    found = single.explode("device").explode("heads", ignore_index=True)
    return found.assign(heads=found["heads"].astype(int))


def usual(table: pd.DataFrame, heads: int = HEADS) -> pd.DataFrame:
    """What happens when nobody names a back end or a KV dtype."""
    single = by_device_and_heads(table)
    plain = single["asked_backend"].eq("") & single["kv_dtype"].eq("auto")
    return single[plain & single["heads"].eq(heads)]


# --- the figure -----------------------------------------------------------------------------------


def grid(table: pd.DataFrame, heads: int = HEADS) -> Drawn:
    """A panel per version: devices and families down, block sizes across.

    Raises StudyError for a number of heads that was not asked about.
    """
    if heads not in compat.HEADS:
        known = ", ".join(map(str, compat.HEADS))
        raise StudyError(f"heads must be one of {known}; it was {heads!r}")
    drawn = usual(table, heads)
    drawn = drawn.assign(row=[_row_name(row) for row in drawn.itertuples()])
    rows = list(dict.fromkeys(drawn.sort_values(["family", "device", "aiter"])["row"]))
    versions = sorted(drawn["version"].unique(), key=compat.order)
    with look():
        figure, axes = style.panels(1, len(versions), height_in=0.9 + 0.26 * len(rows))
        for axis, version in zip(axes[0], versions, strict=True):
            _panel(axis, drawn[drawn["version"].eq(version)], rows)
            axis.set_title(version)
        entries = [Patch(color=colour, label=name) for name, colour in COLOUR.items()]
        style.legend(figure, entries)
    caption = (
        f"What the engine would do with `--block-size` when no back end and no KV dtype is named, "
        f"at {heads} heads a rank, by version; n = {len(drawn)} answers, derived from the source, "
        f"so without an interval. A number is the block size in force where it is not the one "
        f"asked for; {SWITCHED} marks where the flag alone selects another back end. Allowed: "
        "nothing that was read refuses it."
    )
    return Drawn(figure, drawn.reset_index(drop=True), caption)


def _row_name(row: object) -> str:
    device, aiter, family = (str(getattr(row, name)) for name in ("device", "aiter", "family"))
    switch = f", AITER {aiter}" if aiter else ""
    return f"{spelled(family).replace(' · ', ', ')}: {device}{switch}"


def _panel(axis: Axes, answers: pd.DataFrame, rows: list[str]) -> None:
    sizes = [size or 0 for size in compat.BLOCK_SIZES]
    for row in answers.itertuples():
        x, y = sizes.index(int(str(row.asked_block))), rows.index(str(row.row))
        face = COLOUR[str(row.outcome)]
        axis.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=PAPER, alpha=FADED))
        if words := _in_cell(row):
            axis.text(x + 0.5, y + 0.5, words, ha="center", va="center", fontsize=6, color=INK)
    axis.set_xlim(0, len(sizes))
    axis.set_ylim(len(rows), 0)
    names = [str(size) if size else "no flag" for size in sizes]
    axis.set_xticks([at + 0.5 for at in range(len(sizes))], names, rotation=90, fontsize=7)
    axis.set_yticks([at + 0.5 for at in range(len(rows))], rows, fontsize=7.5)
    axis.tick_params(length=0, colors=MUTED, labelcolor=INK)
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)


def _in_cell(row: object) -> str:
    size, asked = getattr(row, "block_size", pd.NA), int(getattr(row, "asked_block", 0))
    number = "" if pd.isna(size) or int(size) == asked else str(int(size))
    return number + (SWITCHED if getattr(row, "switched", False) else "")


# --- the tables -----------------------------------------------------------------------------------


def switches(table: pd.DataFrame) -> Table:
    """Where the block size flag alone changes the back end: a confound of every comparison."""
    found = table[table["asked_backend"].eq("")]
    plain = by_device_and_heads(found[found["asked_block"].eq(0)])
    keys = ["version", "device", "aiter", "family", "kv_dtype", "heads"]
    without = plain.set_index(keys)["backend"]
    moved = found[found["switched"]].copy()
    others = ["version", "aiter", "family", "kv_dtype"]
    firsts = [
        (key[0], str(device).split(", ")[0], *key[1:], int(str(heads).split()[0]))
        for *key, device, heads in moved[[*others, "device", "heads"]].itertuples(index=False)
    ]
    moved["without"] = [without.get(one, "") for one in firsts]
    shown = pd.DataFrame(
        {
            "version": moved["version"],
            "device": [_device(row) for row in moved.itertuples()],
            "family": moved["family"].map(spelled),
            "KV dtype": moved["kv_dtype"],
            "block size": moved["asked_block"],
            "heads": moved["heads"],
            "without the flag": moved["without"],
            "with it": moved["backend"],
            "outcome": moved["outcome"],
        }
    )
    caption = (
        "Where `--block-size` alone, with no back end named, selects another back end than without "
        "the flag. Block sizes compared across these rows compare back ends."
    )
    return Table(shown, moved.reset_index(drop=True), caption)


def changes(table: pd.DataFrame) -> Table:
    """What changed from one version to the next when no back end is named."""
    data = pd.DataFrame(_changes(table))
    caption = (
        "What changed between successive versions with no back end and no KV dtype named. In "
        "brackets the block size in force. Devices and heads that changed alike share a row."
    )
    return Table(data, data, caption)


def _changes(table: pd.DataFrame) -> Iterator[dict[str, str]]:
    single = by_device_and_heads(table)
    single = single[single["asked_backend"].eq("") & single["kv_dtype"].eq("auto")]
    single = single.assign(answer=[_answer(row) for row in single.itertuples()])
    wide = single.pivot_table(index=KEY, columns="version", values="answer", aggfunc="first")
    versions = sorted(wide.columns, key=compat.order)
    for before, after in pairwise(versions):
        differ = wide[wide[before].ne(wide[after])].reset_index()
        kinds = ["family", "asked_block", before, after]
        for (family, block, was, became), group in differ.groupby(kinds, sort=False):
            yield {
                "versions": f"{before} to {after}",
                "family": spelled(str(family)),
                "block size": str(block) if block else "no flag",
                "devices": "; ".join(dict.fromkeys(_device(row) for row in group.itertuples())),
                "heads": " ".join(map(str, sorted(set(group["heads"])))),
                "was": str(was),
                "became": str(became),
            }


def _answer(row: object) -> str:
    outcome, backend, size = (getattr(row, one) for one in ("outcome", "backend", "block_size"))
    return f"{outcome} {backend}".strip() + ("" if pd.isna(size) else f" [{int(size)}]")


def rules(found: tuple[compat_rules.Found, ...]) -> Table:
    """The articles' rules: in how many cases they hold, and the class that follows."""
    rows = [
        {
            "source": one.rule.source,
            "rule": one.rule.stated,
            "then": f"{_held(one.then)} ({one.rule.version})",
            "now": f"{_held(one.now)} ({one.latest})",
            "class": one.kind,
            "evidence then": _evidence(one),
        }
        for one in found
    ]
    data = pd.DataFrame(
        [
            {"rule": one.rule.stated, "version": version, **vars(case)}
            for one in found
            for version, cases in ((one.rule.version, one.then), (one.latest, one.now))
            for case in cases
        ]
    )
    caption = (
        "Rules as the articles state them, in how many cases each holds in the article's version "
        "and in the latest for which it can be derived, and the class that follows from the two. "
        "The cases (back ends, heads, block sizes or families) are in the CSV."
    )
    return Table(pd.DataFrame(rows), data, caption)


def _held(cases: tuple[compat_rules.Case, ...]) -> str:
    if compat_rules.share(cases) is None:
        return "not derived"
    return f"{sum(bool(case.holds) for case in cases)} of {len(cases)}"


def _evidence(found: compat_rules.Found) -> str:
    """One case in which the rule holds and one in which it does not, as far as there are both."""
    picked = {case.holds: case for case in reversed(found.then)}
    return "; ".join(f"{case.where}: {case.evidence}" for case in picked.values())


def unknowns(table: pd.DataFrame) -> Table:
    """What could not be derived, and what it would rest on."""
    found = table[table["outcome"].eq(UNKNOWN)]
    keys = ["version", "device", "family", "stage", "words"]
    data = found.groupby(keys, as_index=False).size().rename(columns={"size": "answers"})
    caption = "Answers that rest on something that was not read, so that they are not given."
    return Table(data.rename(columns={"words": "why"}), data, caption)


# --- the text -------------------------------------------------------------------------------------


def lead(table: pd.DataFrame, found: tuple[compat_rules.Found, ...], values: Values) -> str:
    """One paragraph: how much was derived, the confound, and what became of the rules."""
    unknown = int(table["outcome"].eq(UNKNOWN).sum())
    kinds = pd.Series([one.kind for one in found]).value_counts()
    said = [
        f"{values.count('compatibility.rows', len(table))} rows of answers of "
        f"{values.count('compatibility.versions', table['version'].nunique())} versions were "
        f"derived from their source, of which "
        f"{values.count('compatibility.unknown', unknown)} stay unknown."
    ]
    aiter = table["backend"].eq(compat_rules.AITER_MLA) & table["aiter"].eq("off")
    confound = table[table["switched"] & aiter & table["outcome"].eq(ALLOWED)]
    if not confound.empty:
        versions = values.label(
            "compatibility.confounded", ", ".join(dict.fromkeys(confound["version"]))
        )
        asked = confound["asked_block"].astype(str)
        sizes = values.label("compatibility.confounded.sizes", " or ".join(dict.fromkeys(asked)))
        said.append(
            f"In {versions}, on ROCm with no back end named and AITER off, `--block-size {sizes}` "
            "alone moves MLA from Triton's back end to AITER's, which takes some numbers of heads "
            "and refuses others."
        )
    said.append(
        "Of the rules that articles state: "
        + ", ".join(
            f"{values.count(f'compatibility.rules.{kind}', int(number))} {kind}"
            for kind, number in kinds.items()
        )
        + "."
    )
    return " ".join(said)


def live(table: pd.DataFrame, values: Values) -> str:
    """The installed engine derived again, beside the committed table of its version."""
    try:
        tree = open_tree("installed")
    except StudyError as error:
        return f"Not derived again: {error}."
    kind = platform.engine().kind
    devices = [device for device in DEVICES if device.kind == kind]
    derived = by_device_and_heads(compat.derive(tree, devices))
    version = values.label("compatibility.installed", tree.version)
    committed = by_device_and_heads(table[table["version"].eq(tree.version.partition("+")[0])])
    if committed.empty:
        return f"The installed engine is {version}, for which no table is committed."
    both = derived.merge(committed, on=KEY, suffixes=("", "_committed"))
    same = both["outcome"].eq(both["outcome_committed"]) & both["backend"].eq(
        both["backend_committed"]
    )
    return (
        f"The installed engine, {version}, was derived again on this machine for its own kind of "
        f"device: {values.count('compatibility.same', int(same.sum()))} of "
        f"{values.count('compatibility.again', len(derived))} answers are those of the table."
    )


def _device(row: object) -> str:
    device, aiter = getattr(row, "device", ""), getattr(row, "aiter", "")
    return f"{device}, AITER {aiter}" if aiter else str(device)
