"""How the report is told: a module for each experiment and each analysis (see `study.chapter`)."""

from typing import cast

from study.chapter import Analysis, Chapter
from study.chapters import (
    aiter,
    architecture,
    block_size,
    claims,
    compatibility,
    instrument,
    offload,
    saturation,
    theory,
)

CHAPTERS: dict[str, Chapter] = {
    "10_instrument": cast(Chapter, instrument),
    "20_architecture": cast(Chapter, architecture),
    "30_block_size": cast(Chapter, block_size),
    "40_offload": cast(Chapter, offload),
    "50_aiter": cast(Chapter, aiter),
    "60_saturation": cast(Chapter, saturation),
    "70_theory": cast(Chapter, theory),
}
ANALYSES: dict[str, Analysis] = {
    "00_claims": cast(Analysis, claims),
    "05_compatibility": cast(Analysis, compatibility),
}
