"""The chapter on the instrument: planted noise comes back, nothing is said of what was not seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import stub
from test_headroom import calibration

from study import estimates, profiles, same_output, style
from study.agreement import COMPARISONS, FILES, Seconds
from study.chapter import Part, Shown, Text
from study.chapters import (
    instrument,
    instrument_estimates,
    instrument_figures,
    instrument_sentences,
    instrument_tables,
)
from study.errors import StudyError
from study.experiments import Instrument
from study.plan import Launch
from study.sentences import Values

SHORT = {"workloads": ["short:128/64"], "levels": [4, 16], "second_levels": [4]}


@pytest.fixture(autouse=True)
def scratch(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables are kept; figures are made but not saved, which takes long."""
    monkeypatch.setattr(style.Drawn, "keep", lambda drawn, _: drawn)
    return kept


def second_files(asked: Sequence[Launch], outcome: str = "measured") -> Seconds:
    """Every launch's level 4, the second instrument at 0.9 of the throughput."""
    rows, ratios = [], []
    for launch in asked:
        keys = {"launch": launch.id, "block": launch.block, "arm": launch.arm.name}
        keys |= {"workload": "short", "level": 4, "again": False}
        fine = {"outcome": outcome, "reason": "" if outcome == "measured" else "ImportError: no"}
        numbers = dict.fromkeys(FILES[10:], 10.0) | {"full_s": 8.0, "verdict": "undecided"}
        rows.append({**numbers, **keys, **fine, "reasons": ""})
        for at, name in enumerate(COMPARISONS if outcome == "measured" else []):
            point = 0.9 if name == "bench_rate" else 1 + 0.01 * at * launch.block
            ratios.append({**keys, "comparison": name, "value": point, "base": 1.0, "point": point})
    return Seconds(pd.DataFrame(rows), pd.DataFrame(ratios)) if ratios else Seconds(
        pd.DataFrame(rows), Seconds().ratios
    )  # fmt: skip


def part(
    launches: int = 3,
    *,
    calibrated: bool = True,
    noise: float = 0.03,
    void: Collection[stub.Cell] = (),
) -> Part:
    asked = Instrument.of({**SHORT, "launches": launches})
    found, planned = stub.frames(asked, noise=noise, void=void), stub.launches(asked)
    points = calibration()
    added = ("ttft_error_p99_ms", "ttft_added_p99_ms", "itl_error_p99_ms", "server_late_p99_ms")
    points.points[[*added, "ttft_error_median_ms", "in_flight_mean"]] = 2.0
    return Part(
        notebook=asked.notebook,
        experiment=asked,
        launches=planned,
        found=found,
        records=(),
        outputs=same_output.read((), None),
        example=None,
        seconds=second_files(planned),
        calibration=points if calibrated else None,
    )


def all_text(shown: Sequence[Shown]) -> str:
    return "\n".join(one.text if isinstance(one, Text) else one.caption for one in shown)


def test_twins_differ_in_nothing_but_their_name() -> None:
    first, second = Instrument().arms()
    assert first.name != second.name
    same = {"name", "factors"}
    assert first.model_dump(exclude=same) == second.model_dump(exclude=same)
    assert {**first.factors, "twin": ""} == {**second.factors, "twin": ""}


def test_levels_of_the_second_instrument_must_be_levels() -> None:
    with pytest.raises(StudyError, match="second_levels must be some of levels"):
        Instrument.of({"levels": [1], "second_levels": [4]})
    with pytest.raises(StudyError, match="null_itls_ms"):
        Instrument.of({"null_itls_ms": [0.5]})
    assert Instrument.of({"null_itls_ms": [2, 20]}).null_itls_ms == (2.0, 20.0)


@pytest.mark.parametrize("profile", profiles.names())
def test_every_profile_calibrates_for_the_levels_that_it_measures(profile: str) -> None:
    """So that no window lacks a load that was at least as hard."""
    experiments = profiles.load(profile).experiments
    asked = experiments[Instrument.notebook]
    assert isinstance(asked, Instrument)
    most = max(
        window.level for one in experiments.values() for arm in one.arms() for window in arm.windows
    )
    assert max(load.level for load in [*asked.grid.loads(), *asked.grid.ramp()]) >= most


