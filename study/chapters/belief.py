"""Can these numbers be believed? What the gates say of every window of the study together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from study import ledgers, sentences, statements
from study.chapter import Part, Shown, Text
from study.frames import Frames
from study.gates.steady import DRIFT_LIMIT
from study.interval import Interval
from study.sentences import Values
from study.style import MUTED, Drawn, legend, look, panels
from study.tables import Table

BOOK = "90_report-belief"
COLOUR = {"pass": "#009E73", "cannot judge": "#d1d5db", "fail": "#D55E00"}
MOST_OFTEN = 3  # gates that are named
DIGIT = 0.012  # of the bar's width, as much as one digit takes


def results(parts: Sequence[Part], values: Values) -> list[Shown]:
    """Verdicts of all windows, and what each gate says of them."""
    found = together(parts)
    paced = pace(found, values)
    return [
        Text(verdicts(found, values)),
        Text(drift(found, values)),
        *([Text(paced)] if paced else []),
        gates(found).keep(f"{BOOK}-gates"),
        ledgers.verdicts(found).keep(f"{BOOK}-verdicts"),
        distinct(found).keep(f"{BOOK}-distinct-levels"),
    ]


def together(parts: Sequence[Part]) -> Frames:
    """What was found of several experiments, as one."""
    found = [part.found for part in parts]
    return Frames(
        *(
            pd.concat([getattr(one, name) for one in found], ignore_index=True)
            if found
            else pd.DataFrame()
            for name in ("launches", "windows", "judgements")
        )
    )


def verdicts(found: Frames, values: Values) -> str:
    """How many windows are valid, void, and how many of the valid ones are fully proven."""
    if found.windows.empty:
        return "No window was measured, so there is nothing to believe or to doubt."
    judged = found.judgements[found.judgements["scope"] == "window"]
    valid = found.windows[found.windows["verdict"] == "valid"]
    all_windows = values.count("belief.windows", len(found.windows))
    valid_ones = values.count("belief.valid", len(valid))
    void = values.count("belief.void", len(found.windows) - len(valid))
    gates_asked = values.count("belief.gates", judged["gate"].nunique())
    each = "The window" if len(found.windows) == 1 else f"Each of {all_windows} windows"
    are = "is" if len(valid) == 1 else "are"
    return (
        f"{each} was judged by {gates_asked} gates: **{valid_ones} {are} "
        f"valid** and {void} void{_voided_by(judged, values)}{_second_tries(found, values)}. "
        f"{_unsure(found, values)}"
    )


def _voided_by(judged: pd.DataFrame, values: Values) -> str:
    """The gates that fail most often; one void window may fail several."""
    failed = judged.loc[judged["verdict"] == "fail", "gate"].value_counts()
    most = failed.sort_index().sort_values(ascending=False, kind="stable").head(MOST_OFTEN)
    said = [f"`{gate}` {values.count(f'belief.void.{gate}', n)}" for gate, n in most.items()]
    return f" (most often by {', '.join(said)})" if said else ""


def _second_tries(found: Frames, values: Values) -> str:
    """How many windows stand in the place of one that was void."""
    again = int(found.windows["again"].sum())
    said = values.count("belief.again", again)
    tries = "is a second try" if again == 1 else "are second tries"
    return f"; {said} of all {tries} at a void one, on the same launch" if again else ""


def _unsure(found: Frames, values: Values) -> str:
    """How many valid windows are not fully proven, and which gate could not judge most of them."""
    unproven = found.unproven()
    if unproven.empty:
        values.count("belief.unproven", 0)
        any_valid = (found.windows["verdict"] == "valid").any()
        return (
            "Every gate could judge every valid one." if any_valid else "None is left to believe."
        )
    gates = unproven["gates"].explode()
    often = gates.mode().iloc[0]
    which = values.count("belief.unproven.most_often", int((gates == often).sum()))
    return (
        f"{sentences.unsure('belief.unproven', found, values)}, most often `{often}` ({which})"
        f"{sentences.NOT_PROVEN}"
    )


def drift(found: Frames, values: Values) -> str:
    """Do windows drift together? Too short each to tell, they can tell it all together."""
    if found.windows.empty:
        return ""
    shared = statements.common_drift(found.windows)
    change = values.interval("belief.drift", shared, scale=100.0)
    limit = values.percent("belief.drift_limit", DRIFT_LIMIT)
    how = values.label("belief.drift_how", shared.label())
    return (
        f"Most windows are too short to exclude a drift of their own; whether all share one, as "
        f"from a warm-up too short, they can tell together. From start to end of a window the "
        f"token rate changes by {change} % ({how}; every first try, void or not): "
        f"{_shared(shared, limit)}."
    )


def pace(found: Frames, values: Values) -> str:
    """How far the machine's own pace wandered, and whether throughput went with it."""
    seen = statements.pace(found.windows)
    if seen is None:
        return ""
    slowest = values.number("belief.pace_slowest", seen.slowest)
    median = values.number("belief.pace_median", seen.median)
    said = (
        "A neighbour on the same physical core, or a lower clock, slows a core down and need show "
        "in no counter of a virtual machine. So a fixed piece of work is timed in every window, in "
        f"the core's own time: in the slowest window it took {slowest} times as long as in the "
        f"quickest, in the median one {median} times."
    )
    if math.isnan(seen.slope.low):
        return f"{said} Whether throughput went with it, so few windows cannot tell."
    slope = values.interval("belief.pace_slope", seen.slope)
    how = values.label("belief.pace_how", seen.slope.label())
    share = values.percent("belief.pace_share", seen.share)
    return (
        f"{said} Where it took 1 % longer, output throughput of the same arm, workload and level "
        f"changed by {slope} % ({how}); {share} of its variance there goes with that, the rest "
        "does not."
    )


