"""Profiles: which experiments the whole study runs, and how large."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from study import notebooks, paths, platform
from study.errors import StudyError, unknown_name
from study.experiment import Experiment
from study.experiments import by_notebook

AUTO = "auto"
OWN_PROMPTS = "own"  # the name of the workload that takes the place of the synthetic ones


@dataclass(frozen=True)
class Choice:
    """A profile as somebody asks for it, narrowed: empty, zero or "" leave it as it is.

    only: experiments and analyses, by name or notebook. models: names of files in study/models.
    launches: of every arm. prompts: a JSONL file in the place of the synthetic workloads.
    """

    profile: str = AUTO
    only: Sequence[str] = ()
    models: Sequence[str] = ()
    launches: int = 0
    prompts: str = ""

    def parameters(self) -> dict[str, Any]:
        """The parameters of the report's notebook that stand for this choice."""
        return {
            "profile": chosen(self.profile),
            "only": list(self.only),
            "models": list(self.models),
            "launches": self.launches,
            "prompts": self.prompts,
        }

    def __str__(self) -> str:
        """As it is written after `make reproduce`."""
        given = {
            "PROFILE": chosen(self.profile),
            "ONLY": ",".join(self.only),
            "MODELS": ",".join(self.models),
            "LAUNCHES": str(self.launches or ""),
            "PROMPTS": self.prompts,
        }
        return " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items() if value)


@dataclass(frozen=True)
class Profile:
    """A named choice of experiments, by notebook, and of analyses: notebooks that measure nothing.

    Both are in reading order.
    """

    name: str
    description: str
    experiments: dict[str, Experiment]
    analyses: tuple[str, ...] = ()
    choice: Choice = Choice()


def names() -> list[str]:
    """Every profile the study knows."""
    return sorted(path.stem for path in paths.PROFILES.glob("*.yaml"))


def chosen(name: str) -> str:
    """The profile meant by `auto`: `gpu` where engine and machine have one, else `cpu`."""
    if name != AUTO:
        return name
    return "gpu" if platform.gpus() and platform.engine().kind != "cpu" else "cpu"


def load(choice: Choice | str) -> Profile:
    """The profile asked for; a StudyError lists the known ones, or names what it breaks."""
    choice = Choice(choice) if isinstance(choice, str) else choice
    name = chosen(choice.profile)
    path = paths.PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("a profile", name, [*names(), AUTO])
    try:
        content = yaml.safe_load(path.read_text())
        asked = {notebook: dict(given or {}) for notebook, given in content["notebooks"].items()}
        description = str(content["description"]).strip()
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise StudyError(
            f"the profile {name}.yaml must be YAML with `description` and `notebooks`, each "
            f"notebook with its parameters; it is not ({type(error).__name__}: {error})"
        ) from error
    experiments = {
        notebook: by_notebook(notebook).of(_narrowed(notebook, parameters, choice))
        for notebook, parameters in sorted(asked.items())
    }
    analyses = tuple(notebooks.analyses())
    return _only(Profile(name, description, experiments, analyses, choice), choice.only)


def _narrowed(notebook: str, parameters: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    kind = by_notebook(notebook)
    found = dict(parameters)
    if choice.launches:
        found["launches"] = choice.launches
    if choice.models and kind.of(found).model_dump()["models"]:  # one without starts no server
        found["models"] = list(choice.models)
        if "saturated" in kind.model_fields:
            before = found.get("saturated", kind.model_fields["saturated"].default)
            found["saturated"] = [one for one in before if one in choice.models]
            if before and not found["saturated"]:
                found["saturated"] = list(choice.models)
    if choice.prompts and "workloads" in kind.model_fields:
        output_tokens = kind.of(parameters).workloads[0].output_tokens  # type: ignore[attr-defined]
        found["workloads"] = [f"{OWN_PROMPTS}:@{choice.prompts}/{output_tokens}"]
    return found


def _only(profile: Profile, wanted: Iterable[str]) -> Profile:
    known = {one.name: notebook for notebook, one in profile.experiments.items()}
    known |= {notebook.partition("_")[2]: notebook for notebook in profile.analyses}
    asked = []
    for name in wanted:
        notebook = known.get(name, name)
        if notebook not in known.values():
            raise unknown_name(f"a notebook of the profile {profile.name}", name, known)
        asked.append(notebook)
    if not asked:
        return profile
    experiments = {name: one for name, one in profile.experiments.items() if name in asked}
    analyses = tuple(name for name in profile.analyses if name in asked)
    return replace(profile, experiments=experiments, analyses=analyses)
