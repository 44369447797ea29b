"""The published numbers: every claim derived, and the numbers that each rests on."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from study import capacity, models
from study.audit.formats import Window
from study.claims import inferencex, levels, metrum, mi325x, published, spark, tables, wafer
from study.claims.evidence import Class
from study.claims.findings import DERIVATIONS, Finding, counts, findings, frame
from study.claims.printed import printed
from study.claims.published import Published
from study.errors import StudyError

DATA = published.read()
FOUND = {one.claim.claim: one for one in findings(published.claims(), DATA)}


def computed(name: str) -> list[float]:
    return [one.value for one in FOUND[name].evidence.computed]


def test_every_claim_has_one_derivation_and_none_is_left_over() -> None:
    asked = {(one.source, one.claim) for one in published.claims()}
    known = {(source, name) for source, of in DERIVATIONS.items() for name in of}
    assert known == asked and len(asked) == 67


def test_every_table_has_a_check() -> None:
    checks = tables.checks(DATA)
    assert {(one.source, one.table) for one in checks} == tables.tables_of(DATA)
    assert all(one.found and one.evidence.why.endswith(".") for one in checks)


def test_the_table_out_has_class_and_computed_beside_stated() -> None:
    table = frame(tuple(FOUND.values()))
    assert len(table) == 67 and sum(counts(tuple(FOUND.values())).values()) == 67
    row = table.set_index("claim").loc["tokens per watt c=1024"]
    assert (row["stated"], row["computed"], row["class"]) == ("0.82", "0.821823", "confirmed")
    open_ones = table[table["class"] == "not derivable"]
    assert (open_ones["missing"] != "").all()
    assert (table["why"].str.count(r"\S") > 8).all()


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match=r"one of dgx-spark-thread, .*; it was 'metrum'"):
        published.claims(["metrum"])
    assert {one.source for one in published.claims(["metrum-2026"])} == {"metrum-2026"}


# --- classes follow the data ----------------------------------------------------------------------


def changed(value: str, **where: object) -> Published:
    """The published figures, one of them printed otherwise."""
    rows = DATA.measurements.copy()
    (at,) = DATA.rows(**where).index
    rows.loc[at, "value"] = value
    return Published(rows)


def again(name: str, data: Published) -> Finding:
    claim = FOUND[name].claim
    return findings([claim], data)[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("424", "confirmed within rounding"),
        ("426", "confirmed"),
        ("420", "contradicted by the source's own numbers"),
    ],
)
def test_another_figure_is_another_class(value: str, expected: Class) -> None:
    data = changed(
        value, table="Table 2", hardware="MI355X", output_tokens=2048, input_tokens=128,
        concurrency=128,
    )  # fmt: skip
    assert again("gen-on-gen 128/2048 c=128", data).found == expected


def test_a_figure_that_comes_to_light_must_be_derived_from() -> None:
    row = DATA.rows(source="metrum-2026", table="text", concurrency=1024).iloc[:1]
    one = row.assign(concurrency="1", metric="output_throughput", value="60")
    data = Published(pd.concat([DATA.measurements, one], ignore_index=True))
    with pytest.raises(StudyError, match="throughput of one request is published after all"):
        again("efficiency gain", data)


def test_a_figure_is_one_or_an_error() -> None:
    with pytest.raises(StudyError, match="7 have it"):
        DATA.number(table="Table 2", hardware="MI355X")


# --- Metrum ---------------------------------------------------------------------------------------


def test_generations_are_ratios_of_their_rows() -> None:
    found = {name: one.found for name, one in FOUND.items() if name.startswith("gen-on-gen")}
    assert len(found) == 7
    assert found.pop("gen-on-gen 128/2048 c=128") == "confirmed within rounding"  # 1.395, not 1.40
    assert set(found.values()) == {"confirmed"}


def test_effective_throughput_is_taken_off_twice_if_raw_counts_completed() -> None:
    assert computed("effective 128/2048 c=1024") == [pytest.approx(783, abs=1)]
    assert computed("effective 2048/2048 c=512") == [pytest.approx(400, abs=1)]
    (over,) = FOUND["effective 2048/2048 c=512"].evidence.computed  # of "over 1,000 tok/s"
    assert over.high == math.inf and "at least 400 tok/s" in (
        FOUND["effective 2048/2048 c=512"].evidence.why
    )
    raw = metrum.implied_raw(1785, 3.0, 0.24)
    assert 1785 / (raw * (1 - 0.24)) == pytest.approx(3.0)
    assert "is 2.28" in FOUND["effective 128/2048 c=1024"].evidence.why


def test_power() -> None:
    assert computed("tokens per watt c=1024") == [pytest.approx(0.8218, abs=1e-4)]
    assert "272 W each: 19%" in FOUND["node power"].evidence.why
    assert computed("efficiency gain") == [pytest.approx(198.3, abs=0.1)]
    assert "1,587 for one on each of 8" in FOUND["single request implied"].evidence.why
    assert computed("single request implied") == [pytest.approx(33.7, abs=0.05)]
    assert FOUND["single request implied"].found == "contradicted by the source's own numbers"


def test_an_instance_does_not_fit_one_gpu() -> None:
    least = metrum.least_weights_gb()
    assert 540 < least < capacity.weights(models.load("kimi-k2.5"), "mxfp4").bytes / 1e9
    assert least > 288 and FOUND["instance memory"].found == "physically impossible"


def test_what_the_article_says_of_others_is_held_against_its_own_rows() -> None:
    assert computed("linear scaling") == [pytest.approx(7.158, abs=1e-3)]
    assert computed("192 GB needs two nodes") == [8]
    assert computed("interactive users") == [pytest.approx(1.743, abs=1e-3)]
    assert "20 minutes" in FOUND["interactive users"].evidence.why
    assert computed("AITER MLA in this configuration") == [0]
    for name in ("linear scaling", "192 GB needs two nodes"):
        assert FOUND[name].found == "contradicted by the source's own numbers"


# --- InferenceX -----------------------------------------------------------------------------------


def test_matched_concurrency_is_confirmed() -> None:
    found = [FOUND[f"matched concurrency c={level}"].found for level in (4, 8, 16, 32, 64)]
    assert set(found) == {"confirmed"}


def test_equal_throughput_from_unrounded_tpot_and_only_within_what_was_measured() -> None:
    assert computed("iso-throughput 337") == [pytest.approx(15.57, abs=0.01)]
    assert FOUND["iso-throughput 337"].found == "confirmed"
    rates = inferencex.curve(DATA, inferencex.BEFORE, "total_throughput_per_gpu")
    assert inferencex.measured_at(rates, 337)
    assert not inferencex.measured_at(rates, 380)
    assert computed("iso-throughput 380") == [pytest.approx(15.2, abs=0.01)]
    assert FOUND["iso-throughput 380"].found == "not derivable"


def test_interpolation_hits_the_points_and_is_straight_beyond() -> None:
    rates, speeds = {1: 10.0, 2: 20.0, 4: 40.0}, {1: 9.0, 2: 8.0, 4: 5.0}
    wanted = {10: 9.0, 15: 8.5, 20: 8.0, 30: 6.5, 40: 5.0, 50: 3.5, 5: 9.5}
    for rate, speed in wanted.items():
        assert inferencex.at_throughput(rates, speeds, rate) == pytest.approx(speed)


@pytest.mark.parametrize("table", list(tables.tables_of(DATA)))
def test_tok_s_gpu_counts_input_and_output(table: tuple[str, str]) -> None:
    source, name = table
    if source != inferencex.SOURCE or not name.startswith("TP="):
        return
    evidence = inferencex.what_is_counted(DATA, name)
    assert [one.value for one in evidence.computed] == [8192 + 1024]


def test_counted_tokens_is_littles_law() -> None:
    level, e2e_s, tokens = 16, 1023 * 0.05, 9216
    rate_per_gpu = level / e2e_s * tokens / 8
    assert inferencex.counted_tokens(rate_per_gpu, 8, level, 50) == pytest.approx(tokens)


def test_what_b200_leaves() -> None:
    assert computed("10x behind on 1 March") == [pytest.approx(11.54, abs=0.01)]
    assert FOUND["10x behind on 1 March"].found == "contradicted by the source's own numbers"
    assert computed("against B200") == [pytest.approx(0.668, abs=1e-3)]


# --- MI325X ---------------------------------------------------------------------------------------


def test_the_levels_of_the_cookbook() -> None:
    for model in levels.LLAMA, levels.QWEN:
        held = levels.curves()[f"stress saturation, {model}"].in_flight
        for level in (150, 200, 300):
            assert held[level] == pytest.approx(level, rel=0.01)
        most = [held[level] for level in (500, 750, 1000)]  # one load, with 5 % of noise in each
        assert most == pytest.approx([500, 551.25, 551.25])
    for model in levels.LLAMA, levels.QWEN, levels.KIMI:
        held = levels.curves()[f"multi-run, {model}"].in_flight
        assert all(98 < held[level] <= 100 for level in (100, 200, 500, 750, 1000))


def test_no_saturation_claim_stands() -> None:
    for name in ("saturation short", "saturation long"):
        assert FOUND[name].found == "not derivable" and "one load" in FOUND[name].evidence.why
    for name in ("1000 users", "client is not the limit"):
        assert FOUND[name].found == "contradicted by the source's own numbers"
    assert computed("1000 users") == [pytest.approx(551, abs=0.5)]
    assert "that load is 442 to 445" in FOUND["saturation short"].evidence.why
    assert levels.last_rise(levels.SHORT) == pytest.approx(0.144, abs=1e-3)
    assert levels.last_rise(levels.REPEATED) > 0.5
    assert computed("client is not the limit") == [pytest.approx(10.3, abs=0.05)]


def test_a_level_is_refuted_by_the_load_of_a_lower_one_and_not_by_a_fit() -> None:
    short = levels.curves()[f"stress saturation, {levels.QWEN}"].judged
    assert {level for level, one in short.items() if one.verdict == "fail"} == {750, 1000}
    assert "rate and E2E are those of level 500" in short[1000].text
    scaling = levels.curves()[f"stress scaling, {levels.QWEN}"].judged
    assert {one.verdict for one in scaling.values()} == {"cannot judge"}


def test_each_refuted_level_is_told_with_its_own_bound() -> None:
    """A lower level that was never full is not told with the bound of a higher one."""
    few = tuple(Window("", level=level, requests=made) for level, made in ((100, 50), (4000, 300)))
    said = tables.reached(levels.Curve("made up", few, None))
    assert said.why.endswith("in brackets: 100 (50), 4,000 (300).")
    stress = tables.reached(levels.curves()[f"stress saturation, {levels.LLAMA}"])
    assert stress.why.endswith("in brackets: 750 (551), 1,000 (551).")


def test_a_span_is_compared_as_one() -> None:
    """At most 100 in flight is within '100 to 200': the bound does not contradict it."""
    saturates = FOUND["saturation long"]
    assert computed("saturation long") == [100] and not saturates.evidence.stated


def test_a_gain_is_lost_at_a_variation_that_is_not_printed() -> None:
    lost = {at: round(100 * cov, 1) for at, cov in mi325x.losing(DATA).items()}
    assert lost == {100: 3.2, 200: 2.4, 500: 3.4}
    for at, cov in mi325x.losing(DATA).items():
        on, off = (one.value for one in mi325x.ablation(DATA)[at])
        assert mi325x.p_of_gain(on, off, cov * 0.98, 0.002) < 0.05
        assert mi325x.p_of_gain(on, off, cov * 1.02, 0.002) > 0.05


def test_welch_is_scipys() -> None:
    from scipy import stats

    a, b = [5.1, 4.9, 5.3, 5.6, 5.0], [4.2, 4.9, 4.4, 4.0, 5.1]
    of = [(sum(x) / 5, float(pd.Series(x).std())) for x in (a, b)]
    t, df, p = mi325x.welch(of[0], of[1])
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert (t, df, p) == pytest.approx((theirs.statistic, theirs.df, theirs.pvalue))


def test_intervals_that_overlap_and_a_difference_all_the_same() -> None:
    t, df, p = mi325x.welch((6808, mi325x.sd_of(336)), (5786, mi325x.sd_of(842)))
    assert (round(t, 1), round(df), round(p, 2)) == (3.1, 5, 0.02)
    why = FOUND["DeepSeek against Llama, multi-run"].evidence.why
    assert "overlap, yet Welch's t is 3.1 (df 5, p = 0.02)" in why


def test_no_failure_bounds_the_rate() -> None:
    assert mi325x.failure_bound(0, 17_406) == pytest.approx(1.72e-4, abs=1e-6)
    assert mi325x.failure_bound(0, 17_406) == pytest.approx(1 - 0.05 ** (1 / 17_406))
    assert "0.017%" in FOUND["no failures"].evidence.why


def test_the_peak_needs_little_bandwidth_and_much_arithmetic() -> None:
    (share,) = computed("bottleneck")
    assert 5 < share < 12
    assert "61% of the FP8 matrix rate" in FOUND["bottleneck"].evidence.why


def test_later_peaks_and_variability() -> None:
    assert sorted(round(one, 2) for one in computed("later sweep")) == [1.0, 1.26, 2.14, 2.44]
    (ratio,) = FOUND["AITER variability"].evidence.computed
    assert ratio.low < 2 and ratio.high > 16


# --- DigitalOcean, Wafer, and the thread ----------------------------------------------------------


def test_two_gains_of_one_change() -> None:
    assert computed("DeepSeek c=64 per request") == [pytest.approx(3.95, abs=0.005)]
    why = FOUND["DeepSeek c=64 per request"].evidence.why
    assert why.endswith("if TTFT stayed as it was and is now 53% of a request's time.")
    share = wafer.ttft_share(7.32, 3.95)
    assert share == pytest.approx(0.533, abs=0.002)
    before = share / 3.95  # of E2E
    assert 1 / (before + (1 - before) / 7.32) == pytest.approx(3.95)
    assert math.isnan(wafer.ttft_share(3.95, 7.32))  # no TTFT explains the reverse


def test_tokens_a_step() -> None:
    assert computed("GLM-5") == [pytest.approx(2.69, abs=0.005)]
    assert "56.2 steps/s" in FOUND["GLM-5"].evidence.why


def test_formats_sizes_and_bandwidths() -> None:
    assert [wafer.bits_per_weight(n) for n in (32, 16)] == [4.25, 4.5]
    assert computed("GLM-5 size") == [pytest.approx(744, abs=1)]
    assert computed("HBM bandwidth") == [8, 8]
    assert all(one > 13 for one in computed("MLA compression"))
    for name in ("GLM-5 size", "HBM bandwidth", "MLA compression"):
        assert FOUND[name].found == "contradicted by another source"
    assert "600 to 1,800" in FOUND["TP tax"].evidence.why


def test_the_draft_cost_gives_the_stated_gain_back() -> None:
    from study.bounds import speculation_speedup

    for draft in wafer.DRAFTS:
        cost = wafer.draft_cost(1.6, 0.8, draft)
        assert speculation_speedup(0.8, draft, cost) == pytest.approx(1.6)


def test_sparks_against_bandwidth() -> None:
    assert spark.thread_bound() == pytest.approx(17.06, abs=0.01)
    assert spark.own_bound() < spark.thread_bound()  # what stays in 16 bits
    assert computed("efficiency factor") == [pytest.approx(0.703, abs=1e-3)]
    assert computed("nodes needed") == [5, 8]
    assert computed("two-node scaling") == [1.75]
    assert "6 at 90% usable" in FOUND["nodes needed"].evidence.why
    (most,) = computed("20 tok/s at zero context")
    assert printed("20").low > spark.thread_bound() and most > 20
