"""The chapter on architecture: MLA against GQA, mixtures against dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study import estimates, families, figures, ledgers, sentences, tables, theory
from study.chapter import Part, Shown, Text
from study.estimates import rows_of
from study.frames import Frames
from study.plan import Launch
from study.sentences import Values
from study.style import spelled

HEADLINE = "output_tok_s"


def summary(part: Part, values: Values) -> list[Shown]:
    """The attention effect, the feed-forward's, the cache, and the cost of a layer."""
    name, found = part.name, part.found.asked()
    said = {
        "Attention": sentences.attention(name, found, HEADLINE, values),
        "Feed-forward": sentences.effects(name, found, HEADLINE, values),
        "Cache": sentences.cache(name, found, part.launches, values),
        "What one more layer adds to TPOT": sentences.layer_costs(name, found, values),
    }
    return [
        Text(f"> {lead(name, part.found, part.launches, values)}"),
        *[Text(f"**{topic}.**\n\n{text}") for topic, text in said.items()],
        Text(sentences.method(name, found, values)),
        Text(sentences.replication(name, found, HEADLINE, values)),
    ]


def results(part: Part, _: Values) -> list[Shown]:
    """Absolute values first, then ratios, effects, the cost of a layer, and the cache."""
    book, found, launches = part.notebook, part.found.asked(), part.launches
    return [
        Text(
            "#### Throughput and latency\nAbsolute values first; a ratio without them says "
            "little. Void windows are hollow."
        ),
        figures.throughput(found).keep(f"{book}-throughput"),
        figures.latency(found).keep(f"{book}-latency"),
        tables.results(found, launches).keep(f"{book}-results"),
        Text("#### MLA against GQA\nInside blocks; simultaneous intervals."),
        figures.attention_ratio(found).keep(f"{book}-ratios"),
        tables.comparisons(found).keep(f"{book}-comparisons"),
        Text("#### Main effects and interaction"),
        tables.effects(found).keep(f"{book}-effects"),
        Text("#### The cost of a layer"),
        figures.layer_cost(found).keep(f"{book}-layer-cost"),
        tables.layer_costs(found).keep(f"{book}-layer-costs"),
        Text("#### The KV cache"),
        figures.kv_cache(found, launches).keep(f"{book}-kv-cache"),
    ]


# --- the headline -------------------------------------------------------------------------------


def lead(name: str, every: Frames, launches: Sequence[Launch], values: Values) -> str:
    """One paragraph: the attention effect, the cache, and how much of it can be trusted."""
    found = every.asked()
    said = [_lead_attention(name, found, values), _lead_cache(name, launches, values)]
    key = f"{name}.lead.windows"
    valid = sentences.valid_of_asked(key, found, launches, values, _which(key, every, values))
    return " ".join([*filter(None, said), valid])


def _which(key: str, every: Frames, values: Values) -> str:
    """Which windows are counted: not those whose levels a search chose, each on its own arm."""
    tried = estimates.first_tries(every)
    added = tried[tried["searched"].astype(bool)]
    if added.empty:
        return "of all levels"
    windows, arms = (
        f"{values.count(f'{key}.searched.{what}', n)} {what}{'' if n == 1 else 's'}"
        for what, n in (("window", len(added)), ("arm", added["arm"].nunique()))
    )
    return (
        "of the planned levels (the search for saturation, which has a chapter of its own, added "
        f"{windows} on {arms})"
    )


def _lead_attention(name: str, found: Frames, values: Values) -> str:
    """MLA over GQA in output throughput at the highest level, over all feed-forward families."""
    effects = sentences.at_top_level(found, families.factorial_effects(found, "output_tok_s"))
    every = effects.loc[effects["effect"] == families.EFFECTS[0]]
    main, missing = every.loc[every["n"] > 0], every.loc[every["n"] == 0, "workload"]
    if main.empty:
        return "At the highest level no block allows an overall comparison of MLA with GQA."
    pairs = sentences.at_top_level(found, families.attention_ratios(found, "output_tok_s"))
    said = []
    for row in rows_of(main):
        key = f"{name}.lead.{row.workload}"
        of_workload = pairs[(pairs["workload"] == row.workload) & (pairs["n"] > 0)]
        both = [_both(f"{key}.{pair.feed_forward}", pair, values) for pair in rows_of(of_workload)]
        ratio = values.interval(f"{key}.mla_over_gqa", row)
        said.append(f"**{ratio}** times GQA's on `{row.workload}` ({', '.join(both)} tok/s)")
    level = values.count(f"{name}.lead.level", int(main["level"].iloc[0]))
    return (
        f"At {level} requests in flight, MLA's output throughput is {', and '.join(said)}, "
        f"taken over dense layers and mixtures{sentences.one_block(main)}."
        + "".join(f" On `{workload}` no block is complete." for workload in missing)
        + _held_too(name, found, values)
    )


def _held_too(name: str, found: Frames, values: Values) -> str:
    """What the engine sets otherwise for one family than for the other: a ratio holds it."""
    differing = [what for what, *_ in ledgers.in_force_differences(found)]
    if not differing:
        return ""
    said = values.label(f"{name}.lead.held_too", ", ".join(differing))
    return f" That ratio holds more than attention: with the family the engine changes {said}."


def _both(key: str, pair: Any, values: Values) -> str:
    mla = values.number(f"{key}.mla_tok_s", pair.treatment_point)
    gqa = values.number(f"{key}.gqa_tok_s", pair.baseline_point)
    return f"{spelled(pair.feed_forward)}: {mla} against {gqa}"


def _lead_cache(name: str, launches: Sequence[Launch], values: Values) -> str:
    """The share of GQA's cache that MLA needs, where models of one size and depth allow it."""
    needs = {
        (model.attention, model.layers): theory.kv_bytes_per_token(model)
        for model in (launch.arm.model for launch in launches)
    }
    depths = sorted(layers for family, layers in needs if family == "mla")
    if not depths or ("gqa", depths[0]) not in needs:
        return ""
    share = needs["mla", depths[0]] / needs["gqa", depths[0]]
    said = values.percent(f"{name}.lead.cache_share", share)
    return f"By arithmetic, a token takes **{said}** of the cache that it takes with GQA."
