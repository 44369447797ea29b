"""Every table of published figures, checked against itself, its neighbours and arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study import hardware
from study.claims import inferencex, metrum, spark, wafer
from study.claims.evidence import PHYSICS, Class, Evidence, classify
from study.claims.levels import LLAMA, QWEN, SETTLED_BY, Curve, curves
from study.claims.mi325x import COOKBOOK, PAPER, in_flight
from study.claims.printed import Number, exact, printed, through
from study.claims.published import Published
from study.gates.level import LEVEL_TOLERANCE

ECHO, SWEEP = "client against an echo server", "saturation-analysis (later sweep)"


@dataclass(frozen=True)
class Check:
    """One thing that a table lets one check, and what came of it. model: blank for all."""

    source: str
    table: str
    model: str
    what: str
    evidence: Evidence

    @property
    def found(self) -> Class:
        return classify((), self.evidence)


def checks(published: Published) -> tuple[Check, ...]:
    """At least one check of every table, in the order of the sources."""
    return (
        *_metrum(published),
        *_inferencex(published),
        *_abstract(published),
        *_cookbook(published),
        *_wafer(published),
        *_spark(published),
    )


def frame(found: Sequence[Check]) -> pd.DataFrame:
    """A row per check: what is printed, what was computed, class and reason."""
    return pd.DataFrame(
        {
            "source": one.source,
            "table": one.table,
            "model": one.model,
            "check": one.what,
            "printed": _listed(one.evidence.stated),
            "computed": _listed(one.evidence.computed),
            "computed_unit": one.evidence.unit,
            "class": one.found,
            "why": one.evidence.why,
            "missing": one.evidence.missing if one.found == "not derivable" else "",
        }
        for one in found
    )


def _listed(numbers: tuple[Number, ...]) -> str:
    return " | ".join(f"{one.value:.4g}" for one in numbers)


def _alone(published: Published, what: str, why: str, **where: object) -> Evidence:
    missing = published.lacks(what, **where)
    return Evidence((), "", why, relation="alone", missing=missing)


# --- Metrum ---------------------------------------------------------------------------------------


def _metrum(published: Published) -> Iterator[Check]:
    source = metrum.SOURCE
    memory, least = hardware.load("mi355x").memory_gb, metrum.least_weights_gb()
    ranks = published.rows(source=source, table="Table 2", hardware="MI355X")["tensor_parallel"]
    (each,) = {int(n) for n in ranks}
    fits = Evidence(
        computed=(exact(least),),
        unit="GB of weights at least",
        why=f"A replica on {each} MI355X has {memory * each:g} GB for {least:.0f} GB of weights: "
        "the rates may stand, the configuration beside them cannot.",
        relation="at least",
        refutes=PHYSICS,
        missing="the launch command and the engine's log",
        stated=(exact(memory * each),),
    )
    yield Check(source, "Table 2", "Kimi-K2.5", "does a replica fit its GPUs?", fits)
    raw = _alone(
        published,
        "raw throughput of MI300X at these levels",
        "Error rates alone give no effective throughput.",
        source=source, hardware="MI300X", metric="output_throughput", concurrency=2048,
    )  # fmt: skip
    yield Check(source, "Table 3", "Kimi-K2.5", "effective throughput", raw)
    at_512 = published.rows(
        source=source, table="Table 2", hardware="MI355X", concurrency=512
    )["value"]  # fmt: skip
    rest = published.lacks(
        "2,048/2,048 tokens at 512", source=source, table="Table 2", hardware="MI355X",
        concurrency=512, input_tokens=2048,
    )  # fmt: skip
    over = Evidence(
        computed=tuple(printed(value) for value in at_512),
        unit="tok/s, two of three workloads",
        why="Table 2 has more at 512 for two workloads; the third is not in it.",
        relation="at most",
        missing=rest,
        stated=(published.number(source=source, table="Figure 1 text"),),
    )
    yield Check(source, "Figure 1 text", "Kimi-K2.5", "over 1,000 tok/s at 512", over)
    rate = published.number(
        source=source, table="text", metric="output_throughput", concurrency=1024
    )
    power = published.number(source=source, metric="system_power")
    per_watt = Evidence(
        computed=(through(lambda a, b: a / b, rate, power),),
        unit="tok/s/W",
        why=f"{rate.value:,.0f} tok/s / {power.value:,.0f} W.",
        stated=(published.number(source=source, metric="output_tokens_per_watt"),),
    )
    yield Check(source, "text", "Kimi-K2.5", "tokens per watt from rate and power", per_watt)


# --- InferenceX -----------------------------------------------------------------------------------


def _inferencex(published: Published) -> Iterator[Check]:
    source = inferencex.SOURCE
    for table in (
        inferencex.BEFORE, inferencex.AFTER, inferencex.AFTER_TP4
    ):  # fmt: skip
        speeds = inferencex.reciprocal(published, table)
        yield Check(source, table, "Kimi-K2.5", "interactivity is 1,000 / TPOT", speeds)
        tokens = inferencex.what_is_counted(published, table)
        yield Check(source, table, "Kimi-K2.5", "tok/s/GPU counts input and output", tokens)
    again = inferencex.read_at(published)
    yield Check(source, "iso-throughput", "Kimi-K2.5", "interpolated again", again)
    b200 = _alone(
        published, "B200's curve", "A peak without its level.",
        source=source, hardware="B200", metric="tpot",
    )  # fmt: skip
    yield Check(source, "text", "Kimi-K2.5", "B200's peak", b200)


# --- the paper's abstract, and the cookbook -------------------------------------------------------


def _abstract(published: Published) -> Iterator[Check]:
    for row in published.rows(source=PAPER, metric="total_throughput_peak").to_dict("records"):
        what = "the peak is the highest of a table"
        if row["model"] not in (LLAMA, QWEN):
            lacking = _alone(
                published, "its table by level", "Known as a peak only.",
                source=COOKBOOK, table="stress saturation", model=row["model"],
            )  # fmt: skip
            yield Check(PAPER, "abstract", row["model"], what, lacking)
            continue
        of_table = published.curve(
            source=COOKBOOK,
            table="stress saturation",
            model=row["model"],
            metric="total_throughput",
        )
        top = max(of_table, key=lambda level: of_table[level].value)
        found = Evidence(
            computed=(of_table[top],),
            unit="tok/s",
            why=f"The cookbook's table has it at nominal {top:,}: hence the inference that its "
            "tables are the paper's.",
            stated=(printed(row["value"]),),
        )
        yield Check(PAPER, "abstract", row["model"], what, found)


def _cookbook(published: Published) -> Iterator[Check]:
    for name, curve in curves().items():
        table, model, *_ = [*name.split(", "), ""]
        if table == ECHO:
            yield Check(COOKBOOK, table, "", "were the levels reached?", _echo(published))
        elif table == SWEEP:
            lone = _alone(
                published, "the workload", "One level, without lengths.",
                source=COOKBOOK, table=SWEEP, model=model, metric="output_throughput",
            )  # fmt: skip
            yield Check(COOKBOOK, table, model, "was the level reached?", lone)
        else:
            arm = "".join(name.split(", ")[2:])
            what = f"were the levels reached?{f' ({arm})' if arm else ''}"
            yield Check(COOKBOOK, table, model, what, reached(curve))


def reached(curve: Curve) -> Evidence:
    """What a level would show if it was full, against what bounds it: rate x p99, the requests
    made, or a lower level that shows the same load."""
    judged = curve.judged
    known = {
        level: (float(said.limit), float(said.observed))
        for level, said in judged.items()
        if np.isfinite([float(said.limit), float(said.observed)]).all()
    }
    failed = {level: said for level, said in judged.items() if said.verdict == "fail"}
    named = ", ".join(f"{level:,g} ({float(said.observed):.0f})" for level, said in failed.items())
    return Evidence(
        computed=tuple(exact(observed) for _, observed in known.values()),
        unit="requests in flight at most",
        why=f"Refuted, with the most that was in flight in brackets: {named}."
        if failed
        else "No level is refuted; a bound confirms none.",
        relation="at most",
        missing=SETTLED_BY,
        stated=tuple(exact(least) for least, _ in known.values()),
    )


def _echo(published: Published) -> Evidence:
    where = {"source": COOKBOOK, "table": ECHO}
    rates = published.curve(**where, metric="request_rate")
    times = published.curve(**where, metric="e2e_p50")
    held = [through(in_flight, rates[level], times[level]) for level in rates]
    return Evidence(
        computed=tuple(held),
        unit="requests in flight, by the median",
        why=f"Rate x median latency falls from {held[0].value:.0f} at nominal {min(rates):,} to "
        f"{held[-1].value:.0f} at {max(rates):,}.",
        relation="at most",
        missing="mean latencies",
        stated=tuple(exact((1 - LEVEL_TOLERANCE) * level) for level in rates),
    )


# --- DigitalOcean and Wafer, and the thread -------------------------------------------------------


def _wafer(published: Published) -> Iterator[Check]:
    source = wafer.SOURCE
    speeds = published.rows(source=source, model="Kimi-K2.5", metric="output_speed_per_request")
    most = wafer.decode_bound()
    possible = Evidence(
        computed=(exact(most),) * len(speeds),
        unit=f"tok/s at most on {wafer.DEVICES} GPUs",
        why=f"Reading the active weights in MXFP4 over {wafer.DEVICES} MI350X allows "
        f"{most:,.0f} tok/s to one request: both are possible.",
        relation="at most",
        missing="latencies and lengths as delivered",
        stated=tuple(printed(value) for value in speeds["value"]),
    )
    yield Check(source, "text", "Kimi-K2.5", "speed of one request", possible)
    for metric in ("output_speed_per_request", "aggregate_throughput"):
        alone = _alone(
            published, "hardware and lengths", "Neither the GPUs nor the lengths are stated.",
            source=source, model="DeepSeek-V3.2", hardware="MI350X",
        )  # fmt: skip
        yield Check(source, "text", "DeepSeek-V3.2", metric.replace("_", " "), alone)


def _spark(published: Published) -> Iterator[Check]:
    source = spark.SOURCE
    bound, own = (spark.CLUSTER * one() for one in (spark.thread_bound, spark.own_bound))
    estimate = Evidence(
        computed=(exact(own),),
        unit="tok/s at most on 8 nodes",
        why=f"The bound of {spark.CLUSTER} nodes is {bound:.0f} as the thread counts bytes, "
        f"{own:.0f} as the checkpoint has them; all-reduces come on top.",
        relation="at most",
        missing="a measurement",
        stated=(published.number(source=source, metric="decode_speed_estimate"),),
    )
    yield Check(source, "post", "Kimi-K2.5", "the estimate for eight nodes", estimate)
    for gpus in (1, 2):
        speed = published.number(source=source, metric="decode_speed", gpus=gpus)
        most = gpus * spark.thread_bound()
        measured = Evidence(
            computed=(exact(most),),
            unit="tok/s at most",
            why=f"{speed.value / most:.0%} of the bound of {gpus} "
            f"{'node' if gpus == 1 else 'nodes'}: possible.",
            relation="at most",
            missing="the posters' logs",
            stated=(speed,),
        )
        yield Check(source, "post", "Qwen3-VL-32B", f"decode on {gpus}", measured)


def tables_of(published: Published) -> set[tuple[str, str]]:
    """Every table that there is, by source."""
    rows = published.measurements
    return set(zip(rows["source"], rows["table"], strict=True))
