"""The chapter on what physics allows: what fits, how fast it can be, how near a server comes."""

from __future__ import annotations

import math

import pandas as pd

from study import beside, bounds, capacity, hardware, machine, models, theory
from study.capacity import GIGA, USABLE_SHARE
from study.chapter import Part, Shown, Text
from study.chapters import theory_figures as figures
from study.estimates import rows_of
from study.hardware import Hardware
from study.models import Model
from study.sentences import Values
from study.tables import Table, count, number

MODEL = "kimi-k2.5"  # that of which the articles speak most
SPARK, MI355X = "dgx-spark", "mi355x"
CONTEXT = figures.CONTEXT
NO_MODEL = "No model of this chapter's own was asked for in this profile."


def summary(part: Part, values: Values, others: pd.DataFrame | None = None) -> list[Shown]:
    """How many devices, what does not fit, how fast it can be, and how near a server comes.

    `others`: windows of other experiments beside their bounds (`beside.windows`), to answer by
    where no model of this chapter's own was asked for.
    """
    return [
        Text(f"> {sparks(values)}"),
        Text(f"**One instance on one device.**\n\n{one_device(values)}"),
        Text(f"**The bound, measured.**\n\n{near(part, values, others)}"),
    ]


def results(part: Part, values: Values) -> list[Shown]:
    """Sizes, devices, the trade-off, speculation; then every window beside its bound."""
    book, device = part.notebook, machine.measured()
    seen = beside.windows(part.found.windows, device)
    return [
        Text("#### What the models hold\nBy arithmetic on the architecture, beside the cards."),
        sizes().keep(f"{book}-sizes"),
        Text("#### What fits where\nDevices for the weights alone, and cache beside them."),
        devices().keep(f"{book}-devices"),
        Text("#### How fast it can be\nA bound, and beside it an estimate, which is not a bound."),
        figures.trade_off(MODEL).keep(f"{book}-trade-off"),
        costs().keep(f"{book}-costs"),
        Text(f"#### Speculation\n{speculation(values)}"),
        figures.speculation().keep(f"{book}-speculation"),
        Text("#### Windows beside their bound"),
        figures.measured(seen, device).keep(f"{book}-measured"),
        windows(seen, device).keep(f"{book}-windows-and-bounds"),
    ]


# --- sentences ------------------------------------------------------------------------------------


def sparks(values: Values) -> str:
    """How many DGX Sparks Kimi K2.5 needs."""
    model, device = models.load(MODEL), hardware.load(SPARK)
    size = capacity.weights(model, "nvfp4")
    usable = capacity.devices_by_capacity(size, device, USABLE_SHARE)
    shared_out = capacity.devices_by_divisibility(model, usable) or 0
    asked = (
        values.label("theory.sparks.model", f"{MODEL} in {size.format}"),
        values.number("theory.sparks.weights_gb", size.bytes / GIGA),
        values.number("theory.sparks.memory_gb", device.memory_gb),
    )
    nominal = values.count("theory.sparks.nominal", capacity.devices_by_capacity(size, device))
    share = values.percent("theory.usable_share", USABLE_SHARE)
    alone = values.number("theory.sparks.one_tok_s", bounds.decode_tok_s(model, size, device, 1, 0))
    together = bounds.decode_tok_s(model, size, device, 1, 0, shared_out)
    return (
        f"{asked[0]} holds {asked[1]} GB of weights, a DGX Spark {asked[2]} GB: **{nominal}** of "
        f"them by capacity, **{values.count('theory.sparks.usable', usable)}** at the {share} that "
        f"an engine can use, **{values.count('theory.sparks.heads', shared_out)}** where tensor "
        f"parallelism must share {values.count('theory.sparks.all_heads', model.heads)} heads out. "
        f"One request then gets at most "
        f"{values.number('theory.sparks.all_tok_s', together)} tok/s before any communication; the "
        f"bandwidth of a single one, were its memory large enough, would allow {alone}."
    )


