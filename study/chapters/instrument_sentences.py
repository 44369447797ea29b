"""Sentences of the chapter on the instrument; every number by way of `Values`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from study import stats
from study.agreement import COMPARISONS
from study.alike import alike
from study.chapter import Part
from study.chapters import instrument_estimates as instrument
from study.chapters.instrument_figures import NO_CALIBRATION
from study.chapters.instrument_tables import NO_SECOND
from study.estimates import METRICS, of_metrics, rows_of
from study.gates.headroom import GATE, RATE_FACTOR
from study.nullloads import GRID
from study.second import TOOL
from study.sentences import Values
from study.style import spelled

ENGINE_CLOCK = (
    "The engine's clock of TTFT starts when a request has come through the API server, and stops "
    "before the answer goes back through it; the client's holds both ways."
)
ONE_BLOCK = "one block carries no interval, and no test"
LOST = (
    "Where no harder one was kept, a window that asks for more than one of the others is void. "
    "Was the machine busy then, `make reproduce RETRY=1` calibrates once more, and judges anew "
    "what was measured; it is not measured anew. "
)
NO_VALID = "There is no valid window to compare them on."


def client(part: Part, values: Values) -> str:
    """What the client adds at the loads of the grid, and the chunk rate that it keeps."""
    points = instrument.calibrated(part)
    if points.empty or part.calibration is None:
        return NO_CALIBRATION
    key, counted = f"{part.name}.calibration", part.calibration.counted
    grid = counted[counted["kind"] == GRID]
    where = "share one core" if part.calibration.shared else "have cores of their own"
    levels = [values.count(f"{key}.level.{at}", n) for at, n in _ends(grid["level"])]
    rates = [values.count(f"{key}.rate.{at}", n) for at, n in _ends(grid["chunks_per_s"])]
    ttft = [
        values.number(f"{key}.ttft_ms.{at}", n) for at, n in _ends(grid["ttft_added_median_ms"])
    ]
    itl = [values.number(f"{key}.itl_ms.{at}", n) for at, n in _ends(grid["itl_error_median_ms"])]
    held = int(grid["held"].sum())
    said = values.count(f"{key}.held", held)
    tries = points[points["kind"] == GRID].groupby(["level", "itl_ms"]).size()
    again = int((tries > 1).sum())
    tried = f"{values.count(f'{key}.again', again)} were tried again" if again else ""
    return (
        f"Against a null server that knows when it sent each token, where client and server "
        f"{where}: at levels {_to(levels)} and {_to(rates)} chunks/s the client adds "
        f"**{_to(ttft)} ms** of its own to the median TTFT, and its ITL is **{_to(itl)} ms** "
        f"(median) off the gap that was. The pace was held in {said} of "
        f"{values.count(f'{key}.loads', len(grid))} loads of the grid"
        f"{f' ({tried}; the best try counts)' if tried else ''}. "
        + ("" if held == len(grid) else LOST)
        + _breaking(part, values)
    )


def _ends(column: pd.Series) -> list[tuple[str, Any]]:
    return [("least", column.min()), ("most", column.max())]


def _to(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _breaking(part: Part, values: Values) -> str:
    assert part.calibration is not None
    key, breaking = f"{part.name}.calibration", part.calibration.breaking_per_s
    kept = part.calibration.safe_per_s
    if math.isnan(kept):
        return "Of the ramp no chunk rate was kept, so none can be told to be safe."
    said = f"The ramp was kept up to {values.count(f'{key}.kept_per_s', round(kept))} chunks/s"
    if math.isnan(breaking):
        return f"{said}, its end: where it breaks was not reached."
    broke = values.count(f"{key}.breaking_per_s", round(breaking))
    return f"{said} and broke when asked for {broke}, client and null server together."


def headroom(part: Part, values: Values) -> str:
    """How many windows had room for their client."""
    seen = part.found.judgements
    of = seen[seen["gate"] == GATE] if len(seen) else seen
    if of.empty:
        return "No window was judged for its client's headroom."
    said = ", ".join(
        f"{values.count(f'{part.name}.headroom.{verdict}', n)} {verdict}"
        for verdict, n in of["verdict"].value_counts().items()
    )
    return (
        f"Headroom of the client (gate `{GATE}`), by window of this chapter: {said}. The chunk "
        f"rate of a window must stay below the rate that was kept, divided by "
        f"{values.number(f'{part.name}.headroom.factor', RATE_FACTOR)}."
    )


def second(part: Part, values: Values) -> str:
    """Who agrees with whom, and the known reasons where they do not."""
    if part.seconds.files.empty:
        return NO_SECOND
    said = (_outcomes(part, values), _ends_apart(part, values), ENGINE_CLOCK)
    return "\n".join([*said, *_reasons(part, values)])


def others(part: Part, values: Values) -> str:
    """In short: do the engine's counters and the second instrument agree with the client?"""
    files, means = part.seconds.files, instrument.agreement(part)
    if files.empty:
        return NO_SECOND
    known = means[means["n"] > 0]
    engine = _farthest(part, known, ("engine_tokens", "engine_ttft"), values)
    theirs = _farthest(part, known, ("bench_rate_full", "bench_ttft_full"), values)
    told = f"The engine's own counters: {engine}. {ENGINE_CLOCK}" if engine else NO_VALID
    measured, void = (
        int((files[column] == name).sum())
        for column, name in (("outcome", "measured"), ("verdict", "void"))
    )
    if not measured:
        return f"{told} The second instrument measured no window."
    key = f"{part.name}.second"
    of, n = values.count(f"{key}.files", measured), values.count(f"{key}.void", void)
    refused = f"the referee judged {n} of its {of} files void" if void else ""
    return f"{told} `{TOOL}`: {'; '.join(filter(None, [theirs or 'no valid ratio', refused]))}."


