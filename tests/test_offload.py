"""KV offload on planted values: where caches came from, times, bytes, outputs."""

from __future__ import annotations

import numpy as np
import pytest
from offload_parts import (
    BLOCK,
    DRIFT,
    EVERY_ARM,
    NATIVES,
    PROMPTS,
    REFUSAL,
    REPEATED,
    TOKENS,
    TTFT_S,
    VOID,
    asked,
    case,
    part,
)
from telling import only

from study.chapters import (
    offload,
    offload_bytes,
    offload_estimates,
    offload_figures,
    offload_tables,
)
from study.chapters.offload_estimates import COLD, COMPUTED, FILE, MEMORY, MIXED, OFF
from study.chapters.offload_estimates import RESTORED as BACK
from study.sentences import Values

# --- where the cache came from --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention", "mode", "phase", "source"),
    [
        ("gqa", OFF, BACK, COMPUTED),
        ("gqa", OFF, MEMORY, MEMORY),
        ("gqa", FILE, BACK, BACK),
        ("gqa", FILE, MEMORY, MEMORY),
        ("mla", OFF, MEMORY, COMPUTED),  # no prefix caching in force: nothing is found in memory,
        ("mla", FILE, MEMORY, BACK),  # and what was filed is restored once more
    ],
)
def test_the_counters_say_where_the_cache_came_from(
    attention: str, mode: str, phase: str, source: str
) -> None:
    row = only(
        offload_estimates.sources(case("whole")), attention=attention, offload=mode, workload=phase
    )
    assert (row.came_from, row.intended, row.kind) == (source, source, "estimate")
    whole = (TOKENS - 1) // BLOCK[attention] * BLOCK[attention] * REPEATED
    tokens = {name: getattr(row, f"{name}_tokens") for name in (COMPUTED, MEMORY, BACK)}
    assert sum(tokens.values()) == row.prompt_tokens == TOKENS * REPEATED
    assert tokens[source] == (TOKENS * REPEATED if source == COMPUTED else whole)


@pytest.mark.parametrize(
    ("memory", "restored", "source"),
    [
        (14336, 0, MEMORY),
        (0, 14336, BACK),
        (7168, 7168, MIXED),
        (0, 700, COMPUTED),
        (0, 1500, MIXED),
    ],
)
def test_the_name_of_a_phase_proves_nothing(memory: int, restored: int, source: str) -> None:
    """Memory that was too large or files that were not found are seen, and said."""
    hits = {"prefix_hits_tokens": float(memory), "external_hits_tokens": float(restored)}
    found = part(changed={("gqa-dense-file", BACK): hits})
    row = only(offload_estimates.sources(found), arm="gqa-dense-file", workload=BACK)
    assert (row.came_from, row.intended) == (source, BACK)
    said = offload.proof(found, Values())
    assert (f"intended was: {BACK}" in said) == (source != BACK)


def test_hits_that_the_engine_does_not_count_are_not_reported() -> None:
    found = part(changed={(arm, BACK): {"external_hits_tokens": np.nan} for arm in EVERY_ARM})
    frame = offload_estimates.sources(found)
    assert only(frame, arm="gqa-dense-file", workload=BACK).came_from == "not reported"
    assert only(frame, arm="gqa-dense-off", workload=BACK).came_from == COMPUTED  # none to count
    assert offload_figures.where_from(found).figure is not None
    assert "hits not reported" in offload.proof(found, Values())


def test_cells_that_were_not_measured_stay_with_their_outcome() -> None:
    frame = offload_estimates.sources(case("whole"))
    assert set(frame.loc[frame["arm"].isin(NATIVES), "kind"]) == {"rejected"}
    void = only(offload_estimates.sources(case("void")), arm="gqa-dense-file", workload=BACK)
    assert (void.kind, void.launches) == ("void window", 3)
    assert set(offload_estimates.sources(case("nothing"))["kind"]) == {"not measured"}


# --- TTFT -----------------------------------------------------------------------------------------


def test_ratios_are_taken_inside_launches_and_blocks() -> None:
    """Blocks differ by much and in all phases alike: what is compared inside them does not."""
    whole = case("whole")
    phase = only(offload_estimates.phase_ratios(whole), arm="gqa-dense-file", workload=BACK)
    modes = offload_estimates.mode_ratios(whole)
    mode = only(modes, arm="gqa-dense-file", workload=BACK)
    for row in (phase, mode):
        assert row.point == pytest.approx(TTFT_S[BACK] / TTFT_S[COMPUTED])
        assert (row.low, row.high) == pytest.approx((row.point, row.point))
        assert row.n == 3
    assert phase.baseline_point == pytest.approx(TTFT_S[COMPUTED] * DRIFT)  # the middle block's
    assert mode.treatment_point == pytest.approx(TTFT_S[BACK] * DRIFT)
    assert (phase.treatment, phase.baseline) == (BACK, COLD)
    assert (mode.treatment, mode.baseline) == ("gqa-dense-file", "gqa-dense-off")
    control = only(offload_estimates.phase_ratios(whole), arm="gqa-dense-off", workload=BACK)
    assert control.point == pytest.approx(1)