def one_device(values: Values) -> str:
    """Whether an instance of Kimi K2.5 fits one MI355X."""
    model, device = models.load(MODEL), hardware.load(MI355X)
    size = capacity.weights(model, capacity.usual_format(model, device))
    fewest = min(
        one.devices
        for one in capacity.topologies(model, size, device, device.node_devices, CONTEXT)
    )
    weights = values.number("theory.mi355x.weights_gb", size.bytes / GIGA)
    memory = values.number("theory.mi355x.memory_gb", device.memory_gb)
    each = values.count("theory.mi355x.devices", fewest)
    replicas = values.count("theory.mi355x.replicas", device.node_devices // fewest)
    return (
        f"An instance of {values.label('theory.mi355x.model', MODEL)} in "
        f"{values.label('theory.mi355x.format', size.format)} does not fit one MI355X: its weights "
        f"alone are {weights} GB, the device has {memory} GB. The smallest replica takes {each} "
        f"devices, so a node holds {replicas}."
    )


def near(part: Part, values: Values, others: pd.DataFrame | None = None) -> str:
    """How near the nearest window comes to its bound, and that none beats it."""
    device = machine.measured()
    said, whose = "", ""
    seen = beside.windows(part.found.windows, device)
    if not part.launches:
        said, whose = f"{NO_MODEL} ", " of the other experiments"
        if others is None:
            return f"{said}What the windows{whose} reach stands beside their bounds in the report."
        seen = others
    judged = beside.bound_respected(seen, device)
    if device is None or judged.verdict == "cannot judge":
        return f"{said}Not measured here: {judged.text}"
    valid = seen[(seen["verdict"] == "valid") & seen["share"].notna()]
    nearest = next(rows_of(valid.sort_values("share").tail(1)))
    many = values.count("theory.windows", len(valid))
    share = values.percent("theory.nearest", nearest.share)
    arm = values.label("theory.nearest.arm", str(nearest.arm))
    workload = values.label("theory.nearest.workload", str(nearest.workload))
    level = values.count("theory.nearest.level", nearest.level)
    pace = values.label("theory.pace", beside.pace(seen, device))
    said += (
        f"The nearest of {many} valid windows{whose} reaches **{share}** of its bound (`{arm}` on "
        f"`{workload}`, {level} in flight): of what reading ({pace}, measured) and arithmetic "
        "allow on this machine. "
    )
    if judged.verdict == "pass":
        return f"{said}No window beats its bound."
    return f"{said}That is more than can be: the bound or the window is wrong."


def speculation(values: Values) -> str:
    """What has to be accepted for speculation to gain."""
    said = [
        f"{values.percent(f'theory.speculation.{cost}.even', even)} where a draft step costs "
        f"{values.percent(f'theory.speculation.{cost}', cost)} of the model's"
        for cost in figures.DRAFT_COSTS
        if (even := bounds.break_even_acceptance(figures.DRAFTS, cost))
    ]
    drafts = values.count("theory.speculation.drafts", figures.DRAFTS)
    return f"With {drafts} draft tokens speculation loses below an acceptance of {', '.join(said)}."


# --- tables ---------------------------------------------------------------------------------------


def _published() -> list[Model]:
    return [model for model in map(models.load, models.names()) if model.card]


def sizes() -> Table:
    """A row per published model: parameters by arithmetic and by its card, and cache."""
    rows = []
    for model in _published():
        assert model.card
        rows.append(
            {
                "model": model.name,
                "total": theory.counted(model, model.card.total_counts, active=False),
                "card_total": model.card.total,
                "active": theory.counted(model, model.card.active_counts, active=True),
                "card_active": model.card.active,
                "kv_bytes_per_token": theory.kv_bytes_per_token(model),
                "kv_bytes_per_token_of_8": theory.kv_bytes_per_token(model, tensor_parallel=8),
                "card": model.card.source,
            }
        )
    data = pd.DataFrame(rows)
    billions = data[["total", "card_total", "active", "card_active"]] / GIGA
    shown = pd.DataFrame(
        {
            "model": data["model"],
            "total | card (1e9)": _beside(billions["total"], billions["card_total"]),
            "active | card (1e9)": _beside(billions["active"], billions["card_active"]),
            "cache bytes per token": data["kv_bytes_per_token"].map(count),
            "on each of 8 devices": data["kv_bytes_per_token_of_8"].map(count),
        }
    )
    text = (
        "Parameters of the parts that each card counts, by arithmetic and by the card; KV cache of "
        "a token in bf16 with no tensor parallelism and over 8 devices. With GQA each device holds "
        "its share of the KV heads but at least one: four KV heads are a quarter each, not an "
        "eighth. MLA has no heads to share out, so every device holds all of it."
    )
    return Table(shown, data, text)


def _beside(left: pd.Series, right: pd.Series) -> list[str]:
    return [f"{number(a)} | {number(b)}" for a, b in zip(left, right, strict=True)]


def devices() -> Table:
    """A row per published model and device: how many hold the weights, and what is left."""
    rows = [
        _device_row(model, hardware.load(name))
        for model in _published()
        for name in hardware.names()
    ]
    data = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "model": data["model"],
            "hardware": data["hardware"],
            "weights (GB)": [
                f"{number(size)} ({how})"
                for size, how in zip(data["weights_gb"], data["format"], strict=True)
            ],
            "by capacity | usable": [
                f"{a} | {b}" for a, b in zip(data["nominal"], data["usable"], strict=True)
            ],
            "by heads": data["by_heads"],
            "replicas x devices": data["layout"],
            "cache (tokens)": data["kv_tokens"].map(count),
        }
    )
    text = (
        f"Devices whose memory holds the weights and nothing else, nominal and at the "
        f"{USABLE_SHARE:.0%} that an engine can use; the fewest of these that share the heads out; "
        "replicas and devices of each, in the layout with the most replicas on as many nodes as "
        "that takes, and the cache of all its replicas. Formats: what the hardware computes in, of "
        "the published checkpoints."
    )
    return Table(shown, data, text)


