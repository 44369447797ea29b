"""The chapter on architecture: MLA against GQA, mixtures against dense layers."""

from __future__ import annotations

from study import figures, sentences, tables
from study.chapter import Part, Shown, Text
from study.sentences import Values

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
        Text(f"> {sentences.lead(name, found, part.launches, values)}"),
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