def test_a_family_of_comparisons_does_not_hold_what_the_engine_refused() -> None:
    refused, open_ = case("whole"), case("nothing")
    assert set(offload_estimates.phase_ratios(refused)["offload"]) == {OFF, FILE}
    for found, arms in ((refused, 4), (open_, 6)):
        phases, modes = offload_estimates.phase_ratios(found), offload_estimates.mode_ratios(found)
        families = [frame for _, frame in modes.groupby("metric", sort=False)]
        lengths = [len(frame) for frame in (phases, *families)]
        assert lengths == [2 * arms, 3 * (arms - 2), arms - 2, arms - 2]
        for frame in (phases, *families):
            assert set(frame["method"].str.extract(r"over (\d+) comp")[0]) == {str(len(frame))}


def test_void_windows_enter_no_ratio() -> None:
    row = only(offload_estimates.phase_ratios(case("void")), arm="gqa-dense-file", workload=BACK)
    assert (row.n, row.dropped) == (0, 3) and np.isnan(row.point)
    partly = part(void=VOID[:1])
    row = only(offload_estimates.phase_ratios(partly), arm="gqa-dense-file", workload=BACK)
    assert (row.n, row.dropped) == (2, 1)


def test_the_price_is_that_of_cold() -> None:
    frame = offload_estimates.mode_ratios(case("whole"))
    cold = frame[frame["workload"] == COLD]
    assert set(cold["metric"]) == {"ttft_p50_s", "tpot_p50_s", "output_tok_s"}
    assert only(cold, arm="mla-dense-file", metric="ttft_p50_s").point == pytest.approx(1)
    windows = case("whole").found.windows
    here = windows[(windows["workload"] == COLD) & (windows["model"] == "mla-dense")]
    logs = here.assign(log=np.log(here["tpot_p50_s"])).groupby("arm")["log"].mean()
    wanted = np.exp(logs["mla-dense-file"] - logs["mla-dense-off"])
    assert only(cold, arm="mla-dense-file", metric="tpot_p50_s").point == pytest.approx(wanted)
    said = offload.price(case("whole"), Values())
    assert "MLA · dense with `file`: TTFT **1.00 [1.00, 1.00]** times that of `off`" in said
    assert offload_estimates.mode_ratios(case("no off")).empty


# --- bytes ----------------------------------------------------------------------------------------


def test_files_hold_what_arithmetic_says_and_a_header() -> None:
    frame = offload_bytes.bytes_moved(case("whole"))
    stored = only(frame, arm="gqa-dense-file", direction="stored")
    assert stored.tokens == 896 * PROMPTS and stored.bytes_per_token == 4096
    assert (stored.arithmetic_bytes, stored.observed_bytes) == (117_440_512, 117_446_144)
    assert (stored.verdict, stored.launches, stored.files) == ("agrees", 3, 64)
    back = only(frame, arm="gqa-dense-file", direction="restored")
    assert back.arithmetic_bytes == 896 * REPEATED * 4096
    assert back.verdict == "agrees" and 1 < back.ratio < 1.001
    assert set(frame.loc[frame["attention"] == "mla", "workload"]) == {COLD, BACK, MEMORY}


@pytest.mark.parametrize(
    ("share", "verdict"), [(1.005, "agrees"), (1.02, "differs"), (0.5, "differs")]
)
def test_bytes_that_do_not_add_up_are_seen(share: float, verdict: str) -> None:
    stored = {"stored_bytes": 896 * PROMPTS * 4096 * share}
    found = part(changed={("gqa-dense-file", COLD): stored})
    frame = offload_bytes.bytes_moved(found)
    assert only(frame, arm="gqa-dense-file", direction="stored").verdict == verdict
    assert f"**{verdict.capitalize()}**" in offload.bytes_moved(found, Values())


