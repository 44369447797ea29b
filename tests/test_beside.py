"""Windows beside their bound, this machine's own figures, and the notebook that shows both."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import stub
from telling import text_of

from study import (
    beside,
    bounds,
    capacity,
    figures,
    machine,
    models,
    paths,
    report,
    sentences,
    style,
)
from study.chapter import Part, Text
from study.chapters import aiter_figures, block_size_figures, theory, theory_figures
from study.errors import StudyError
from study.experiments import Aiter, Architecture, BlockSize, Bound
from study.frames import Frames
from study.hardware import Hardware
from study.sentences import Values

ASKED = Bound.of({"models": ["gqa-dense-1b"], "launches": 2})
SAID = dict.fromkeys(("memory_gb", "bandwidth_gb_s", "rates_tflop_s"), "made up")


def device(bandwidth_gb_s: float) -> Hardware:
    return Hardware(
        name=machine.NAME, description="made up", memory_gb=24, bandwidth_gb_s=bandwidth_gb_s,
        rates_tflop_s={"bf16": 1e9}, sources=SAID,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Frames:
    return stub.frames(ASKED, void=[("gqa-dense-1b", "brief", 4, 1)])


def reaching(found: Frames, share: float) -> Hardware:
    """Hardware of which the best valid window has this share."""
    seen = beside.windows(found.windows, device(1.0))
    best = seen.loc[seen["verdict"] == "valid", "share"].max()
    return device(best / share)


def part(found: Frames) -> Part:
    asked = stub.launches(ASKED)
    return Part("70_theory", ASKED, asked, found, (), pd.DataFrame(), None)


# --- the bound and its gate -----------------------------------------------------------------------


def test_the_bound_of_a_window_is_that_of_its_model_and_lengths(found: Frames) -> None:
    here = device(30)
    seen = beside.windows(found.windows, here)
    assert len(seen) == len(found.windows) == 4
    model = models.load("gqa-dense-1b")
    size = capacity.weights(model, "bf16")
    for row in seen.to_dict("records"):
        wanted = bounds.serving_tok_s(model, size, here, row["level"], 32, 32)
        assert row["bound_tok_s"] == pytest.approx(wanted)
        assert row["share"] == pytest.approx(row["output_tok_s"] / wanted)


@pytest.mark.parametrize(("limit", "running"), [(2.0, 2), (16.0, 4), (np.nan, 4)])
def test_no_more_requests_share_a_step_than_the_engine_may_run(
    found: Frames, limit: float, running: int
) -> None:
    here, model = device(30), models.load("gqa-dense-1b")
    seen = beside.windows(found.windows.assign(max_num_seqs=limit), here)
    wanted = bounds.serving_tok_s(model, capacity.weights(model, "bf16"), here, running, 32, 32)
    here_at = seen.loc[seen["level"] == 4, "bound_tok_s"]
    assert list(here_at) == [pytest.approx(wanted)] * 2


@pytest.mark.parametrize(("share", "verdict"), [(0.8, "pass"), (1.04, "pass"), (1.06, "fail")])
def test_a_window_that_beats_its_bound_is_found(found: Frames, share: float, verdict: str) -> None:
    here = reaching(found, share)
    judged = beside.bound_respected(beside.windows(found.windows, here), here)
    assert (judged.verdict, judged.scope) == (verdict, "claim")
    assert judged.observed == pytest.approx(share)
    assert f"{share:.1%}" in judged.text and "gqa-dense-1b on brief" in judged.text


@pytest.mark.parametrize(("cache_gb_s", "times"), [(None, 1.0), (20.0, 1.0), (90.0, 3.0)])
def test_a_model_that_a_cache_may_hold_is_bounded_by_the_cache(
    cache_gb_s: float | None, times: float
) -> None:
    asked = Architecture.of({"models": ["gqa-dense"], "launches": 1})
    tiny = stub.frames(asked).windows
    plain = device(30)
    cached = plain.model_copy(update={"cache_gb_s": cache_gb_s})
    seen, in_memory = beside.windows(tiny, cached), beside.windows(tiny, plain)
    assert np.allclose(seen["bound_tok_s"], times * in_memory["bound_tok_s"])
    assert set(seen["bandwidth_gb_s"]) == {30.0 * times}
    assert ("90 GB/s for models that a cache may hold" in beside.in_words(seen, cached)) == (
        times > 1
    )


def test_a_large_model_is_read_from_memory_whatever_caches_there_are(found: Frames) -> None:
    cached = device(30).model_copy(update={"cache_gb_s": 90.0})
    assert set(beside.windows(found.windows, cached)["bandwidth_gb_s"]) == {30.0}


def test_a_void_window_beats_nothing(found: Frames) -> None:
    windows = found.windows.copy()
    windows.loc[windows["verdict"] == "void", "output_tok_s"] = 1e9
    here = reaching(found, 0.8)
    assert beside.bound_respected(beside.windows(windows, here), here).verdict == "pass"


def test_without_hardware_or_windows_it_cannot_judge(found: Frames) -> None:
    for windows, here in ((found.windows, None), (pd.DataFrame(), device(30))):
        seen = beside.windows(windows, here)
        assert seen.empty and {"bound_tok_s", "share"} <= set(seen.columns)
        assert beside.bound_respected(seen, here).verdict == "cannot judge"


def test_a_model_that_is_gone_has_no_bound(found: Frames) -> None:
    seen = beside.windows(found.windows.assign(model="gone"), device(30))
    assert seen["bound_tok_s"].isna().all()
    assert beside.bound_respected(seen, device(30)).verdict == "cannot judge"


# --- what figures of throughput show --------------------------------------------------------------


@pytest.mark.parametrize(("share", "drawn"), [(0.5, True), (0.01, False)])
def test_throughput_is_drawn_with_its_bound_where_that_could_be_approached(
    found: Frames, share: float, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = reaching(found, share)
    monkeypatch.setattr(machine, "measured", lambda: here)
    shown = figures.throughput(found)
    assert shown.figure is not None
    axis = shown.figure.axes[0]
    dashed = [np.asarray(line.get_ydata()) for line in axis.lines if line.get_linestyle() == "-."]
    points = np.concatenate(dashed)
    assert points.size == (len(ASKED.levels) if drawn else 0)
    assert set(shown.frame["kind"] == "bound") == ({True, False} if drawn else {False})
    said = "Dash-dotted: the bound" if drawn else "is not drawn: it lies at least 100 times above"
    assert said in shown.caption
    low, high = axis.get_ylim()
    assert ((low <= points) & (points <= high)).all()


def test_where_no_model_is_asked_for_nothing_is_promised_below(found: Frames) -> None:
    said = theory.near(replace(part(found), launches=()), sentences.Values())
    assert "beside their bounds in the report" in said and "below" not in said


def test_the_summary_answers_by_the_windows_of_all_where_the_chapter_asked_for_no_model(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Architecture.of({"models": ["gqa-dense"], "launches": 1})
    seen = stub.frames(asked)
    here = reaching(seen, 0.166)
    monkeypatch.setattr(machine, "measured", lambda: here)
    parts = (stub.part(asked, seen), stub.part(Bound(), stub.NOTHING))
    study = report.Study("smoke", "A stub.", parts)
    said = text_of(report.summary(study))
    many = study.values.known["theory.windows"]["value"]
    assert many == (seen.windows["verdict"] == "valid").sum() > 1
    assert f"nearest of {many} valid windows of the other experiments reaches **16.6 %**" in said
    assert "No window beats its bound." in said and "stands beside" not in said
    monkeypatch.setattr(machine, "measured", lambda: None)
    assert "bandwidth was not measured" in text_of(report.summary(replace(study, values=Values())))


@pytest.mark.parametrize("here", [device(30), None])
def test_why_no_window_stands_beside_its_bound_is_said_once(
    here: Hardware | None, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figure and table miss the same and say it alike, so that the report shows one of them."""
    monkeypatch.setattr(machine, "measured", lambda: here)
    study = report.Study("smoke", "A stub.", (stub.part(Bound(), stub.NOTHING),))
    said = [one.caption for one in report.physics(study) if not isinstance(one, Text)]
    assert said.count(theory_figures.missing(here)) == 1


