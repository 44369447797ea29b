"""Confounds: those of a comparison that is made, and those that nothing tells of."""

from __future__ import annotations

import pytest
import stub

from study import ledgers
from study.experiment import Experiment
from study.experiments import BlockSize, Instrument
from study.gates.machine import UNSEEN

OF_FAMILIES = {"KV block size", "attention back end", "FFN width"}


def named(asked: Experiment, floor: str = "", said: str = "") -> dict[str, str]:
    found = stub.frames(asked)
    if said:
        found.judgements.loc[0, "text"] = f"Others kept 0.00 of 2 cores busy; {said}."
    data = ledgers.confounds(found, stub.launches(asked), floor).data
    return dict(zip(data["confound"], data["what it means"], strict=True))


def test_what_differs_by_family_confounds_only_where_families_are_compared() -> None:
    across = named(stub.experiment())
    assert set(across) >= OF_FAMILIES
    inside = named(BlockSize.of({"launches": 1}))
    assert inside and not OF_FAMILIES & set(inside)


@pytest.mark.parametrize("floor", ["", "Two launches differed by 40 %."])
def test_a_clock_that_is_not_told_is_a_confound_beside_the_noise_floor(floor: str) -> None:
    asked = Instrument.of({"launches": 1})
    assert "speed of the cores" not in named(asked, floor)
    meaning = named(asked, floor, UNSEEN)["speed of the cores"]
    assert meaning.endswith(floor or "what lasts.")


@pytest.mark.parametrize(
    ("asked", "routed", "across"),
    [
        (stub.experiment(), True, True),
        (stub.experiment(models=["gqa-dense", "mla-dense"]), False, True),
        (stub.experiment(models=["mla-dense", "mla-moe"]), True, False),
        (BlockSize.of({"launches": 1}), False, False),
    ],
    ids=["all families", "dense", "one attention family", "sizes inside a model"],
)
def test_a_confound_is_listed_only_where_it_applies(
    asked: Experiment, routed: bool, across: bool
) -> None:
    """Routers where there is a mixture, ratios of families where families are compared."""
    known = named(asked)
    assert ("Routers" in known["made-up weights"]) == routed
    off = known["features off for all"]
    assert off.startswith("Off in all arms, because vLLM's MLA") and "are not known." in off
    assert ("ratio of families" in off) == across


def test_servers_that_started_together_are_a_confound() -> None:
    found, asked = stub.frames(stub.experiment()), stub.launches(stub.experiment())
    assert "servers" not in set(ledgers.confounds(found, asked).data["confound"])
    launches = found.launches["launch"]
    found.launches["started_beside"] = [launches[1], launches[0], *[None] * (len(launches) - 2)]
    known = ledgers.confounds(found, asked).data.set_index("confound")["what was so"]
    assert known["servers"] == f"2 of {len(launches)} started two at a time"
