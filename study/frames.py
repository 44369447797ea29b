"""From raw records to tidy frames: a row per launch, per window, per judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from study import validity
from study.client import Recording
from study.plan import Launch
from study.steady import measure
from study.store import Attempt, Store
from study.validity import Judgement, WindowEvidence

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Frames:
    """All that was found of an experiment's launches.

    launches: a row per launch asked for, measured or not: experiment, launch, block, arm, one
        column per factor, outcome (`not measured` where nothing ended yet), reason, attempts,
        ready_s, stop_s, wall_s, windows, and what the engine says is in force.
    windows: a row per window of a launch that was measured: experiment, launch, block, arm, one
        column per factor, workload, input_tokens, output_tokens, level, verdict, reasons, load_s,
        warm_s, wall_s, and every field of `study.steady.WindowSummary`.
    judgements: a row per gate and window: launch, arm, workload, level, gate, scope, verdict,
        observed, limit, text.
    """

    launches: pd.DataFrame
    windows: pd.DataFrame
    judgements: pd.DataFrame


def read(launches: Sequence[Launch], store: Store | None = None) -> Frames:
    """Read the launches from the store; only a launch that ended counts, with its best try."""
    store = store or Store()
    attempts = store.attempts()
    launch_rows: list[dict[str, Any]] = []
    window_rows: list[dict[str, Any]] = []
    judgement_rows: list[dict[str, Any]] = []
    for launch in launches:
        tries = [one for one in attempts if one.launch == launch.id]
        best = store.best(launch.id)
        launch_rows.append(_launch_row(launch, tries, best))
        for folder in best.windows if best else []:
            row, judgements = _window_rows(launch, best, folder)
            window_rows.append(row)
            judgement_rows += judgements
    return Frames(
        pd.DataFrame(launch_rows), pd.DataFrame(window_rows), pd.DataFrame(judgement_rows)
    )


def _keys(launch: Launch) -> dict[str, Any]:
    return {
        "experiment": launch.experiment,
        "launch": launch.id,
        "block": launch.block,
        "arm": launch.arm.name,
        **launch.arm.factors,
    }


def _launch_row(launch: Launch, tries: Sequence[Attempt], best: Attempt | None) -> dict[str, Any]:
    record = (best.record if best else None) or {}
    return {
        **_keys(launch),
        "outcome": record.get("outcome") or NOT_MEASURED,
        "reason": record["reason"] if best else _why_not(tries),
        "attempts": len(tries),
        "windows": len(best.windows) if best else 0,
        **{name: record.get(name) for name in ("started_utc", "ready_s", "stop_s", "wall_s")},
        **(record.get("in_force") or {}),
    }


def _why_not(tries: Sequence[Attempt]) -> str:
    if not tries:
        return ""
    if any(one.record is None for one in tries):
        return "a record on disk cannot be read"
    return "interrupted; its windows are kept but not counted"


def _window_rows(
    launch: Launch, attempt: Attempt | None, folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert attempt is not None and attempt.record is not None
    content = orjson.loads((folder / "window.json").read_bytes())
    recording = Recording.load(folder / "load")
    evidence = _evidence(launch, content, recording, folder, attempt.record.get("in_force") or {})
    judgements = validity.judge_window(evidence)
    workload = content["plan"]["workload"]
    keys = {
        **_keys(launch),
        "workload": workload["name"],
        "input_tokens": workload["input_tokens"],
        "output_tokens": workload["output_tokens"],
        "level": content["plan"]["level"],
    }
    verdict = validity.verdict(judgements)
    reasons = [one.text for one in judgements if (one.scope, one.verdict) == ("window", "fail")]
    if attempt.outcome == "failed":
        verdict = "void"
        reasons.append("Its launch failed later, so it is kept but not counted.")
    row = {
        **keys,
        "verdict": verdict,
        "reasons": "; ".join(reasons),
        "load_s": content["load_s"],
        "warm_s": content["warm_s"],
        "wall_s": content["wall_s"],
        "loop_lag_p99_s": recording.info["loop_lag_p99_s"],
        **asdict(measure(recording.requests, recording.chunks, evidence.steady)),
    }
    return row, [{**keys, **_plain(one)} for one in judgements]


def _evidence(
    launch: Launch,
    content: dict[str, Any],
    recording: Recording,
    folder: Path,
    in_force: dict[str, str | None],
) -> WindowEvidence:
    plan = content["plan"]
    return WindowEvidence(
        level=plan["level"],
        input_tokens=plan["workload"]["input_tokens"],
        output_tokens=plan["workload"]["output_tokens"],
        requests=recording.requests,
        chunks=recording.chunks,
        samples=pd.read_parquet(folder / "samples.parquet"),
        before=content["before"],
        after=content["after"],
        asked=launch.arm.expected,
        in_force=in_force,
    )


def _plain(judgement: Judgement) -> dict[str, Any]:
    row = asdict(judgement)
    return {**row, "observed": str(row["observed"]), "limit": str(row["limit"])}
