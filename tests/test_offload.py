"""The chapter on KV offload, on frames with planted values."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import stub

from study import paths, same_output, style, theory
from study.chapter import Part, Text
from study.chapters import (
    offload,
    offload_bytes,
    offload_estimates,
    offload_figures,
    offload_tables,
)
from study.chapters.offload_estimates import COLD, COMPUTED, FILE, MEMORY, MIXED, OFF
from study.chapters.offload_estimates import RESTORED as BACK
from study.experiments import Offload
from study.frames import Frames
from study.models import Model
from study.sentences import Values

PROMPTS, REPEATED, TOKENS = 32, 16, 1024
BLOCK = {"gqa": 128, "mla": 16}
HEADER_BYTES = 88  # of a file; one a prompt and layer
REFUSAL = "Exception: CPU Offloading is only supported on 2 `platforms`"
# Seconds: cold and dropped prompts are computed, or restored; memory is the fastest.
TTFT_S = {COMPUTED: 0.060, BACK: 0.018, MEMORY: 0.012}
DRIFT = 1.1  # a block is this much slower than the one before, in all arms and phases
Cell = tuple[str, str, int, int]
VOID = tuple(("gqa-dense-file", BACK, 1, block) for block in range(3))


def asked(**parameters: object) -> Offload:
    """Apart from the defaults, which may change."""
    small = {"launches": 3, "prompts": PROMPTS, "repeated": REPEATED, "prompt_tokens": TOKENS}
    return Offload.of({**small, "output_tokens": 32, **parameters})


def happened(phase: str, mode: str, attention: str) -> str:
    """What this engine does: it has prefix caching for GQA, and none for MLA."""
    if phase == COLD:
        return COMPUTED
    if phase == MEMORY and attention == "gqa":
        return MEMORY
    return COMPUTED if mode == OFF else BACK


def part(
    experiment: Offload | None = None,
    *,
    rejected: Mapping[str, str] | None = None,
    void: Collection[Cell] = (),
    not_measured: Collection[str] = (),
    changed: Mapping[tuple[str, str], Mapping[str, float]] | None = None,
) -> Part:
    """A part with planted hits, bytes and TTFT. `changed`: columns of an arm's phase."""
    experiment = experiment or asked()
    in_force = {
        arm.name: {
            "prefix_caching": str(arm.model.attention == "gqa"),
            "block_size": str(BLOCK[arm.model.attention]),
            "kv_cache_tokens": str(experiment.held_tokens),
        }
        for arm in experiment.arms()
    }
    found = stub.frames(
        experiment, rejected=rejected, in_force=in_force, void=void, not_measured=not_measured
    )
    windows = found.windows
    if len(windows):
        models = {arm.name: arm.model for arm in experiment.arms()}
        planted = [
            _planted(dict(row), experiment, models[row["arm"]]) for _, row in windows.iterrows()
        ]
        windows = pd.DataFrame(planted)
        for (arm, phase), values in (changed or {}).items():
            here = (windows["arm"] == arm) & (windows["workload"] == phase)
            windows.loc[here, list(values)] = list(values.values())
    frames = Frames(found.launches, windows, found.judgements)
    outputs = _outputs(found.launches)
    return Part("40_offload", experiment, stub.launches(experiment), frames, (), outputs, None)


def _planted(row: dict[str, Any], experiment: Offload, model: Model) -> dict[str, Any]:
    source = happened(row["workload"], row["offload"], row["attention"])
    whole = (TOKENS - 1) // BLOCK[row["attention"]] * BLOCK[row["attention"]]
    hits = whole * experiment.repeated
    files = experiment.prompts * model.layers
    stored = whole * experiment.prompts * theory.kv_bytes_per_token(model)
    filed = row["offload"] == FILE
    first = row["workload"] == COLD
    return {
        **row,
        "prefix_hits_tokens": float(hits if source == MEMORY else 0),
        "external_hits_tokens": float(hits if source == BACK else 0),
        "stored_bytes": (stored + files * HEADER_BYTES if first else 0) if filed else np.nan,
        "stored_files": float(files if first else 0) if filed else np.nan,
        "ttft_p50_s": TTFT_S[source] * DRIFT ** row["block"],
    }