def test_latency_has_no_bound_and_an_unmeasured_machine_says_so(
    found: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "measured", lambda: None)
    caption = figures.throughput(found).caption
    assert "bandwidth was not measured" in caption and "`70_theory` measures it" in caption
    monkeypatch.setattr(machine, "measured", lambda: reaching(found, 0.5))
    assert "bound" not in set(figures.latency(found).frame["kind"])


@pytest.mark.parametrize(("second", "hidden"), [(1020.0, True), (1100.0, False)])
def test_the_caption_says_whose_bound_is_drawn_and_whose_is_not(
    second: float, hidden: bool
) -> None:
    """One line was seen for two models, and none for the others, under 'the bound'."""
    models = ["gqa-dense", "gqa-moe", "mla-dense", "mla-moe"]
    seen = pd.DataFrame(
        {"arm": models, "model": models, "workload": "short", "level": 4, "verdict": "valid",
         "share": [0.5, 0.1, 0.09, 0.05], "bound_tok_s": [1000.0, second, 1000.0, 1e4],
         "bandwidth_gb_s": 30.0}
    )  # fmt: skip
    said = beside.in_words(seen, device(30))
    assert "Dash-dotted: the bound of memory and arithmetic for GQA · dense and GQA · MoE" in said
    assert ("MoE (in places on each other), from" in said) == hidden
    assert said.endswith(
        " Not drawn for MLA · dense and MLA · MoE: no valid window reaches 10% of theirs."
    )
    alone = beside.in_words(seen.iloc[:2], device(30))
    assert "Not drawn" not in alone


