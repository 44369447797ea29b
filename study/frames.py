"""From raw records to tidy frames: a row per launch, per window, per judgement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from study import calibration, engine, validity
from study.calibration import Calibration
from study.client import Recording
from study.gates.machine import grown
from study.plan import Launch
from study.standing import NOT_MEASURED, Standing, standings
from study.steady import measure
from study.store import Attempt, Store
from study.validity import Judgement, WindowEvidence

__all__ = ["NOT_MEASURED", "Found", "Frames", "just_measured", "read"]


@dataclass(frozen=True, eq=False)
class Frames:
    """All that was found of an experiment's launches.

    launches: a row per launch asked for, measured or not: experiment, launch, block, arm, one
        column per factor, outcome (`not measured` where nothing ended yet), reason, attempts,
        started_beside (the launch whose server started with its own, if one did), ready_s, stop_s,
        wall_s (of two that started together, with half of that time each), windows, and what the
        engine says is in force.
    windows: a row per window of a launch that was measured: experiment, launch, block, arm, one
        column per factor, workload, input_tokens, output_tokens, level, searched (the level was
        chosen by the arm's search, not asked for), max_num_seqs (asked for), again (measured once
        more on its launch, for the first was void: both are rows), verdict, reasons, load_s,
        warm_s, wall_s, loop_lag_p99_s; client_wait_s and server_wait_s (how long their main
        threads were ready to run but had no core: study.telemetry); pace_s (CPU time of a piece of
        work, mean of the looks: study.pace); the engine's own account of the
        load (prefix_hits_tokens, external_hits_tokens, offload_load_bytes, offload_store_bytes,
        preemptions) and of its steady part (running_mean, waiting_mean, waiting_max, kv_use_max);
        what the launch's storage grew by (stored_bytes, stored_files; NaN without one); and every
        field of `study.steady.WindowSummary`.
    judgements: a row per gate and window: launch, arm, workload, level, gate, scope, verdict,
        observed, limit, text.
    """

    launches: pd.DataFrame
    windows: pd.DataFrame
    judgements: pd.DataFrame

    def asked(self) -> Frames:
        """Without the windows whose levels a search chose: what all launches of an arm share."""
        if self.windows.empty:
            return self
        return replace(
            self,
            windows=self.windows[~self.windows["searched"]],
            judgements=self.judgements[~self.judgements["searched"]],
        )

    def unproven(self) -> pd.DataFrame:
        """Valid windows that a gate of scope window could not judge; `gates` lists which."""
        if self.windows.empty:
            return self.windows.assign(gates=[])
        valid = self.windows[self.windows["verdict"] == "valid"]
        judged = self.judgements[self.judgements["scope"] == "window"]
        unsure = judged[judged["verdict"] == "cannot judge"]
        if unsure.empty:
            return valid.iloc[:0].assign(gates=[])
        cell = ["launch", "workload", "level", "again"]
        gates = unsure.groupby(cell)["gate"].agg(list).rename("gates").reset_index()
        return valid.merge(gates, on=cell)


def read(launches: Sequence[Launch], store: Store | None = None) -> Frames:
    """Read the launches from the store; only a launch that ended counts, with its best try."""
    store = store or Store()
    launch_rows: list[dict[str, Any]] = []
    window_rows: list[dict[str, Any]] = []
    judgement_rows: list[dict[str, Any]] = []
    seen: dict[object, str] = {}
    client = calibration.read(launches[0].setup, store) if launches else None
    for one in standings(launches, store):
        launch_rows.append(_launch_row(one))
        for folder in one.attempt.windows if one.attempt else []:
            row, judgements = _window_rows(one.launch, one.attempt, folder, seen, client)
            window_rows.append(row)
            judgement_rows += judgements
    return Frames(
        pd.DataFrame(launch_rows), pd.DataFrame(window_rows), pd.DataFrame(judgement_rows)
    )


@dataclass(frozen=True)
class Found:
    """What can be said of a window just measured.

    output_tok_s: output tokens/s in its steady part; None where it is void. of_the_moment: it is
    void, but for passing reasons.
    """

    output_tok_s: float | None
    of_the_moment: bool


def just_measured(
    launch: Launch, folder: Path, in_force: dict[str, str | None], store: Store
) -> Found:
    """Judge a window by what is on disk while its launch still lasts, as `read` will later."""
    content = orjson.loads((folder / "window.json").read_bytes())
    evidence = replace(
        _evidence(launch, content, Recording.load(folder / "load"), folder, in_force),
        calibration=calibration.read(launch.setup, store),
    )
    rate = measure(evidence.requests, evidence.chunks, evidence.steady).output_tok_s
    judgements = validity.judge_window(evidence)
    is_void = validity.verdict(judgements) == "void" or math.isnan(rate)
    return Found(None if is_void else rate, validity.of_the_moment(judgements, evidence))


RECORDED = ("started_utc", "order", "started_beside", "ready_s", "stop_s", "wall_s")


def _keys(launch: Launch) -> dict[str, Any]:
    return {
        "experiment": launch.experiment,
        "launch": launch.id,
        "block": launch.block,
        "arm": launch.arm.name,
        **launch.arm.factors,
    }


def _launch_row(one: Standing) -> dict[str, Any]:
    record = (one.attempt.record if one.attempt else None) or {}
    return {
        **_keys(one.launch),
        "outcome": one.outcome,
        "reason": one.reason,
        "attempts": one.attempts,
        "windows": len(one.attempt.windows) if one.attempt else 0,
        **{name: record.get(name) for name in RECORDED},
        **(record.get("in_force") or {}),
    }


def _window_rows(
    launch: Launch,
    attempt: Attempt | None,
    folder: Path,
    seen: dict[object, str],
    client: Calibration | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert attempt is not None and attempt.record is not None
    content = orjson.loads((folder / "window.json").read_bytes())
    recording = Recording.load(folder / "load")
    name = f"{launch.id}/{folder.name}"
    evidence = replace(
        _evidence(launch, content, recording, folder, attempt.record.get("in_force") or {}),
        repeated=_earlier(seen, recording, name),
        calibration=client,
    )
    judgements = validity.judge_window(evidence)
    workload = content["plan"]["workload"]
    keys = {
        **_keys(launch),
        "workload": workload["name"],
        "input_tokens": workload["input_tokens"],
        "output_tokens": workload["output_tokens"],
        "level": content["plan"]["level"],
        "searched": content["plan"]["searched"],
        "again": content["plan"]["again"],
    }
    limit = launch.arm.flags.get("max_num_seqs")
    verdict = validity.verdict(judgements)
    reasons = [one.text for one in judgements if (one.scope, one.verdict) == ("window", "fail")]
    if attempt.outcome == "failed":
        verdict = "void"
        reasons.append("Its launch failed later, so it is kept but not counted.")
    row = {
        **keys,
        "verdict": verdict,
        "reasons": "; ".join(reasons),
        "max_num_seqs": math.nan if limit is None else float(str(limit)),
        "load_s": content["load_s"],
        "warm_s": content["warm_s"],
        "wall_s": content["wall_s"],
        "loop_lag_p99_s": recording.info["loop_lag_p99_s"],
        **_waits(evidence.telemetry),
        "pace_s": _pace(evidence.telemetry),
        **_engine_account(content, evidence),
        **asdict(measure(recording.requests, recording.chunks, evidence.steady)),
    }
    return row, [{**keys, **_plain(one)} for one in judgements]


COUNTED = (
    "prefix_hits_tokens",
    "external_hits_tokens",
    "offload_load_bytes",
    "offload_store_bytes",
    "preemptions",
)


def _engine_account(content: dict[str, Any], evidence: WindowEvidence) -> dict[str, float]:
    before, after, samples = content["before"], content["after"], evidence.samples
    if evidence.steady is not None:
        samples = samples[evidence.steady.holds(samples["time_s"].to_numpy())]
    nan = float("nan")
    return {
        **{name: after.get(name, nan) - before.get(name, nan) for name in COUNTED},
        "running_mean": samples["running"].mean(),
        "waiting_mean": samples["waiting"].mean(),
        "waiting_max": samples["waiting"].max(),
        "kv_use_max": samples["kv_use"].max(),
        **{f"stored_{name}": content["stored"].get(name, nan) for name in ("bytes", "files")},
    }


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
        input_tokens=content["prompt_tokens"] or plan["workload"]["input_tokens"],
        output_tokens=plan["workload"]["output_tokens"],
        requests=recording.requests,
        chunks=recording.chunks,
        samples=pd.read_parquet(folder / "samples.parquet"),
        before=content["before"],
        after=content["after"],
        asked=launch.arm.expected,
        in_force=in_force,
        load=recording.info,
        warm_latencies_s=content["warm_latencies_s"],
        warmed=plan["warm_up"],
        log=_log(folder.parents[1] / "server.log", content.get("log_bytes")),
        phase=plan.get("phase"),
        telemetry=_telemetry(folder / "telemetry.parquet"),
    )


def _log(path: Path, place: Sequence[int] | None) -> str | None:
    """What the engine wrote during the load; None where that is not on record."""
    if place is None or not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(place[0])
        return engine.plain(file.read(place[1] - place[0]).decode("utf-8", "replace"))


def _telemetry(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.exists() else None


def _waits(looks: pd.DataFrame | None) -> dict[str, float]:
    names = ("client_wait_s", "server_wait_s")
    return {name: math.nan if looks is None else grown(looks, name) for name in names}


def _pace(looks: pd.DataFrame | None) -> float:
    told = None if looks is None else looks.get("pace_s")
    return math.nan if told is None else float(told.mean())


def _earlier(seen: dict[object, str], recording: Recording, name: str) -> str:
    """The window read before that holds this recording: no two begin in the same nanosecond."""
    began_ended = recording.info["started_s"], recording.info["ended_s"]
    first = seen.setdefault((*began_ended, len(recording.requests)), name)
    return "" if first == name else first


def _plain(judgement: Judgement) -> dict[str, Any]:
    row = asdict(judgement)
    return {**row, "observed": str(row["observed"]), "limit": str(row["limit"])}