def _outputs(launches: pd.DataFrame) -> pd.DataFrame:
    """Two prompts and their twins, twice; the file mode restores in its second pass."""
    measured = launches[launches["outcome"] == "measured"]
    rows = [
        {
            **{name: launch[name] for name in ("launch", "block", "arm")},
            "number": number,
            "prompt": prompt,
            "kind": kind,
            "tokens": [prompt, 2, 3],
            "logprobs": [-1.0, -2.0, -1.5] if kind == "prompt" else [-3.0, -0.5, -2.5],
            "error": "",
            "prefix_hits_tokens": 0.0,
            "external_hits_tokens": 512.0 if number and launch["offload"] == FILE else 0.0,
        }
        for launch in measured.to_dict("records")
        for number, prompt, kind in product(range(2), range(2), ("prompt", "twin"))
    ]
    return pd.DataFrame(rows, columns=[*same_output.COLUMNS, *same_output.HITS])


NATIVES = ("gqa-dense-native", "mla-dense-native")
EVERY_ARM = [arm.name for arm in asked().arms()]


@cache
def case(name: str) -> Part:
    refused = dict.fromkeys(NATIVES, REFUSAL)
    match name:
        case "whole":
            return part(rejected=refused)
        case "void":
            return part(rejected=refused, void=VOID)
        case "one block":
            return part(asked(launches=1, models=["gqa-dense"]), rejected=refused)
        case "no off":
            return part(asked(modes=["file", "native"]), rejected=refused)
        case "everything rejected":
            return part(asked(models=["mla-dense"]), rejected=dict.fromkeys(EVERY_ARM, REFUSAL))
        case "all void":
            phases = (COLD, BACK, MEMORY)
            void = list(product(EVERY_ARM, phases, (1,), range(3)))
            return part(asked(models=["gqa-dense"]), void=void)
        case "nothing":
            return part(not_measured=EVERY_ARM)
    empty = Frames(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
    return Part("40_offload", asked(), (), empty, (), _no_outputs(), None)


def _no_outputs() -> pd.DataFrame:
    return pd.DataFrame(columns=[*same_output.COLUMNS, *same_output.HITS])


CASES = (
    "whole",
    "void",
    "one block",
    "no off",
    "everything rejected",
    "all void",
    "nothing",
    "no launch",
)


def one(frame: pd.DataFrame, **wanted: object) -> Any:
    """The only row with these values."""
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return next(frame.itertuples())


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
    row = one(
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
    row = one(offload_estimates.sources(found), arm="gqa-dense-file", workload=BACK)
    assert (row.came_from, row.intended) == (source, BACK)
    said = offload.proof(found, Values())
    assert (f"intended was: {BACK}" in said) == (source != BACK)


def test_hits_that_the_engine_does_not_count_are_not_reported() -> None:
    found = part(changed={(arm, BACK): {"external_hits_tokens": np.nan} for arm in EVERY_ARM})
    frame = offload_estimates.sources(found)
    assert one(frame, arm="gqa-dense-file", workload=BACK).came_from == "not reported"
    assert one(frame, arm="gqa-dense-off", workload=BACK).came_from == COMPUTED  # none to count
    assert offload_figures.where_from(found).figure is not None
    assert "hits not reported" in offload.proof(found, Values())


def test_cells_that_were_not_measured_stay_with_their_outcome() -> None:
    frame = offload_estimates.sources(case("whole"))
    assert set(frame.loc[frame["arm"].isin(NATIVES), "kind"]) == {"rejected"}
    void = one(offload_estimates.sources(case("void")), arm="gqa-dense-file", workload=BACK)
    assert (void.kind, void.launches) == ("void window", 3)
    assert set(offload_estimates.sources(case("nothing"))["kind"]) == {"not measured"}


# --- TTFT -----------------------------------------------------------------------------------------


def test_ratios_are_taken_inside_launches_and_blocks() -> None:
    """Blocks differ by much and in all phases alike: what is compared inside them does not."""
    whole = case("whole")
    phase = one(offload_estimates.phase_ratios(whole), arm="gqa-dense-file", workload=BACK)
    modes = offload_estimates.mode_ratios(whole)
    mode = one(modes, arm="gqa-dense-file", workload=BACK)
    for row in (phase, mode):
        assert row.point == pytest.approx(TTFT_S[BACK] / TTFT_S[COMPUTED])
        assert (row.low, row.high) == pytest.approx((row.point, row.point))
        assert row.n == 3
    assert phase.baseline_point == pytest.approx(TTFT_S[COMPUTED] * DRIFT)  # the middle block's
    assert mode.treatment_point == pytest.approx(TTFT_S[BACK] * DRIFT)
    assert (phase.treatment, phase.baseline) == (BACK, COLD)
    assert (mode.treatment, mode.baseline) == ("gqa-dense-file", "gqa-dense-off")
    control = one(offload_estimates.phase_ratios(whole), arm="gqa-dense-off", workload=BACK)
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
    row = one(offload_estimates.phase_ratios(case("void")), arm="gqa-dense-file", workload=BACK)
    assert (row.n, row.dropped) == (0, 3) and np.isnan(row.point)
    partly = part(void=VOID[:1])
    row = one(offload_estimates.phase_ratios(partly), arm="gqa-dense-file", workload=BACK)
    assert (row.n, row.dropped) == (2, 1)


def test_the_price_is_that_of_cold() -> None:
    frame = offload_estimates.mode_ratios(case("whole"))
    cold = frame[frame["workload"] == COLD]
    assert set(cold["metric"]) == {"ttft_p50_s", "tpot_p50_s", "output_tok_s"}
    assert one(cold, arm="mla-dense-file", metric="ttft_p50_s").point == pytest.approx(1)
    windows = case("whole").found.windows
    here = windows[(windows["workload"] == COLD) & (windows["model"] == "mla-dense")]
    logs = here.assign(log=np.log(here["tpot_p50_s"])).groupby("arm")["log"].mean()
    wanted = np.exp(logs["mla-dense-file"] - logs["mla-dense-off"])
    assert one(cold, arm="mla-dense-file", metric="tpot_p50_s").point == pytest.approx(wanted)
    said = offload.price(case("whole"), Values())
    assert "MLA · dense with `file`: TTFT **1.00 [1.00, 1.00]** times that of `off`" in said
    assert offload_estimates.mode_ratios(case("no off")).empty


# --- bytes ----------------------------------------------------------------------------------------


def test_files_hold_what_arithmetic_says_and_a_header() -> None:
    frame = offload_bytes.bytes_moved(case("whole"))
    stored = one(frame, arm="gqa-dense-file", direction="stored")
    assert stored.tokens == 896 * PROMPTS and stored.bytes_per_token == 4096
    assert (stored.arithmetic_bytes, stored.observed_bytes) == (117_440_512, 117_446_144)
    assert (stored.verdict, stored.launches, stored.files) == ("agrees", 3, 64)
    back = one(frame, arm="gqa-dense-file", direction="restored")
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
    assert one(frame, arm="gqa-dense-file", direction="stored").verdict == verdict
    assert f"**{verdict.capitalize()}**" in offload.bytes_moved(found, Values())


def test_native_bytes_are_the_engines_own() -> None:
    """Natively the answer's blocks are stored as well: 1,055 tokens fill 8 blocks of 128."""
    loaded = {"offload_load_bytes": 896.0 * REPEATED * 4096}
    stored = {"offload_store_bytes": 1024.0 * PROMPTS * 4096}
    arm = "gqa-dense-native"
    found = part(changed={(arm, BACK): loaded, (arm, COLD): stored})
    frame = offload_bytes.bytes_moved(found)
    for direction in ("stored", "restored"):
        row = one(frame, arm=arm, direction=direction)
        assert (row.ratio, row.verdict, row.observed) == (1, "agrees", offload_bytes.BY_ENGINE)
    assert set(frame.loc[frame["arm"] == "mla-dense-native", "verdict"]) == {"cannot judge"}
    assert "not reported" in offload.bytes_moved(found, Values())


def test_a_rate_of_restoring_needs_a_difference_that_is_shown() -> None:
    rates = offload_bytes.bandwidths(case("whole"))
    row = one(rates, arm="gqa-dense-file")  # MLA has nothing in memory, off restores nothing
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
    row = one(offload_bytes.capacity(case("whole")), arm="gqa-dense-off")
    assert (row.set_tokens, row.kv_cache_tokens) == (PROMPTS * TOKENS, asked().held_tokens)
    assert row.exceeds and row.fits and row.launches == 3
    told = part()
    told.found.launches["kv_cache_tokens"] = "40000"
    row = one(offload_bytes.capacity(told), arm="gqa-dense-off")
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


# --- text, figures and tables ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_everything_can_be_shown_and_every_number_is_in_the_values(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scratch(tmp_path, monkeypatch)
    monkeypatch.setattr(style, "_bytes", lambda *_: b"")  # the notebook's test draws whole
    values, found = Values(), case(name)
    shown = [*offload.summary(found, values), *offload.results(found, values)]
    assert all(
        (one._repr_markdown_() if isinstance(one, Text) else one._repr_html_()).strip()
        for one in shown
    )
    text = "\n".join(one.text for one in shown if isinstance(one, Text))
    for entry in sorted((str(e["text"]) for e in values.known.values()), key=len, reverse=True):
        text = text.replace(entry, "")
    assert re.findall(r"\d[\d.,]*", text) == []
    assert "nan" not in text.lower()


def _scratch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", folder)
    monkeypatch.setattr(style, "PNG_DPI", 40)  # quick, as is not to wait for the disk
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name in ("FIGURES", "DERIVED"):
        monkeypatch.setattr(paths, name, folder / name.lower())


def test_the_summary_leads_with_what_came_back() -> None:
    values = Values()
    said = offload.lead(case("whole"), values)
    assert "GQA · dense with `file` has **0.300 [0.300, 0.300]** times the TTFT" in said
    assert "restored by offload" in said
    assert values.known["offload.windows.valid"]["value"] == 3 * 4 * 3
    void = offload.lead(case("void"), Values())
    assert "No launch compares restored with cold for GQA · dense with `file`" in void
    assert "MLA · dense with `file` has" in void


def test_the_engines_own_words_stand_in_the_summary() -> None:
    shown = offload.summary(case("whole"), Values())
    text = "\n".join(one.text for one in shown if isinstance(one, Text))
    assert "`gqa-dense-native`: rejected: `Exception: CPU Offloading" in text


def test_one_block_says_that_it_carries_no_interval() -> None:
    values, found = Values(), case("one block")
    assert "one block carries no interval" in offload.ttft(found, values)
    assert offload.method(found, values).startswith("No ratio has an interval")
    assert "no interval (n = 1)" in offload_figures.ttft(found).caption
    assert "Bonferroni over 8 comparisons, n = 3 blocks" in offload.method(case("whole"), values)


def test_unequal_cores_of_a_cpu_engine_are_a_confound() -> None:
    found = case("whole")
    for environment, warned in (({"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, False), ({}, True)):
        launches = tuple(
            replace(one, arm=one.arm.model_copy(update={"environment": environment}))
            for one in found.launches
        )
        assert bool(offload.cores(replace(found, launches=launches))) == warned


def test_the_figures_draw_void_windows_hollow_and_skip_what_was_not_measured() -> None:
    drawn = offload_figures.ttft(case("void"))
    assert drawn.figure is not None
    hollow = drawn.frame[drawn.frame["kind"] == "void window"]
    assert len(hollow) == 3 and "3 void windows" in drawn.caption
    assert not drawn.frame["arm"].isin(NATIVES).any()
    bars = offload_figures.where_from(case("void"))
    assert "all windows are void (1 bars)" in bars.caption
    for name in ("nothing", "everything rejected", "no launch"):
        assert offload_figures.ttft(case(name)).figure is None
        assert offload_figures.where_from(case(name)).figure is None


def test_no_digit_is_typed_in_a_sentence() -> None:
    tree = ast.parse(Path(offload.__file__).read_text())
    known = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef)
    }
    typed = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value not in known
        and re.search(r"\d", node.value)
    ]
    assert typed == []


# --- the notebook ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["void", "nothing"])
def test_the_notebook_runs_whatever_was_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scratch(tmp_path, monkeypatch)
    found = case(name)
    monkeypatch.setattr("study.run.run_experiment", lambda _: found.launches)
    monkeypatch.setattr("study.chapter.read", lambda *_: found)
    monkeypatch.setattr("study.plan.setup", lambda: stub.SETUP)
    reader: Any = nbformat
    content = reader.read(paths.NOTEBOOKS / "40_offload.ipynb", as_version=4)
    shown: list[object] = []
    namespace: dict[str, Any] = {}
    for cell in content.cells:
        if cell.cell_type != "code":
            continue
        exec(compile(cell.source, "cell", "exec"), namespace)
        namespace["display"] = lambda *items: shown.extend(items)
        if "parameters" in cell.metadata.get("tags", []):  # what papermill would inject
            fields = dict(found.experiment)
            namespace |= {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    assert len(shown) > 10