def _farthest(part: Part, means: pd.DataFrame, names: Sequence[str], values: Values) -> str:
    """Of each of these comparisons the mean that lies farthest from one."""
    said = []
    for name in names:
        rows = means[means["comparison"] == name]
        if len(rows):
            far = np.log(rows["point"]).abs().idxmax()
            said.append(_mean(part, rows.loc[far], values))
    return ", ".join(said)


def _mean(part: Part, row: Any, values: Values) -> str:
    """A mean ratio of instruments, and where it was taken."""
    key = f"{part.name}.agreement.{row['comparison']}.{row['workload']}.{row['level']}"
    level = values.count(f"{key}.level", row["level"])
    place = f"`{row['workload']}`, level {level}"
    return f"*{COMPARISONS[row['comparison']]}* ({place}): **{values.interval(key, row)}**"


def _ends_apart(part: Part, values: Values) -> str:
    """Of all comparisons, the one nearest to agreement and the one farthest from it."""
    means = instrument.agreement(part)
    known = means[means["n"] > 0]
    if known.empty:
        return NO_VALID
    order = np.log(known["point"]).abs().sort_values().index
    nearest, farthest = (_mean(part, known.loc[order[at]], values) for at in (0, -1))
    return f"Nearest to agreement is {nearest}, farthest from it {farthest}."


def _outcomes(part: Part, values: Values) -> str:
    files, key = part.seconds.files, f"{part.name}.second"
    ended = [
        f"{values.count(f'{key}.{outcome}', n)} {outcome}"
        for outcome, n in files["outcome"].value_counts().items()
    ]
    measured = files[files["outcome"] == "measured"]
    judged = [
        f"{values.count(f'{key}.verdict.{verdict}', n)} {verdict}"
        for verdict, n in measured["verdict"].value_counts().items()
    ]
    text = f"The second instrument, window by window: {', '.join(ended)}."
    why = dict.fromkeys(files.loc[files["reason"] != "", "reason"])
    text += "".join(f" `{values.label(f'{key}.reason.{at}', one)}`." for at, one in enumerate(why))
    if judged:
        text += f" The referee's verdict of its files: {', '.join(judged)}."
    if (measured["verdict"] == "void").any():
        text += " A ratio that rests on a void one is in no mean."
    return text


def _reasons(part: Part, values: Values) -> list[str]:
    """Why the second instrument says something else: what its own files show of it."""
    files = part.seconds.files
    measured = files[files["outcome"] == "measured"]
    if measured.empty:
        return []
    key = f"{part.name}.second"
    share = float(1 - measured["full_s"].sum() / measured["duration_s"].sum())
    apart = values.percent(f"{key}.not_full", share)
    more = float((measured["cpu_s"] / measured["requests"]).mean() * 1e3)
    ours = float((measured["client_cpu_s"] / measured["client_requests"]).mean() * 1e3)
    most = values.count(f"{key}.input_most", measured["input_most"].max())
    least = values.count(f"{key}.input_least", measured["input_least"].min())
    return [
        "Reasons that its own files show (it ran after the window that it is compared with, not "
        "beside it, so what the machine did meanwhile is in the ratio too): it sends all slots' "
        "first requests at once, and with equal lengths they stay together, so that prompts wait "
        "for each other (TTFT) more than in a staggered window; "
        f"its level was not full for {apart} of the time that it counts; its "
        f"prompts are text, of which the engine makes {least} to {most} tokens; and its client "
        f"takes {values.number(f'{key}.cpu_ms', more)} ms of CPU time for a request, ours "
        f"{values.number(f'{part.name}.client.cpu_ms', ours)} ms. Before the run that is counted "
        "it made another one, to warm up."
    ]


def twins(part: Part, values: Values) -> str:
    """Does the machinery find a difference where there is none?"""
    frame = of_metrics(lambda metric: instrument.ratios(part.found, part.launches, metric))
    known = frame[frame["n"] > 0]
    if known.empty:
        return "No block has a valid window of both twins, so nothing is compared."
    key = f"{part.name}.twins"
    tests = known[known["p_value"].notna()]
    asked = values.count(f"{key}.comparisons", len(known))
    if tests.empty:
        return f"The same server under two names was compared in {asked} ratios; {ONE_BLOCK}."
    tested = values.count(f"{key}.tested", len(tests))
    wrong = int((tests["p_value"] < 1 - stats.CONFIDENCE).sum())
    return (
        f"The same server under two names: of {tested} ratios with an interval "
        f"{values.count(f'{key}.different', wrong)} differ from one by their simultaneous "
        "intervals, where none should. That they do not differ is not shown to be equality."
    )