def _device_row(model: Model, device: Hardware) -> dict[str, object]:
    size = capacity.weights(model, capacity.usual_format(model, device))
    usable = capacity.devices_by_capacity(size, device, USABLE_SHARE)
    by_heads = capacity.devices_by_divisibility(model, usable)
    nodes = -(-(by_heads or usable) // device.node_devices)
    laid = capacity.topologies(model, size, device, nodes * device.node_devices, CONTEXT)
    most = max((one for one in laid if one.kind == "tensor"), key=lambda one: one.replicas)
    return {
        "model": model.name,
        "hardware": device.name,
        "format": size.format,
        "weights_gb": size.bytes / GIGA,
        "nominal": capacity.devices_by_capacity(size, device),
        "usable": usable,
        "by_heads": by_heads,
        "layout": f"{most.replicas} x {most.devices}",
        "kv_tokens": most.replicas * most.kv_tokens,
    }


PRICE, BATCH = 2.0, 64  # a round price per device and hour; multiply by your own


def costs() -> Table:
    """A row per device: energy and price of a token at the bound and at the estimate."""
    frame = figures.trade_off_frame(MODEL, list(figures.DEVICE_COLOUR))
    data = frame[frame["batch"] == BATCH].reset_index(drop=True)
    power = [hardware.load(name).power_w or math.nan for name in data["hardware"]]
    for kind in ("", "likely_"):
        rates = data[f"{kind}tok_s_device"]
        joules = [bounds.energy_j_per_token(*both) for both in zip(power, rates, strict=True)]
        data[f"{kind}j_per_token"] = joules
        data[f"{kind}price"] = [bounds.cost_per_million_tokens(PRICE, 1, one) for one in rates]
    shown = pd.DataFrame(
        {
            "hardware": [
                f"{a} x {b}" for a, b in zip(data["devices"], data["hardware"], strict=True)
            ],
            "tok/s per device: bound | estimate": _beside(
                data["tok_s_device"], data["likely_tok_s_device"]
            ),
            "J per token: bound | estimate": _beside(
                data["j_per_token"], data["likely_j_per_token"]
            ),
            "price of 1e6 tokens: bound | estimate": _beside(data["price"], data["likely_price"]),
        }
    )
    text = (
        f"{MODEL}, {BATCH} requests of {CONTEXT:,} tokens on a node: energy at full board power "
        f"and the price of output tokens at {PRICE:g} per device and hour (in any currency; it is "
        "proportional). Bound and estimate as in the figure."
    )
    return Table(shown, data, text)


def by_arm(seen: pd.DataFrame, device: Hardware | None) -> Table:
    """A row per arm: its valid windows, and how near the nearest of them comes to its bound."""
    judged = beside.bound_respected(seen, device)
    valid = seen[(seen["verdict"] == "valid") & seen["share"].notna()]
    groups = valid.groupby(["experiment", "arm"], sort=False)["share"]
    data = groups.agg(windows="size", nearest="max").reset_index()
    shown = data.assign(nearest=[f"{share:.2%}" for share in data["nearest"]])
    text = (
        f"Valid windows of each arm, and the largest share of its bound that one of them reaches. "
        f"Gate {judged.gate}: {judged.verdict}. {judged.text}"
    )
    return Table(shown.rename(columns={"nearest": "nearest to its bound"}), data, text)


def windows(seen: pd.DataFrame, device: Hardware | None) -> Table:
    """A row per window: what was measured, its bound, and the share of it."""
    if seen.empty:
        return Table(seen, seen, figures.missing(device))
    judged = beside.bound_respected(seen, device)
    shown = pd.DataFrame(
        {
            "arm": seen["arm"],
            "workload": seen["workload"],
            "level": seen["level"],
            "block": seen["block"] + 1,
            "verdict": seen["verdict"],
            "once more": seen["again"].map({True: "yes"}).fillna(""),
            "output tok/s": seen["output_tok_s"].map(number),
            "bound": seen["bound_tok_s"].map(number),
            "share": [f"{share:.1%}" for share in seen["share"]],
        }
    )
    return Table(shown, seen, f"Gate {judged.gate}: {judged.verdict}. {judged.text}")
