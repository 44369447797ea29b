"""What machine and engine this is, and what is said when an engine cannot be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator

import pytest

from study import cores, platform, profiles
from study.errors import StudyError


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    platform.engine.cache_clear()
    yield
    platform.engine.cache_clear()


def versions(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    def version(package: str) -> str:
        try:
            return known[package.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(package) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_this_machine_is_described() -> None:
    machine = platform.machine()
    assert machine.cores >= 1
    assert machine.memory_gib >= 1
    assert machine.cpu
    assert set(cores.client()) <= set(range(4096))
    assert len(cores.client()) == 1


def test_a_missing_engine_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"needs vLLM.*none is installed.*make setup"):
        platform.engine()


def test_an_engine_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, vllm="0.9.2", torch="2.7.0")
    with pytest.raises(StudyError, match=r"must be 0\.14 or newer; vllm 0\.9\.2 is installed"):
        platform.engine()


def test_an_engine_without_a_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0+cpu")
    with pytest.raises(StudyError, match="so that its version can be recorded"):
        platform.engine()


@pytest.mark.parametrize(
    ("torch", "gpus", "kind"),
    [
        ("2.13.0+cpu", (), "cpu"),
        ("2.9.0+rocm7.0", (), "rocm"),
        ("2.11.0+cu130", ("NVIDIA H100",), "cuda"),
        ("2.11.0", ("NVIDIA H100",), "cuda"),
        ("2.11.0", (), "cpu"),
    ],
)
def test_the_kind_of_engine_follows_torch(
    monkeypatch: pytest.MonkeyPatch, torch: str, gpus: tuple[str, ...], kind: str
) -> None:
    versions(monkeypatch, vllm="0.22.1", torch=torch)
    monkeypatch.setattr(platform, "gpus", lambda: gpus)
    assert platform.engine() == platform.Engine("vllm", "0.22.1", kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "kind", "profile"),
    [((), "cpu", "cpu"), (("NVIDIA H100",), "cuda", "gpu"), (("NVIDIA H100",), "cpu", "cpu")],
)
def test_auto_chooses_the_profile(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], kind: platform.Kind, profile: str
) -> None:
    monkeypatch.setattr(platform, "gpus", lambda: gpus)
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("vllm", "1.0", kind))
    assert profiles.chosen("auto") == profile
    assert profiles.chosen("smoke") == "smoke"