def floor(part: Part, values: Values, parts: Sequence[Part] = ()) -> str:
    """What every ratio of throughputs must be seen beside; empty where nothing tells it.

    `parts`: all of the study, for what the same server gave in other chapters.
    """
    said, row = apart(part, values), _throughput_floor(part)
    wide, one_pair = across(part, values, parts), bool(said) and math.isnan(row.spread)
    if one_pair and not wide:
        return (
            f"{said.removesuffix('.')}: a ratio without an interval that lies nearer to one is not "
            "told from chance, and as this is one pair, one that lies further away may not be "
            "either."
        )
    if said and not one_pair:
        said = f"{said.removesuffix('.')}: an interval holds that, a ratio without one does not."
    if not wide:
        return said
    pair = (row.farthest - 1 if one_pair else row.spread) if said else 0.0
    largest = max(float(alike(parts)["ratio"].max()) - 1, pair)
    nearer = values.percent(f"{part.name}.across.largest", largest)
    return " ".join(filter(None, [said, wide])) + (
        f" A ratio without an interval that lies nearer to one than {nearer}"
        f"{', the larger of the two,' if said else ''} is not told from chance, and one that lies "
        "further away may not be either."
    )


def across(part: Part, values: Values, parts: Sequence[Part]) -> str:
    """What the same server gave in several chapters; empty where fewer than two have it."""
    known = alike(parts)
    if known.empty:
        return ""
    key, row = f"{part.name}.across", next(rows_of(known))
    model = values.label(f"{key}.model", spelled(row.model))
    workload = values.label(f"{key}.workload", row.workload)
    least, most = (values.number(f"{key}.{end}", getattr(row, end)) for end in ("least", "most"))
    layers, level, launches, chapters = (
        values.count(f"{key}.{what}", getattr(row, what))
        for what in ("layers", "level", "launches", "chapters")
    )
    flags = f"differ in {row.differ} alone" if row.differ else "are the same"
    return (
        f"The same model ({model}, {layers} layers) at `{workload}`, {level} in flight, gave "
        f"{least} to {most} tok/s in {launches} launches of {chapters} chapters, "
        f"{values.percent(f'{key}.apart', row.ratio - 1)} apart; their flags {flags}."
    )


def yardsticks(part: Part, values: Values, parts: Sequence[Part]) -> str:
    """What is noise, by twins and by other chapters; empty where neither tells it."""
    return " ".join(filter(None, (apart(part, values), across(part, values, parts))))


def apart(part: Part, values: Values) -> str:
    """What two launches of one server differ by in throughput; empty where no block tells it."""
    row = _throughput_floor(part)
    if not row.blocks:
        return ""
    key, late = f"{part.name}.noise.{row.metric}", _second_tries(part, values)
    same, metric = "Two launches of one and the same server", "in output throughput"
    if math.isnan(row.spread):
        far = values.percent(f"{key}.farthest", row.farthest - 1)
        return f"{same} differed by {far} {metric}{late}."
    spread = values.percent(f"{key}.spread", row.spread)
    return f"{same} differ by {spread} {metric} (standard deviation inside blocks){late}."


def _throughput_floor(part: Part) -> Any:
    frame = instrument.noise_floor(part.found, part.launches)
    return next(rows_of(frame[frame["metric"] == "output_tok_s"]))


def _second_tries(part: Part, values: Values) -> str:
    """That values behind the floor were measured once more, as the first try was void."""
    valid = part.found.windows[part.found.windows["verdict"] == "valid"]
    again = int(valid["again"].astype(bool).sum())
    if not again:
        return ""
    key = f"{part.name}.noise"
    said = values.count(f"{key}.again", again)
    of = values.count(f"{key}.windows", len(valid))
    return f" ({said} of the {of} windows behind this: a second try, as the first was void)"


def noise_floor(part: Part, values: Values) -> str:
    """How much two launches of one server differ, per metric."""
    frame = instrument.noise_floor(part.found, part.launches)
    if not frame["blocks"].max():
        return "There is no noise floor without a valid block."
    said = []
    for row in rows_of(frame):
        key, name = f"{part.name}.noise.{row.metric}", METRICS[row.metric].name
        if math.isnan(row.spread):
            far = values.percent(f"{key}.farthest", row.farthest - 1)
            said.append(f"{name} {far}{' at most' if row.cells > 1 else ''}")
        else:
            spread = values.percent(f"{key}.spread", row.spread)
            least = f"these blocks could show {values.percent(f'{key}.shown', row.shown)}"
            if math.isnan(row.shown):  # of one of its cells
                least = "a cell of one block can show none"
            said.append(f"{name} {spread} ({least})")
    if frame["spread"].isna().all():
        return f"One pair of launches of one server differed by: {'; '.join(said)}; {ONE_BLOCK}."
    return (
        "The noise floor, as standard deviation of the log ratio of two launches of one server in "
        f"one block, and the least difference that could be shown: {'; '.join(said)}."
    )