def test_the_machinery_finds_no_difference_and_the_noise_that_was_planted() -> None:
    """Twins of the stub share the block's noise; each has some of its own."""
    seen = part(40, noise=0.03)
    for metric in estimates.COMPARED:
        frame = instrument_estimates.ratios(seen.found, seen.launches, metric)
        assert len(frame) == 2  # one model, one workload, two levels
        assert (frame["p_value"] > 0.001).all()
    floor = instrument_estimates.noise_floor(seen.found, seen.launches).set_index("metric")
    assert floor.loc["tpot_p50_s", "spread"] == pytest.approx(0.03 * np.sqrt(2), rel=0.2)
    assert floor.loc["tpot_p50_s", "shown"] == pytest.approx(0.0137, rel=0.25)


def test_a_planted_difference_between_twins_is_found() -> None:
    seen = part(10, noise=0.01)
    slow = seen.found.windows["arm"] == "gqa-dense-b"
    seen.found.windows.loc[slow, "output_tok_s"] *= 0.8
    frame = instrument_estimates.ratios(seen.found, seen.launches, "output_tok_s")
    assert (frame["high"] < 1).all()
    assert "2 differ from one" in instrument_sentences.twins(seen, Values())


def test_one_launch_carries_no_interval_and_the_text_says_so() -> None:
    seen = part(1)
    text = instrument_sentences.twins(seen, Values())
    text += instrument_sentences.noise_floor(seen, Values())
    assert text.count("one block carries no interval") == 2
    floor = instrument_estimates.noise_floor(seen.found, seen.launches)
    assert floor["spread"].isna().all() and floor["shown"].isna().all()
    assert floor["farthest"].notna().all()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [(0, ""), (1, "is not told from chance"), (3, "(standard dev")],
)
def test_the_floor_stands_beside_every_ratio(blocks: int, words: str) -> None:
    seen = part(max(blocks, 1))
    if not blocks:
        seen.found.windows["verdict"] = "void"
    values = Values()
    said = instrument_sentences.floor(seen, values)
    assert (words in said) if blocks else not said
    frame = instrument_estimates.noise_floor(seen.found, seen.launches).set_index("metric")
    share = frame["farthest"] - 1 if blocks == 1 else frame["spread"]
    for entry in values.known.values():
        assert entry["value"] == pytest.approx(share["output_tok_s"]) and entry["text"] in said
    assert len(values.known) == min(blocks, 1)


def test_a_floor_that_rests_on_a_second_try_says_so() -> None:
    seen = part(1)
    windows = seen.found.windows
    assert "second try" not in instrument_sentences.floor(seen, Values())
    windows.loc[windows.index[0], "again"] = True
    values = Values()
    assert "of the 4 windows behind this: a second try" in instrument_sentences.floor(seen, values)
    assert values.known["instrument.noise.again"]["value"] == 1


def test_one_ratio_is_no_upper_limit() -> None:
    assert "at most" in instrument_sentences.noise_floor(part(1), Values())  # of two levels
    seen = part(1)
    one = seen.found.windows["level"] == 4
    seen.found.windows.loc[~one, "verdict"] = "void"
    assert "at most" not in instrument_sentences.noise_floor(seen, Values())


def test_a_cell_that_one_block_is_left_of_can_show_no_difference() -> None:
    seen = part(3, void=[("gqa-dense-a", "short", 4, block) for block in (0, 1)])
    text = instrument_sentences.noise_floor(seen, Values())
    assert "a cell of one block can show none" in text and "nan" not in text


def test_every_window_says_what_it_allows_its_client_to_add() -> None:
    seen = part(1)
    seen.found.windows["itl_p50_s"] = 0.004
    limits = instrument_estimates.limits(seen.found)
    assert len(limits) == len(seen.found.windows)
    assert set(limits["itl_limit"]) == {0.3}  # 5 % of 4 ms is less
    assert (limits["ttft_limit"] == (0.05 * limits["ttft"]).clip(lower=0.3)).all()


@pytest.mark.parametrize("launches", [1, 3])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_chapter_is_told_whatever_is_there(launches: int, calibrated: bool) -> None:
    seen, values = part(launches, calibrated=calibrated), Values()
    shown = [*instrument.summary(seen, values), *instrument.results(seen, values)]
    text = all_text(shown)
    assert ("40\u202f000" in text) == calibrated
    assert ("Not calibrated" in text) == (not calibrated)
    assert ("Dotted: 0.3 ms, which every window allows." in text) == calibrated
    assert "nan" not in text.replace("instrument", "")
    assert (instrument_figures.added(seen).figure is None) == (not calibrated)