@pytest.mark.parametrize(
    ("tokens", "observed"),
    [(1024, offload_bytes.BY_ENGINE), (1040, offload_bytes.ANSWERS_TOO)],
)
def test_native_versions_that_store_answers_are_told_apart(tokens: int, observed: str) -> None:
    """In blocks of 16 a prompt fills 64, with all of its answer that is stored 65."""
    arm = "gqa-dense-native"
    found = part(changed={(arm, COLD): {"offload_store_bytes": tokens * PROMPTS * 4096.0}})
    found.found.launches.loc[found.found.launches["arm"] == arm, "block_size"] = "16"
    row = only(offload_bytes.bytes_moved(found), arm=arm, direction="stored")
    assert (row.tokens, row.verdict, row.observed) == (tokens * PROMPTS, "agrees", observed)


def test_native_bytes_that_fit_neither_count_differ() -> None:
    arm = "gqa-dense-native"
    stored = {"offload_store_bytes": 700.0 * PROMPTS * 4096}
    frame = offload_bytes.bytes_moved(part(changed={(arm, COLD): stored}))
    assert only(frame, arm=arm, direction="stored").verdict == "differs"


def test_native_bytes_are_the_engines_own() -> None:
    """1,024 tokens fill 8 blocks of 128, and with the answer's 1,055 no further one."""
    loaded = {"offload_load_bytes": 896.0 * REPEATED * 4096}
    stored = {"offload_store_bytes": 1024.0 * PROMPTS * 4096}
    arm = "gqa-dense-native"
    found = part(changed={(arm, BACK): loaded, (arm, COLD): stored})
    frame = offload_bytes.bytes_moved(found)
    for direction in ("stored", "restored"):
        row = only(frame, arm=arm, direction=direction)
        assert (row.ratio, row.verdict, row.observed) == (1, "agrees", offload_bytes.BY_ENGINE)
    assert set(frame.loc[frame["arm"] == "mla-dense-native", "verdict"]) == {"cannot judge"}
    assert "not reported" in offload.bytes_moved(found, Values())


def test_a_rate_of_restoring_needs_a_difference_that_is_shown() -> None:
    rates = offload_bytes.bandwidths(case("whole"))
    row = only(rates, arm="gqa-dense-file")  # MLA has nothing in memory, off restores nothing
    wanted = 896 * 4096 / (TTFT_S[BACK] - TTFT_S[MEMORY])
    assert row.bytes == 896 * 4096
    assert row.point == pytest.approx(wanted / DRIFT, rel=0.01)
    assert row.low < row.point < row.high
    near = {("gqa-dense-file", MEMORY): {"ttft_p50_s": TTFT_S[BACK]}}  # 0, 2 and 4 ms below
    same = part(rejected=dict.fromkeys(NATIVES, REFUSAL), changed=near)
    assert offload_bytes.bandwidths(same).empty
    assert "No rate of restoring" in offload.bandwidth(same, Values())
    assert offload_bytes.bandwidths(case("one block")).empty


def test_the_set_exceeds_memory_by_the_engines_word() -> None:
    row = only(offload_bytes.capacity(case("whole")), arm="gqa-dense-off")
    assert (row.set_tokens, row.kv_cache_tokens) == (PROMPTS * TOKENS, asked().held_tokens)
    assert row.exceeds and row.fits and row.launches == 3
    told = part()
    told.found.launches["kv_cache_tokens"] = "40000"
    row = only(offload_bytes.capacity(told), arm="gqa-dense-off")
    assert not row.exceeds
    assert "no" in set(offload_tables.capacity(told).shown["exceeds memory"])


# --- the same output ------------------------------------------------------------------------------


def test_outputs_are_compared_in_an_arm_and_with_off() -> None:
    found = case("whole")
    names = [(one.treatment, one.baseline) for one in offload_estimates.agreements(found)]
    assert ("mla-dense-file, pass 2", "mla-dense-file, pass 1") in names
    assert ("mla-dense-file", "mla-dense-off") in names
    assert len(names) == 6 and not any("native" in name for pair in names for name in pair)
    said = offload.outputs(found, Values())
    assert said.startswith("6 of 6 comparisons pass") and "`gqa-dense-file` 512" in said


def test_another_output_is_said() -> None:
    found = part(rejected=dict.fromkeys(NATIVES, REFUSAL))
    restored = (found.outputs["arm"] == "mla-dense-file") & (found.outputs["number"] == 1)
    found.outputs["logprobs"] = [
        [value - 1 for value in values] if off else values
        for values, off in zip(found.outputs["logprobs"], restored, strict=True)
    ]
    said = offload.outputs(found, Values())
    assert said.startswith("5 of 6 comparisons pass")
    assert "\n\n- fail: mla-dense-file, pass 2 against mla-dense-file, pass 1" in said