def test_figures_without_bounds_say_how_near_to_one_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = {"models": ["gqa-dense"], "launches": 1, "workloads": ["short:128/64"]}
    sizes = stub.frames(BlockSize.of({**common, "block_sizes": [32, 64]}))
    switches = stub.frames(Aiter.of({**common, "switches": ["compile"]}))
    for found, drawn, others in (
        (sizes, block_size_figures.throughput, block_size_figures.latency),
        (switches, lambda seen: aiter_figures.by_setting(seen, "output_tok_s"),
         lambda seen: aiter_figures.by_setting(seen, "ttft_p50_s")),
    ):  # fmt: skip
        monkeypatch.setattr(machine, "measured", lambda found=found: reaching(found, 0.2))
        seen = beside.windows(found.windows, machine.measured())
        nearest = seen.sort_values("share")["arm"].iloc[-1]
        words = f"No bound is drawn: `{nearest}` comes nearest to its own, with 20.0% of it;"
        assert words in drawn(found).caption and "bound" not in others(found).caption
        monkeypatch.setattr(machine, "measured", lambda: None)
        assert "bound" not in drawn(found).caption


# --- this machine ---------------------------------------------------------------------------------

ANSWER = {
    "memory_bytes": 24e9, "read_bytes_s": [29e9, 30e9, 28e9], "cached_read_bytes_s": [90e9, 80e9],
    "matrix_flop_s": {"bf16": [0.4e12, 0.5e12]}, "library": "made up",
}  # fmt: skip


def test_this_machine_is_measured_once_and_its_repeats_are_kept(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, json.dumps(ANSWER), "")

    monkeypatch.setattr(subprocess, "run", answer)
    assert machine.measured() is None
    first = machine.measure()
    assert (first.bandwidth_gb_s, first.rate_flop_s("bf16")) == (30.0, 0.5e12)  # the best
    assert first.cache_gb_s == 90.0
    assert machine.measure() == machine.measured() == first and len(calls) == 1
    record = json.loads(machine.record_path().read_text())
    assert record["read_bytes_s"] == ANSWER["read_bytes_s"]
    assert machine.record_path().parent == scratch / "data/raw"


