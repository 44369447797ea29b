"""The engine's answers to block sizes beside those of its source, in planted and real tables."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import stub
from test_block_size import ASKED, WHOLE, experiment, found

from study.chapters import block_size_source as source
from study.compat import command as compat
from study.frames import Frames
from study.sentences import Values

VERSION = "0.32.0"  # of a committed table


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stub's CPU without AMX, with an engine of that version."""
    setup = {**stub.SETUP, "engine": {**stub.SETUP["engine"], "version": VERSION}}
    monkeypatch.setattr(stub, "SETUP", setup)
    return setup


def told(seen: Frames, table: pd.DataFrame) -> tuple[str, Values]:
    values = Values()
    return source.sentence("block_size", seen, stub.launches(ASKED), values, table), values


def test_what_a_cpu_without_amx_answers_is_what_its_source_says(setup: dict[str, Any]) -> None:
    both = source.beside(WHOLE, stub.launches(ASKED), compat.read())
    assert len(both) == 10 and both["same"].all()
    assert set(both["derived"]) == {"measured", "overridden", "rejected"}
    text, values = told(WHOLE, compat.read())
    assert "for *CPU*" in text
    assert text.endswith("**10 of 10** answers are those that the engine gave.")
    assert values.known["block_size.source.version"]["value"] == VERSION


def test_with_amx_the_source_says_otherwise(
    setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {**setup["machine"], "instructions": ["avx2", "amx_tile"]}
    monkeypatch.setattr(stub, "SETUP", {**setup, "machine": machine})
    text, _ = told(WHOLE, compat.read())
    assert "for *CPU with AMX*" in text and "**5 of 10**" in text
    assert "MLA · dense at 32: overridden, where the source says measured." in text
    assert "MLA · dense at 16: measured, where the source says rejected." in text


def test_another_size_in_force_is_another_answer(setup: dict[str, Any]) -> None:
    table = compat.read()
    of_mla = table["version"].eq(VERSION) & table["family"].eq("mla") & table["block_size"].eq(16)
    other = table.assign(block_size=table["block_size"].mask(of_mla, 64))
    both = source.beside(WHOLE, stub.launches(ASKED), other)
    same = both.groupby("model")["same"]
    assert same.all().to_dict() == same.any().to_dict() == {"gqa-dense": True, "mla-dense": False}


def test_what_was_not_derived_or_not_answered_is_not_compared(setup: dict[str, Any]) -> None:
    table = compat.read()
    nothing = "no answer was derived"
    assert nothing in told(WHOLE, table[table["version"].ne(VERSION)])[0]
    assert nothing in source.sentence("block_size", stub.NOTHING, (), Values(), table)
    failed = experiment(launches=1)
    unmeasured = found(failed, rejected={}, not_measured=[arm.name for arm in failed.arms()])
    assert nothing in told(unmeasured, table)[0]


@pytest.mark.parametrize(
    ("kind", "gpus", "expected"),
    [
        ("rocm", ["AMD Instinct MI300X"], "MI325X"),
        ("cuda", ["NVIDIA H200"], "H100"),
        ("cuda", ["NVIDIA B200", "NVIDIA B200"], "B200"),
        ("cuda", ["NVIDIA L4"], ""),
        ("cpu", ["NVIDIA H200"], "CPU"),
    ],
)
def test_a_machine_is_the_device_of_its_architecture(
    kind: str, gpus: list[str], expected: str
) -> None:
    setup = {"engine": {"kind": kind}, "machine": {"gpus": gpus}}
    assert source.device(setup) == expected
