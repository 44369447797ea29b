"""The chapter on engine-side switches: compilation, KV split on a CPU, AITER on ROCm.

Where AITER cannot be had its arms are shown as not applicable, and nothing is said of it.
"""

from __future__ import annotations

from study import same_output
from study.chapter import Part, Shown, Text
from study.chapters import aiter_estimates, aiter_figures, aiter_forest, aiter_tables
from study.chapters import aiter_sentences as sentences
from study.sentences import Values


def summary(part: Part, values: Values) -> list[Shown]:
    """Each switch as a whole: its ratio of speeds, of spreads, its output; and AITER's standing."""
    said = {
        "Speed": sentences.speed(part, ("output_tok_s", "tpot_p50_s"), values),
        "Noise floor": sentences.twice(part, values),
        "Variability": sentences.variability(part, values),
        "Start": sentences.start(part, values),
        "Output": sentences.outputs(part, values),
        "AITER": sentences.aiter(part, values),
    }
    return [
        Text(f"> {sentences.headline(part, values)}"),
        *[Text(f"**{topic}.**\n\n{text}") for topic, text in said.items() if text],
        Text(sentences.method(part, values)),
    ]


def results(part: Part, values: Values) -> list[Shown]:
    """Settings in force, absolute values, ratios, spreads, output."""
    book, found, launches = part.notebook, part.found, part.launches
    return [
        Text("#### What is in force, and how long a start takes"),
        aiter_tables.settings(part).keep(f"{book}-settings"),
        aiter_tables.starts(part).keep(f"{book}-starts"),
        Text(f"#### AITER\n{sentences.aiter(part, values)}\n\n{sentences.ablation(part, values)}"),
        Text("#### Throughput and latency by setting\nA dot is a launch; void is hollow."),
        aiter_figures.by_setting(found, "output_tok_s").keep(f"{book}-throughput"),
        aiter_figures.by_setting(found, "tpot_p50_s").keep(f"{book}-tpot"),
        aiter_figures.by_setting(found, "ttft_p50_s").keep(f"{book}-ttft"),
        Text("#### Each setting against its baseline\nInside blocks; simultaneous intervals."),
        aiter_forest.ratios(found, launches).keep(f"{book}-ratios"),
        aiter_tables.comparisons(found, launches).keep(f"{book}-comparisons"),
        Text("#### Variability: how much launches differ among themselves"),
        aiter_forest.spreads(found, launches).keep(f"{book}-spread-ratios"),
        aiter_tables.spreads(found, launches).keep(f"{book}-spreads"),
        Text("#### Do the settings compute the same?"),
        same_output.table(aiter_estimates.agreements(part)).keep(f"{book}-same-output"),
    ]