def _shared(drift: Interval, limit: str) -> str:
    if math.isnan(drift.low):
        return "too few launches to tell"
    if drift.low > DRIFT_LIMIT or drift.high < -DRIFT_LIMIT:
        return f"**they share a drift beyond {limit}**, so no rate here is one rate"
    shown = drift.low > 0 or drift.high < 0
    if not -DRIFT_LIMIT < drift.low <= drift.high < DRIFT_LIMIT:
        said = "**they share a drift**, and that it lies" if shown else "a shared drift"
        return f"{said} beyond {limit} is not excluded"
    if shown:
        return f"they share a drift, within the {limit} that one window may have"
    return f"no shared drift is shown, and one beyond {limit} is excluded"


def distinct(found: Frames) -> Table:
    """Are the levels of each load curve different loads? A row per curve where that did not pass.

    The data hold every curve.
    """
    data = statements.judged(found.windows)
    if data.empty:
        return Table(data, data, "No arm has two valid levels to compare.")
    passed = data["verdict"] == "pass"
    shown = data.loc[~passed, ["of", "verdict", "text"]].rename(columns={"of": "arm, workload"})
    text = (
        "Gate distinct_levels, of scope claim: two levels with the same rate and E2E are one. "
        f"It passed for {passed.sum()} of {len(data)} load curves."
    )
    return Table(shown, data, text)


def gates(found: Frames) -> Drawn:
    """A bar per gate of scope window: the shares of windows by what it said."""
    table = ledgers.verdicts(found).data
    if table.empty:
        return Drawn(None, table, "No window was judged.")
    frame = table[table["scope"] == "window"].reset_index(drop=True)
    with look():
        figure = _bars(frame)
    text = (
        "What each gate said of the windows that it judged; the numbers are windows. A failed gate "
        "voids its window. A grey part is neither proven nor refuted."
    )
    said = frame[list(COLOUR)]
    narrow = (said > 0) & ~_room(said)
    text += " A part too narrow for its number has none." if narrow.any(axis=None) else ""
    return Drawn(figure, frame, text)


def _room(said: pd.DataFrame) -> pd.DataFrame:
    """Whether each part of each bar has room for its number; a column per verdict."""
    shares = said.div(said.sum(axis=1), axis=0)
    return shares > DIGIT * said.map(lambda count: len(str(count)))


def _bars(frame: pd.DataFrame) -> Figure:
    figure, [[axis]] = panels(1, 1, 0.9 + 0.34 * len(frame))
    room = _room(frame[list(COLOUR)])
    total = frame[list(COLOUR)].sum(axis=1)
    left = pd.Series(0.0, index=frame.index)
    for said, colour in COLOUR.items():
        share = frame[said] / total
        axis.barh(frame["gate"], share, left=left, color=colour, height=0.68)
        for place in frame.index[room[said]]:
            middle, count = left[place] + share[place] / 2, frame.loc[place, said]
            axis.text(middle, place, f"{count}", ha="center", va="center", size=8.5)
        left = left + share
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0, labelcolor=MUTED)
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    legend(figure, [Patch(color=colour, label=said) for said, colour in COLOUR.items()])
    return figure