def test_agreement_is_over_launches_and_names_the_reasons() -> None:
    seen, values = part(3), Values()
    frame = instrument_estimates.agreement(seen).set_index("comparison")
    assert set(frame["n"]) == {6}  # both twins of three blocks: one server
    assert frame.loc["bench_rate", "point"] == pytest.approx(0.9)
    text = instrument_sentences.second(seen, values)
    assert "not full for 20 %" in text and "not beside it" in text
    far = np.log(frame["point"]).abs()
    for end in (far.idxmin(), far.idxmax()):
        assert f"*{COMPARISONS[end]}* (`short`" in text
        row = values.known[f"instrument.agreement.{end}.short.4"]
        assert row["point"] == pytest.approx(frame.loc[end, "point"])
    assert instrument_figures.agreement(seen).figure is not None
    assert len(instrument_tables.seconds(seen).shown) == 6


def test_a_void_window_enters_no_comparison_of_instruments() -> None:
    seen = part(3)
    windows = seen.found.windows
    first = windows["launch"] == windows["launch"].iloc[0]
    for void, left in ((first, 5), (first | True, 0)):
        judged = windows.assign(verdict=np.where(void, "void", "valid"))
        found = replace(seen.found, windows=judged)
        told = replace(seen, found=found)
        assert set(instrument_estimates.agreement(told)["n"]) == {left}
        assert instrument_figures.agreement(told).figure is not None
        said = instrument_sentences.second(told, Values())
        assert ("no valid window" in said) == (left == 0)


def refused(seen: Part, files: Collection[int]) -> Part:
    """The same, but of these files of the second instrument the referee said void."""
    told = seen.seconds.files
    verdicts = told["verdict"].mask(told.index.isin(list(files)), "void")
    return replace(seen, seconds=replace(seen.seconds, files=told.assign(verdict=verdicts)))


@pytest.mark.parametrize("void", [range(1), range(6)])
def test_a_void_file_of_the_second_instrument_enters_no_comparison(void: range) -> None:
    seen = refused(part(3), void)
    left = 6 - len(void)
    frame = instrument_estimates.agreement(seen).set_index("comparison")
    theirs = frame.index.str.contains("bench")
    assert set(frame.loc[theirs, "n"]) == {left} and theirs.sum() == len(COMPARISONS) - 2
    assert set(frame.loc[~theirs, "n"]) == {6}  # the engine beside us needs no other file
    assert frame.loc[theirs, "point"].isna().all() == (left == 0)
    shown = instrument_tables.agreement(seen).shown
    assert (shown["ratio"] == "void").sum() == (theirs.sum() if not left else 0)
    drawn = instrument_figures.agreement(seen)
    of = drawn.frame[drawn.frame["comparison"].str.contains("bench")]
    assert (of["verdict"] == "void").sum() == len(void) * theirs.sum()
    assert "whose file the referee found void" in drawn.caption and "n = 0" not in drawn.caption
    assert drawn.figure is not None
    assert drawn.figure.legends[0].get_texts()[-1].get_text() == "void"  # not only windows are
    assert "rests on a void one is in no mean" in instrument_sentences.second(seen, Values())


@pytest.mark.parametrize(
    ("void", "words"),
    [
        ([], "level full / client* (`short`, level 4): **1.01"),
        ([0], "; the referee judged 1 of its 4 files void."),
        (range(4), "`vllm bench serve`: no valid ratio; the referee judged 4 of its 4 files void."),
    ],
)
def test_the_summary_says_whether_others_agree(void: Collection[int], words: str) -> None:
    seen, values = refused(part(2), void), Values()
    text = all_text(instrument.summary(seen, values))
    assert words in text and "**Others.**" in text
    assert "*Output tokens: engine / client* (`short`, level 4): **1.00" in text
    assert "*TTFT, mean: engine / client* (`short`, level 4): **1.0" in text
    assert values.known["instrument.agreement.engine_ttft.short.4"]["n"] == 4


def test_without_the_second_instrument_its_own_words_are_said() -> None:
    seen = part(2)
    missing = second_files(seen.launches, "not applicable")
    seen = Part(**{**vars(seen), "seconds": missing})
    text = instrument_sentences.second(seen, Values())
    assert "4 not applicable" in text and "`ImportError: no`" in text
    assert instrument_figures.agreement(seen).figure is None


def test_nothing_measured_is_said() -> None:
    asked = Instrument.of({**SHORT, "launches": 1})
    nothing = stub.frames(asked, not_measured=[arm.name for arm in asked.arms()])
    seen = Part(**{**vars(part(1)), "found": nothing, "seconds": Seconds()})
    text = all_text([*instrument.summary(seen, Values()), *instrument.results(seen, Values())])
    assert "nothing is compared" in text
