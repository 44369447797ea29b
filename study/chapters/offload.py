"""The chapter on KV offload: what it saves when a prompt comes back, and what it costs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from study import estimates, same_output, sentences, tables
from study.chapter import Part, Shown, Text
from study.chapters import offload_bytes, offload_estimates, offload_figures, offload_tables
from study.chapters.offload_estimates import COLD, MEMORY, OFF, RESTORED, TTFT
from study.chapters.offload_figures import SOURCE_WORDS
from study.estimates import METRICS, rows_of
from study.figures import interval_words
from study.sentences import Values, margin, one_block, verdict
from study.style import spelled

STORES = "Cold is of the same launch, which stores it as well; `off` is the server without."
# On a CPU either of them fixes how many cores the engine computes on.
SETS_CORES = {"VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_OMP_THREADS_BIND"}
ORDER = (
    "**What this does not tell.** The phases of a launch follow each other in one order, so "
    "whatever changes with time sides with it"
)
CONTROL = "; in `off` mode the same order is measured without treatment"
LIMITS = (
    "Files are read back by way of the operating system's own cache in memory, so their "
    "speed is not that of a disk. The connector that writes them is vLLM's example: it stores and "
    "finds whole prompts only, and is not made to be fast."
)
REUSE = (
    "**Reuse has no control.** The first pass of the fixed prompts computes each of them at once, "
    "one that restores only the rest of it: tensors have other shapes, which alone may round sums "
    "otherwise. No pass found its prompts in memory, so what offload changes cannot be told from "
    "what reuse of a prefix changes as such."
)
NOT_ITS_DOING = (
    ", which need not be the doing of offload: what a prefix found in memory would change was not "
    "measured"
)


def summary(part: Part, values: Values) -> list[Shown]:
    """TTFT of a prompt that comes back, the proof by tokens and bytes, and the price."""
    said = {
        "Median TTFT": ttft(part, values),
        "Where the cache came from": proof(part, values),
        "Bytes": bytes_moved(part, values),
        "The price where nothing comes back": price(part, values),
        "Same output": outputs(part, values),
        "Not measured": sentences.refusals(part.name, part.found, values),
    }
    return [
        Text(f"> {lead(part, values)}"),
        *[Text(f"**{topic}.**\n\n{text}") for topic, text in said.items()],
        Text(" ".join(filter(None, [method(part, values), cores(part)]))),
    ]


def results(part: Part, values: Values) -> list[Shown]:
    """The proof first, then TTFT and its ratios, the price, bytes, memory, and the output."""
    book = part.notebook
    return [
        Text(
            "#### Where the cache came from\nBy the engine's counters, whatever a phase is named."
        ),
        offload_figures.where_from(part).keep(f"{book}-sources"),
        offload_tables.where_from(part).keep(f"{book}-sources"),
        offload_tables.capacity(part).keep(f"{book}-capacity"),
        Text("#### Time to first token\nAbsolute values first. Void windows are hollow."),
        offload_figures.ttft(part).keep(f"{book}-ttft"),
        tables.results(part.found, part.launches).keep(f"{book}-results"),
        Text("#### What offload saves, and what it costs\nIn a launch, and inside blocks."),
        offload_tables.phases(part).keep(f"{book}-phases"),
        offload_tables.modes(part).keep(f"{book}-modes"),
        Text("#### Do the bytes add up?"),
        offload_tables.bytes_moved(part).keep(f"{book}-bytes"),
        Text(bandwidth(part, values)),
        Text("#### Is a restored cache the same cache?"),
        offload_tables.passes(part).keep(f"{book}-passes"),
        same_output.table(offload_estimates.agreements(part)).keep(f"{book}-outputs"),
        Text(" ".join(filter(None, [limits(part), cores(part)]))),
    ]


def limits(part: Part) -> str:
    """What the order of phases and the way of the files leave open."""
    seen = estimates.windows(part.found)
    untreated = "offload" in seen and (seen["offload"] == OFF).any()
    said = f"{ORDER}{CONTROL if untreated else ''}. {LIMITS}"
    return f"{said} {REUSE}" if without_control(part) else said


def without_control(part: Part) -> set[str]:
    """The passes that restored and gave another output than the first, where nothing tells what
    a prefix found in memory would change: no pass of that model found one there."""
    failed = {
        one.treatment
        for one in offload_estimates.agreements(part)
        if one.judgement.verdict == "fail"
    }
    passes = offload_estimates.passes(part)
    models = {launch.arm.name: launch.arm.model.name for launch in part.launches}
    passes = passes.assign(model=passes["arm"].map(models))
    known = set(passes.loc[passes["memory_tokens"] > 0, "model"])
    restored = passes[(passes["restored_tokens"] > 0) & ~passes["model"].isin(known)]
    return failed & {f"{row.arm}, pass {row.number}" for row in rows_of(restored)}


# --- the headline ---------------------------------------------------------------------------------


def lead(part: Part, values: Values) -> str:
    """TTFT of a prompt that memory has dropped over that of a cold one, per model and mode."""
    frame = offload_estimates.phase_ratios(part)
    frame = frame[(frame["offload"] != OFF) & (frame["workload"] == RESTORED)]
    known = frame[frame["n"] > 0]
    told = [_lead(part.name, row, values) for row in rows_of(known)]
    silent = [_model(part.name, row, values) for row in rows_of(frame[frame["n"] == 0])]
    said = (
        [f"When a prompt comes back: {'; '.join(told)}{one_block(known)}. {STORES}"] if told else []
    )
    if silent:
        said.append(f"No launch compares restored with cold for {' and '.join(silent)}.")
    valid = sentences.valid_of_asked(
        f"{part.name}.windows", part.found, part.launches, values, "asked for"
    )
    return " ".join([*said, valid, *_not_the_same(part, values)])


def _not_the_same(part: Part, values: Values) -> list[str]:
    """A warning where a mode or a restored cache gives another output, as far as it goes."""
    judged = [one.judgement.verdict for one in offload_estimates.agreements(part)]
    if "fail" not in judged:
        return []
    fail = values.count(f"{part.name}.outputs.fail", judged.count("fail"))
    of = values.count(f"{part.name}.outputs.compared", len(judged))
    why = NOT_ITS_DOING if len(without_control(part)) == judged.count("fail") else ""
    return [f"Not all of it gives the same output: {fail} of {of} comparisons fail{why}."]


def _lead(name: str, row: Any, values: Values) -> str:
    key = f"{name}.lead.{row.model}.{row.offload}"
    ratio = values.interval(f"{key}.restored_over_cold", row)
    cold = values.number(f"{key}.cold_ms", row.baseline_point * 1e3)
    back = values.number(f"{key}.restored_ms", row.treatment_point * 1e3)
    return (
        f"{_model(name, row, values)} has **{ratio}** times the TTFT that it had cold ({back} "
        f"against {cold} ms; cache: {_words(row.came_from)})"
    )


def _model(name: str, row: Any, values: Values) -> str:
    model = values.label(f"{name}.model.{row.model}", spelled(row.model))
    return f"{model} with `{row.offload}`"


def _words(came_from: object) -> str:
    """What the engine did, as a reader says it."""
    return SOURCE_WORDS.get(str(came_from), str(came_from))


# --- TTFT -----------------------------------------------------------------------------------------


def ttft(part: Part, values: Values) -> str:
    """A line per arm: TTFT in each phase with what the engine did, and what is saved."""
    frame = offload_estimates.by_phase(part)
    if frame.empty:
        return f"- {estimates.NO_WINDOWS}"
    modes = offload_estimates.mode_ratios(part)
    ratios = {
        ("over_cold", "cold"): offload_estimates.phase_ratios(part),
        ("over_off", "that of `off`"): modes[modes["metric"] == TTFT],
    }
    lines = []
    for arm, group in frame[frame["kind"] == "estimate"].groupby("arm", sort=False):
        key = f"{part.name}.ttft.{arm}"
        name = values.label(f"{part.name}.arm.{arm}", str(arm))
        times = "; ".join(_phase(key, row, values) for row in rows_of(group))
        saved = "".join(
            f" Restored over {what}: **{values.interval(f'{key}.{over}', row)}**, {verdict(row)}."
            for (over, what), of in ratios.items()
            for row in rows_of(of[(of["arm"] == arm) & (of["workload"] == RESTORED)])
            if row.n
        )
        lines.append(f"- `{name}`: {times}.{saved}")
    return "\n".join(lines)


def _phase(key: str, row: Any, values: Values) -> str:
    if not row.n:
        return f"`{row.workload}` void"
    time = values.interval(f"{key}.{row.workload}_ms", row, scale=METRICS[row.metric].scale)
    return f"`{row.workload}` **{time} ms** ({_words(row.came_from)})"


def method(part: Part, values: Values) -> str:
    """How the ratios were made."""
    modes = offload_estimates.mode_ratios(part)
    families = {
        "TTFT between phases": offload_estimates.phase_ratios(part),
        "TTFT between modes": modes[modes["metric"] == TTFT],
        "TPOT and throughput": modes[modes["metric"] != TTFT],
    }
    said = []
    for what, frame in families.items():
        known = frame[frame["n"] > 1]
        if len(known):
            words = interval_words(known, "blocks")
            said.append(f"{what}, {values.label(f'{part.name}.ratio.method.{what}', words)}")
    if not said:
        return "No ratio has an interval: each needs at least two blocks."
    text = f"Ratios are taken inside launches and inside blocks. In brackets: {'; '.join(said)}."
    return f"{text} {margin(part.name, values)}"


def cores(part: Part) -> str:
    """A warning where the arms of a CPU engine did not compute on the same number of cores."""
    with_connector = [one for one in part.launches if one.arm.factors["offload"] != OFF]
    on_cpu = [one for one in with_connector if one.setup["engine"]["kind"] == "cpu"]
    if all(SETS_CORES & set(one.arm.environment) for one in on_cpu):
        return ""
    return (
        "**Confound:** a CPU engine with a KV connector keeps one more core free, or none at all "
        "where there are too few, unless it is told how many. So the modes do not compute on the "
        "same cores, and ratios between modes hold that difference too; ratios inside a launch "
        "do not."
    )


# --- proof, by tokens and by bytes ----------------------------------------------------------------


def proof(part: Part, values: Values) -> str:
    """A line per arm: where the prompt tokens of the phases came from, and if that was intended."""
    frame = offload_estimates.sources(part)
    known = frame[(frame["kind"] == "estimate") & (frame["workload"] != COLD)]
    lines = []
    for arm, group in known.groupby("arm", sort=False):
        name = values.label(f"{part.name}.arm.{arm}", str(arm))
        said = "; ".join(
            _tokens(f"{part.name}.tokens.{arm}", row, values) for row in rows_of(group)
        )
        lines.append(f"- `{name}`: {said}.")
    return "\n".join(lines) or "- No valid window of a prompt that came back."


def _tokens(key: str, row: Any, values: Values) -> str:
    key = f"{key}.{row.workload}"
    if pd.isna(row.computed_tokens):
        return f"`{row.workload}`: hits {row.came_from}"
    every = values.count(f"{key}.prompt_tokens", row.prompt_tokens)
    parts = [
        f"{values.count(f'{key}.{source}_tokens', tokens)} {words}"
        for source, words in SOURCE_WORDS.items()
        if (tokens := getattr(row, f"{source}_tokens")) > 0
    ]
    intended = "as intended" if row.came_from == row.intended else f"intended was: {row.intended}"
    if row.workload == MEMORY != row.intended:
        intended += ", for this engine keeps no prefix cache in memory for the model"
    return f"of {every} prompt tokens in `{row.workload}`, {' and '.join(parts)} ({intended})"


def bytes_moved(part: Part, values: Values) -> str:
    """A line per check of bytes: arithmetic, what was seen, and whether they agree."""
    frame = offload_bytes.bytes_moved(part)
    lines = [
        _bytes(f"{part.name}.bytes.{place}", row, values)
        for place, row in enumerate(rows_of(frame))
    ]
    return "\n".join(lines) or "- No valid window stored or restored anything."


def _bytes(key: str, row: Any, values: Values) -> str:
    arm = values.label(f"{key}.arm", row.arm)
    tokens = values.count(f"{key}.tokens", row.tokens)
    each = values.count(f"{key}.bytes_per_token", row.bytes_per_token)
    wanted = values.count(f"{key}.arithmetic_bytes", row.arithmetic_bytes)
    seen = "not reported"
    if not pd.isna(row.observed_bytes):
        seen = values.count(f"{key}.observed_bytes", row.observed_bytes)
    return (
        f"- `{arm}`, `{row.workload}`: {tokens} tokens {row.direction}, at {each} bytes, are "
        f"{wanted} bytes; {row.observed}: {seen}. **{row.verdict.capitalize()}**."
    )


def bandwidth(part: Part, values: Values) -> str:
    """Bytes a second at which prompts were restored, where that can be told."""
    frame = offload_bytes.bandwidths(part)
    lines = []
    for row in rows_of(frame):
        key = f"{part.name}.bandwidth.{row.arm}"
        arm = values.label(f"{part.name}.arm.{row.arm}", row.arm)
        size, rate = values.number(f"{key}.mb", row.bytes / 1e6), values.interval(key, row, 1e-9)
        lines.append(
            f"- `{arm}`: a prompt of {size} MB is restored at **{rate} GB/s**, over what finding "
            "it in memory takes."
        )
    return "\n".join(lines) or (
        "No rate of restoring is given: it needs the difference between a restored prompt's TTFT "
        "and that of one found in memory, and no arm has both with a difference that is shown."
    )


# --- the price, and the output --------------------------------------------------------------------


def price(part: Part, values: Values) -> str:
    """A line per model and mode: TTFT, TPOT and throughput of `cold` over those of `off`."""
    frame = offload_estimates.mode_ratios(part)
    frame = frame[frame["workload"] == COLD]
    lines = []
    for (model, mode), group in frame.groupby(["model", "offload"], sort=False):
        key = f"{part.name}.price.{model}.{mode}"
        told = [_price(f"{key}.{row.metric}", row, values) for row in rows_of(group) if row.n]
        said = "; ".join(told) or "no block to compare"
        lines.append(f"- {_model(part.name, next(rows_of(group)), values)}: {said}.")
    return (
        "\n".join(lines)
        or "- Not measured: there is no valid window of `off` beside one of a mode."
    )


def _price(key: str, row: Any, values: Values) -> str:
    metric = METRICS[row.metric]
    name = metric.name.partition(",")[0]
    without = values.number(f"{key}.off", row.baseline_point * metric.scale)
    with_ = values.number(f"{key}.mode", row.treatment_point * metric.scale)
    ratio = values.interval(f"{key}.ratio", row)
    return (
        f"{name} **{ratio}** times that of `off` ({with_} against {without} {metric.unit}; "
        f"{verdict(row)})"
    )


def outputs(part: Part, values: Values) -> str:
    """How many comparisons of outputs pass, and what the others say."""
    agreed = offload_estimates.agreements(part)
    judged = [one.judgement for one in agreed]
    if not judged:
        return "- Not compared."
    key = f"{part.name}.outputs"
    differ, prompts, ties = (
        values.count(f"{key}.{what}", sum(getattr(one, what) for one in agreed))
        for what in ("differing", "prompts", "ties")
    )
    passed = values.count(f"{key}.pass", sum(one.verdict == "pass" for one in judged))
    of = values.count(f"{key}.compared", len(judged))
    others = [
        f"- {one.verdict}: {values.label(f'{key}.{place}', one.text)}"
        for place, one in enumerate(judged)
        if one.verdict != "pass"
    ]
    return (
        f"{passed} of {of} comparisons pass: the second pass of each arm, after its cache was "
        f"reset, against the first, and each mode against `off` where both ran; {differ} of "
        f"{prompts} prompts gave another token, {ties} of them at a tie."
        f"{_restored_again(part, values)}"
        + "\n".join(["\n", *others] if others else [])
        + (f"\n\n{REUSE}" if without_control(part) else "")
    )


def _restored_again(part: Part, values: Values) -> str:
    """Proof that the second pass of an arm did restore what the first had computed."""
    passes = offload_estimates.passes(part)
    again = passes[(passes["number"] > 1) & (passes["restored_tokens"] > 0)]
    said = [
        f"`{values.label(f'{part.name}.arm.{row.arm}', row.arm)}` "
        f"{values.count(f'{part.name}.outputs.restored_tokens.{row.arm}', row.restored_tokens)}"
        for row in rows_of(again)
    ]
    return f" Tokens restored in the second pass: {', '.join(said)}." if said else ""
