"""The chapter on the instrument: what the client adds, who agrees with it, and the noise floor."""

from __future__ import annotations

from study.chapter import Part, Shown, Text
from study.chapters import instrument_figures as figures
from study.chapters import instrument_sentences as sentences
from study.chapters import instrument_tables as tables
from study.sentences import Values


def summary(part: Part, values: Values) -> list[Shown]:
    """Calibration, agreement with other instruments, and the same arm twice."""
    said = {
        "The client": sentences.client(part, values),
        "Headroom": sentences.headroom(part, values),
        "Others": sentences.others(part, values),
        "Noise floor": sentences.noise_floor(part, values),
    }
    return [
        Text(f"> {sentences.twins(part, values)}"),
        *[Text(f"**{topic}.**\n\n{text}") for topic, text in said.items()],
    ]


def results(part: Part, values: Values) -> list[Shown]:
    """Calibration and headroom, three instruments on one launch, the same arm twice."""
    book = part.notebook
    return [
        Text(f"#### What the client adds\n{sentences.client(part, values)}"),
        figures.added(part).keep(f"{book}-added"),
        Text(sentences.headroom(part, values)),
        tables.calibration(part).keep(f"{book}-calibration"),
        Text(f"#### Three instruments on one launch\n{sentences.second(part, values)}"),
        figures.agreement(part).keep(f"{book}-agreement"),
        tables.agreement(part).keep(f"{book}-agreement-ratios"),
        tables.seconds(part).keep(f"{book}-second-files"),
        Text(f"#### The same arm twice\n{sentences.twins(part, values)}"),
        figures.twins(part).keep(f"{book}-twins"),
        tables.twins(part).keep(f"{book}-twin-ratios"),
        Text(sentences.noise_floor(part, values)),
        tables.noise_floor(part).keep(f"{book}-noise-floor"),
        tables.components(part).keep(f"{book}-variance"),
    ]
