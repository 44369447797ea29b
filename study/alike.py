"""One and the same server, as several chapters started it: a second noise floor.

Twins are a few launches of one chapter. Where other chapters start a server that nothing tells
apart as far as speed goes, that their launches differ is noise as well, and more of it: it holds
what changed on the machine over the whole study.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from study import estimates
from study.chapter import Part
from study.experiment import Arm

HEADLINE = "output_tok_s"
# Limits of the engine that play no part where a load stays within them.
FREE = ("max_model_len", "max_num_seqs")
SAME = ("model", "layers", "workload", "input_tokens", "output_tokens", "level")
COLUMNS = (*SAME, "least", "most", "ratio", "launches", "chapters", "differ")


def alike(parts: Sequence[Part]) -> pd.DataFrame:
    """By how much the launches of one server differ in output throughput, over all chapters.

    A row per server and load of which at least two chapters have a launch with a valid window,
    the widest range first. Servers are the same if model, depth, environment and flags are, but
    for FREE. Columns: SAME; least and most (tok/s, of a launch), ratio (most / least); launches
    and chapters (how many); differ (those of FREE that are not the same, in words).
    """
    seen = [frame for part in parts if len(frame := _seen(part))]
    known = pd.concat(seen, ignore_index=True) if seen else pd.DataFrame(columns=[*SAME, "server"])
    rows = [
        {**dict(zip(SAME, load, strict=True)), **_range(group)}
        for (*load, _), group in known.groupby([*SAME, "server"], sort=False)
        if group["chapter"].nunique() > 1
    ]
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    return found.sort_values("ratio", ascending=False, kind="stable", ignore_index=True)


def _seen(part: Part) -> pd.DataFrame:
    """A row per launch and load: SAME, value (tok/s), launch, chapter, server, and FREE."""
    arms = {launch.id: launch.arm for launch in part.launches}
    cell = ["launch", "workload", "level"]
    values = estimates.launch_values(part.found, HEADLINE)
    values = values.loc[values["launch"].isin(list(arms)), [*cell, "value"]]
    loads = estimates.windows(part.found)[[*cell, *(name for name in SAME if name not in cell)]]
    rows = values.merge(loads.drop_duplicates(cell), on=cell)
    of = [arms[name] for name in rows["launch"]]
    rows = rows.assign(chapter=part.name, server=[_server(arm) for arm in of])
    rows = rows.assign(**{name: [int(arm.flags[name]) for arm in of] for name in FREE})
    return rows[rows["level"] <= rows["max_num_seqs"]]


def _server(arm: Arm) -> str:
    """What a server is told that could change its speed."""
    flags = {name: value for name, value in arm.flags.items() if name not in FREE}
    told = {
        "flags": flags,
        "environment": arm.environment,
        "model": arm.model.model_dump(mode="json"),
    }
    return json.dumps(told, sort_keys=True)


def _range(launches: pd.DataFrame) -> dict[str, object]:
    least, most = launches["value"].min(), launches["value"].max()
    return {
        "least": least,
        "most": most,
        "ratio": most / least,
        "launches": len(launches),
        "chapters": launches["chapter"].nunique(),
        "differ": " and ".join(f"`{name}`" for name in FREE if launches[name].nunique() > 1),
    }