def test_a_machine_that_cannot_be_measured_says_why(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = subprocess.CompletedProcess([], 1, "", "MemoryError: no room")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(StudyError, match=r"could not be measured.*no room"):
        machine.measure()
    assert machine.measured() is None


def test_the_probe_reads_and_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", 2**23)
    monkeypatch.setattr(machine, "MATRIX", 64)
    monkeypatch.setattr(machine, "_timed", lambda work, *_: [work() is None, 0.5, 0.25][1:])
    probed = machine._with_numpy()
    assert max(probed["read_bytes_s"]) == 2**23 / 0.25
    assert max(probed["cached_read_bytes_s"]) == 2**22 / 0.25
    assert max(probed["matrix_flop_s"]["fp32"]) == 2 * 64**3 / 0.25


@pytest.mark.parametrize(
    ("nodes", "engines"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"node0": "0-7"}, [0, 1, 2, 3, 4, 5]),
        ({"node0": "0-1,4-5", "node1": "2-3,6-7"}, [0, 1, 4, 5]),
        ({"node10": "0-3", "node2": "4-7"}, [4, 5]),
        ({"node0": "", "node1": "0-7"}, [0, 1, 2, 3, 4, 5]),  # memory without cores
    ],
)
def test_the_engines_cores_are_those_of_one_memory_node(
    nodes: dict[str, str], engines: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, cores in nodes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(cores + "\n")
    monkeypatch.setattr(machine, "NODES", tmp_path)
    assert machine._first_node([0, 1, 2, 3, 4, 5]) == engines


@pytest.mark.parametrize(("repeat_s", "repeats"), [(0.01, machine.REPEATS), (1.5, 3), (9.0, 1)])
def test_a_slow_machine_repeats_less_often(
    repeat_s: float, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [0.0]
    monkeypatch.setattr("study.machine.time.perf_counter", lambda: gone[0])
    found = machine._timed(lambda: gone.__setitem__(0, gone[0] + repeat_s))
    assert found == pytest.approx([repeat_s] * repeats)


# --- the chapter and the notebook -----------------------------------------------------------------


def test_the_chapter_answers_with_the_numbers_of_the_arithmetic(
    found: Frames, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = reaching(found, 0.8)
    monkeypatch.setattr(machine, "measured", lambda: here)
    values = sentences.Values()
    text = " ".join(str(one.text) for one in theory.summary(part(found), values))  # type: ignore[union-attr]
    known = values.known
    devices = [known[f"theory.sparks.{how}"]["value"] for how in ("nominal", "usable", "heads")]
    assert devices == [5, 6, 8]
    assert known["theory.mi355x.weights_gb"]["value"] > 288
    assert known["theory.nearest"]["value"] == pytest.approx(0.8)
    assert "does not fit one MI355X" in text and "No window beats its bound" in text
    monkeypatch.setattr(machine, "measured", lambda: reaching(found, 1.2))
    assert "wrong" in theory.near(part(found), sentences.Values())


def test_estimates_never_pass_their_bound_in_what_is_shown() -> None:
    frame = theory_figures.trade_off_frame(theory.MODEL, ["mi355x", "h200"])
    assert (frame["likely_tok_s_user"] <= frame["tok_s_user"] * (1 + 1e-9)).all()
    devices = theory.devices().data
    assert (devices["nominal"] <= devices["usable"]).all()
    assert (devices["usable"] <= devices["by_heads"]).all()
    assert not theory.devices().shown.isna().any().any()
    row = theory.costs().data.iloc[0]
    assert row["price"] * row["tok_s_device"] * 3600e-6 == pytest.approx(theory.PRICE)


def test_what_a_device_holds_of_the_cache_is_explained_for_fewer_heads_than_devices() -> None:
    table = theory.sizes()
    of = table.data.set_index("model")
    share = of["kv_bytes_per_token_of_8"] / of["kv_bytes_per_token"]
    assert share["qwen3-vl-235b-a22b"] == 1 / 4 and share["llama-3.1-405b"] == 1 / 8
    assert "four KV heads are a quarter each" in table.caption
    shown, data = theory.devices().shown, theory.devices().data
    wider = data["by_heads"] > 8
    assert set(shown.loc[wider, "replicas x devices"]) == {"1 x 16"}


@pytest.mark.parametrize("case", ["nothing asked for", "measured"])
def test_the_notebook_runs_with_and_without_windows(
    case: str, found: Frames, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its cells; no server, no GPU, and where nothing was asked for no engine either."""
    asked, frames = (ASKED, found) if case == "measured" else (Bound(), None)
    here = reaching(found, 0.7)
    monkeypatch.setattr(paths, "ROOT", scratch)
    monkeypatch.setattr(style, "PNG_DPI", 40)  # quick
    monkeypatch.setattr("study.run.run_experiment", lambda _: stub.launches(asked))
    monkeypatch.setattr("study.plan.setup", lambda: stub.SETUP)
    monkeypatch.setattr(machine, "measure", lambda: here)
    monkeypatch.setattr(machine, "measured", lambda: here)
    if frames:
        monkeypatch.setattr("study.chapter.read", lambda *_: part(found))
    reader: Any = nbformat
    content = reader.read(paths.NOTEBOOKS / "70_theory.ipynb", as_version=4)
    shown: list[Any] = []
    namespace: dict[str, Any] = {}
    for cell in (cell for cell in content.cells if cell.cell_type == "code"):
        exec(compile(cell.source, "cell", "exec"), namespace)
        namespace["display"] = lambda *items: shown.extend(items)
        if "parameters" in cell.metadata.get("tags", []) and case == "measured":
            namespace |= {"models": ["gqa-dense-1b"]}
    assert len(shown) > 10 and namespace["seen"].shape[0] == (4 if frames else 0)
    assert (scratch / "figures/70_theory-measured.svg").exists() == bool(frames)
    assert (scratch / "figures/70_theory-trade-off.svg").exists()
