"""Profiles: which experiments the whole study runs, and how large."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from study import paths, platform
from study.errors import StudyError, unknown_name
from study.experiment import Experiment
from study.experiments import by_notebook

AUTO = "auto"


@dataclass(frozen=True)
class Profile:
    """A named choice of experiments. `experiments` is in reading order, by notebook."""

    name: str
    description: str
    experiments: dict[str, Experiment]


def names() -> list[str]:
    """Every profile the study knows."""
    return sorted(path.stem for path in paths.PROFILES.glob("*.yaml"))


def chosen(name: str) -> str:
    """The profile meant by `auto`: `gpu` where engine and machine have one, else `cpu`."""
    if name != AUTO:
        return name
    return "gpu" if platform.gpus() and platform.engine().kind != "cpu" else "cpu"


def load(name: str) -> Profile:
    """The profile of that name; a StudyError lists the known ones, or names what it breaks."""
    path = paths.PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("a profile", name, [*names(), AUTO])
    content = yaml.safe_load(path.read_text())
    try:
        notebooks = dict(content["notebooks"])
        description = str(content["description"]).strip()
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"the profile {name}.yaml must have `description` and `notebooks`, each notebook with "
            f"its parameters; it has {content!r}"
        ) from error
    experiments = {
        notebook: by_notebook(notebook).of(parameters or {})
        for notebook, parameters in sorted(notebooks.items())
    }
    return Profile(name, description, experiments)
