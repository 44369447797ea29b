"""Every experiment of the study, one module each, in reading order."""

from study.errors import unknown_name
from study.experiment import Experiment
from study.experiments.aiter import Aiter
from study.experiments.architecture import Architecture
from study.experiments.block_size import BlockSize
from study.experiments.bound import Bound
from study.experiments.instrument import Instrument
from study.experiments.offload import Offload
from study.experiments.saturation import Saturation

KINDS: tuple[type[Experiment], ...] = (
    Instrument, Architecture, BlockSize, Offload, Aiter, Saturation, Bound,
)  # fmt: skip
EXPERIMENTS: dict[str, type[Experiment]] = {kind.notebook: kind for kind in KINDS}


def by_notebook(notebook: str) -> type[Experiment]:
    """The experiment that a notebook runs, by the notebook's name without suffix."""
    if notebook not in EXPERIMENTS:
        raise unknown_name("an experiment notebook", notebook, EXPERIMENTS)
    return EXPERIMENTS[notebook]


__all__ = [
    "EXPERIMENTS",
    "Aiter",
    "Architecture",
    "BlockSize",
    "Bound",
    "Instrument",
    "Offload",
    "Saturation",
    "by_notebook",
]
