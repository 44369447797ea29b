"""What machine and engine this is, and what is said when an engine cannot be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from study import cores, platform, profiles
from study.errors import StudyError


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    platform.engine.cache_clear()
    platform._listed.cache_clear()
    yield
    platform.engine.cache_clear()
    platform._listed.cache_clear()


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


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "flags\t\t: fpu avx2 amx_tile avx512foo\nflags : avx512f\n",
            ("avx2", "amx_tile"),
        ),
        ("Features\t: fp asimd i8mm\n", ("asimd", "i8mm")),
        ("bugs : amx_tile\n", ()),
        (None, ()),
    ],
)
def test_the_instructions_that_kernels_are_chosen_by_are_told(
    said: str | None,
    expected: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two machines of one name may differ in them, and run other kernels."""
    monkeypatch.setattr(platform, "CPU_INFO", tmp_path / "cpuinfo")
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    platform.machine.cache_clear()
    try:
        assert platform.machine().instructions == expected
    finally:
        platform.machine.cache_clear()


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


SMI = {"NVIDIA H100": "nvidia-smi", "card0,AMD Instinct MI300X,0x74a1": "rocm-smi"}
NVIDIA, AMD = SMI
NONE = "hip: Optional[str] = None\n"
HIP = "cuda: Optional[str] = None\nhip: Optional[str] = '7.0.51831'\n"


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """The only programs there are: a driver tool for every line, which it prints."""
    monkeypatch.setenv("PATH", str(folder))
    for line in lines:
        tool = folder / SMI[line]
        tool.write_text(f"#!/bin/sh\necho 'device,Card series,Card model'\necho '{line}'\n")
        tool.chmod(0o755)


@pytest.mark.parametrize(
    ("torch", "file", "gpu", "kind"),
    [
        ("2.13.0+cpu", NONE, NVIDIA, "cpu"),
        ("2.9.0+rocm7.0", NONE, None, "rocm"),
        ("2.9.0a0+git1c57644", HIP, None, "rocm"),  # as in AMD's own images
        ("2.9.0a0+git1c57644", HIP.replace(": Optional[str]", ""), AMD, "rocm"),
        ("2.9.0a0+git1c57644", None, AMD, "rocm"),
        ("2.9.0a0+git1c57644", NONE, NVIDIA, "cuda"),
        ("2.11.0+cu130", "cuda = '13.0'\nhip = None\n", NVIDIA, "cuda"),
        ("2.11.0", None, NVIDIA, "cuda"),
        ("2.11.0", "cuda = '13.0'\nhip = None\n", None, "cpu"),
    ],
)
def test_the_kind_of_engine_follows_torch_and_then_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    torch: str,
    file: str | None,
    gpu: str | None,
    kind: platform.Kind,
) -> None:
    versions(monkeypatch, vllm="0.22.1", torch=torch)
    tools(tmp_path, monkeypatch, *([gpu] if gpu else []))
    source = tmp_path / "torch" / "__init__.py"
    source.parent.mkdir()
    source.write_text("raise AssertionError('it must not be imported')")
    if file is not None:
        source.with_name("version.py").write_text(file)
    spec = importlib.util.spec_from_file_location("torch", source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert platform.engine() == platform.Engine("vllm", "0.22.1", kind)


def test_a_driver_tool_that_does_not_answer_lists_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools(tmp_path, monkeypatch, NVIDIA, AMD)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(platform, "ANSWER_S", 0.2)
    assert platform.gpus() == (AMD,)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ('[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI325X"}}]', ("AMD Instinct MI325X",)),
        ('{"gpu_data": [{"asic": {"market_name": "MI300X"}}]}', ("MI300X",)),
        ('[{"gpu": 0}]', (AMD,)),  # another shape: the older tool is asked
        ("not a GPU", (AMD,)),
    ],
)
def test_amds_newer_tool_is_asked_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, names: tuple[str, ...]
) -> None:
    tools(tmp_path, monkeypatch, AMD)
    newer = tmp_path / "amd-smi"
    newer.write_text(f"#!/bin/sh\necho '{said}'\n")
    newer.chmod(0o755)
    assert platform.gpus() == names


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
