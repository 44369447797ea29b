"""What was estimated of the same part is not estimated again, and nobody can spoil it."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import stub

from study.experiments import Architecture
from study.frames import Frames
from study.once import once


def test_the_same_is_estimated_once_and_each_gets_a_frame_of_its_own() -> None:
    asked: list[Frames] = []

    @once
    def outcomes(found: Frames, metric: str = "outcome") -> pd.DataFrame:
        """Of every launch."""
        asked.append(found)
        return found.launches[["launch", metric]]

    found = stub.frames(Architecture())
    first = outcomes(found)
    first["outcome"] = "spoiled"
    assert "spoiled" not in set(outcomes(found)["outcome"])
    assert asked == [found]
    assert list(outcomes(found, "reason")) == ["launch", "reason"]
    outcomes(replace(found))  # other frames, though they hold the same
    assert len(asked) == 3
    assert outcomes.__doc__ == "Of every launch."
