"""`study audit` on files, folders and tables: verdicts, claims, exit statuses, what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from audit_results import Item, Result, call, closed_loop, items, said, save, summary_only

from study import load
from study.audit import command as audit
from study.client import Load, run_inline
from study.nullserver import serve

REPOSITORY = Path(__file__).resolve().parents[1]
EXTERNAL = REPOSITORY / "data" / "external"


# ------------------------------------------------------------------------------ the command


def test_json_has_the_fields_that_were_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (item,) = items(capsys, save(tmp_path / "a.json", closed_loop()))
    assert set(item) == {"file", "format", "verdict", "reasons"}
    assert (item["file"], item["verdict"]) == (str(tmp_path / "a.json"), "valid")
    for reason in item["reasons"]:
        assert set(reason) == {"gate", "scope", "verdict", "observed", "limit", "text"}
        assert reason["verdict"] in ("pass", "fail", "cannot judge")
        assert reason["scope"] in ("window", "metric", "claim")


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(tmp_path / "good.json", closed_loop())
    junk = tmp_path / "junk.json"
    junk.write_text('{"a": 1}')
    call(good, status=0)
    capsys.readouterr()
    found = items(capsys, tmp_path, status=1)
    assert [item["verdict"] for item in found] == ["valid", "undecided"]
    assert "no format that is known" in said(found[1], "readable")["text"]
    call(tmp_path / "none.json", status=1)
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        call()
    assert wrong.value.code == 2


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, status=1)
    assert "no file with .json" in capsys.readouterr().err


def test_a_path_that_cannot_be_examined_is_refused_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    call("x" * 300 + ".json", status=1)
    assert "cannot be opened: File name too long" in capsys.readouterr().err


def test_what_a_folder_does_not_show_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.json", "locked.json", ".hidden.json", ".cache/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, closed_loop())
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.name == "locked.json":
            raise PermissionError
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert [Path(item["file"]).name for item in items(capsys, tmp_path)] == ["a.json"]


def test_a_name_that_is_no_text_is_written_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / os.fsdecode(b"caf\xe9.json"), closed_loop())
    (item,) = items(capsys, tmp_path)
    assert item["file"].endswith(r"caf\udce9.json")
    call(tmp_path)
    assert r"caf\udce9.json" in capsys.readouterr().out


def test_a_reader_who_leaves_early_sees_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save(tmp_path / "a.json", closed_loop())
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        call(saved)
        call(saved, "--json")
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_help_names_every_column_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    text = capsys.readouterr().out
    assert "tokens_per_request" in text and "e2e_p99_s" in text and "exit status" in text


def test_text_names_verdicts_reasons_and_the_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "good.json", closed_loop())
    save(tmp_path / "capped.json", closed_loop(16, slots=8, seed=1))
    call(tmp_path)
    text = capsys.readouterr().out
    assert "2 files: 1 valid, 1 void, 0 undecided." in text
    assert "of 16 requests were in flight" in text and "client_headroom" in text


def test_it_runs_without_the_engine(tmp_path: Path) -> None:
    saved = save(tmp_path / "a.json", closed_loop())
    code = (
        "import sys\n"
        "from study.audit import command as audit\n"
        "import argparse\n"
        "parser = argparse.ArgumentParser()\n"
        "audit.add_arguments(parser)\n"
        "status = audit.main(parser.parse_args())\n"
        "sys.exit(status or any(name in sys.modules for name in ('vllm', 'torch', 'aiohttp')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)],
        capture_output=True, text=True, timeout=60, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid")


def test_our_own_files_can_be_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(ttft_ms=10, itl_ms=3) as base_url:
        asked = Load(
            base_url=base_url, model="null", concurrency=4, requests=40,
            input_tokens=16, output_tokens=6, vocabulary=1000,
        )  # fmt: skip
        saved = save(tmp_path / "ours.json", load.detailed(asked, run_inline(asked)))
    (item,) = items(capsys, saved)
    for gate in ("conservation", "times", "errors", "lengths_delivered"):
        assert said(item, gate)["verdict"] == "pass", said(item, gate)["text"]


# --------------------------------------------------------------------------- several files


def test_the_same_result_under_two_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = closed_loop()
    save(tmp_path / "a.json", result)
    save(tmp_path / "b.json", summary_only(result) | {"label": "another", "std_ttft_ms": None})
    save(tmp_path / "c.json", result | {"label": "relabelled", "date": "20260101-000000"})
    save(tmp_path / "d.json", closed_loop(seed=1))
    found = {Path(item["file"]).name: item for item in items(capsys, tmp_path)}
    verdicts = {name: said(item, "not_repeated")["verdict"] for name, item in found.items()
                if name.endswith(".json")}  # fmt: skip
    assert verdicts == {"a.json": "pass", "b.json": "pass", "c.json": "fail", "d.json": "pass"}
    assert found["c.json"]["verdict"] == "void"
    assert "a.json" in said(found["c.json"], "not_repeated")["text"]


def test_a_file_named_twice_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = save(tmp_path / "a.json", closed_loop())
    assert [item["verdict"] for item in items(capsys, saved, tmp_path, saved)] == ["valid"]


def test_a_link_is_the_file_that_it_leads_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save(tmp_path / "run3.json", closed_loop())
    (tmp_path / "latest.json").symlink_to(saved.name)
    (item,) = items(capsys, tmp_path)
    assert (Path(item["file"]).name, item["verdict"]) == ("run3.json", "valid")


def test_of_one_run_the_file_with_its_detail_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = closed_loop()
    save(tmp_path / "run.json", summary_only(result))
    save(tmp_path / "run_detailed.json", result)
    save(tmp_path / "run_detailed_copy.json", result)
    verdicts = [item["verdict"] for item in items(capsys, tmp_path)[:3]]  # by name
    assert verdicts == ["void", "valid", "void"]


def test_mean_lengths_that_vary_a_little_do_not_part_the_levels_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, tokens in ((2, 40), (16, 41), (4, 60)):
        result = summary_only(closed_loop(level, 200, slots=2, seed=level, output_tokens=tokens))
        save(tmp_path / f"a_c{level}.json", result)
    together = items(capsys, tmp_path)[-1]
    assert "a_c*, made-up, 128 in, 40 to 41 out" in said(together, "distinct_levels")["text"]
    call(tmp_path)
    text = capsys.readouterr().out
    assert "1 file with a level is in no curve" in text and "mean lengths within 5%" in text
    for name in ("a_c4.json", "a_c16.json"):  # of two levels both are joined, one needs no other
        (tmp_path / name).unlink()
        call(tmp_path)
        assert "in no curve" not in capsys.readouterr().out


def test_files_named_one_by_one_make_a_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve(tmp_path, {2: 2, 16: 2})
    *_, together = items(capsys, *sorted(tmp_path.iterdir()))
    assert said(together, "distinct_levels")["verdict"] == "fail"


def test_levels_one_after_the_other_in_one_file_make_a_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [summary_only(closed_loop(level, 200, slots=2, seed=level)) for level in (2, 16)]
    (item,) = items(capsys, save(tmp_path / "a.jsonl", *results))
    assert said(item, "distinct_levels")["verdict"] == "fail"
    assert item["verdict"] == "void"
    assert said(item, "level_reached", "result 2, level 16:")["verdict"] == "fail"


def test_a_summary_with_nulls_is_still_the_same_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = summary_only(closed_loop()) | {"std_ttft_ms": None}
    save(tmp_path / "a.json", result)
    save(tmp_path / "b.json", result)
    assert [item["verdict"] for item in items(capsys, tmp_path)[:2]] == ["undecided", "void"]


def curve(folder: Path, levels: dict[int, int]) -> None:
    """A file a level, each with the requests in flight that it really had."""
    for seed, (level, slots) in enumerate(levels.items()):
        result = closed_loop(level, 60 * slots, slots=slots, seed=seed)
        save(folder / f"tp8_conc{level}.json", result)


# ------------------------------------------------------------------- what others published


def test_the_117_files_of_inferencex(capsys: pytest.CaptureFixture[str]) -> None:
    """All undecided. They agree with themselves; no level is refuted, since rate x p99 is 1.07
    to 2.08 times it; none is confirmed, since a summary cannot. Only the 20 at levels 48 and 64
    have the 368 requests that a p99 needs."""
    *files, folder = items(capsys, EXTERNAL)
    assert len(files) == 117
    assert Counter(item["verdict"] for item in files) == {"undecided": 117}
    verdicts = Counter(
        (reason["gate"], reason["verdict"]) for item in files for reason in item["reasons"]
    )
    assert verdicts == {
        ("level_reached", "cannot judge"): 117,
        ("steady_part", "cannot judge"): 117,
        ("lengths_delivered", "cannot judge"): 117,
        ("errors", "pass"): 117,
        ("conservation", "pass"): 117,
        ("times", "pass"): 117,
        ("not_repeated", "pass"): 117,
        ("percentile_supported", "fail"): 97,
        ("percentile_supported", "pass"): 20,
    }
    over = [said(item, "level_reached")["observed"] / level_of(item) for item in files]
    assert [min(over), max(over)] == pytest.approx([1.067, 2.078], abs=1e-3)
    claimed = Counter((reason["gate"], reason["verdict"]) for reason in folder["reasons"])
    assert claimed[("distinct_levels", "fail")] == 0
    assert claimed[("saturation", "pass")] == 0


def level_of(item: Item) -> float:
    stored: Result = json.loads(Path(item["file"]).read_text())
    return float(stored["max_concurrency"])


@pytest.mark.parametrize("key", ["output_throughput", "duration", "p99_tpot"])
def test_an_edited_copy_of_one_of_them_is_void(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted(EXTERNAL.rglob("*.json"))[0]
    stored: Result = json.loads(first.read_text())
    changed = stored | {key: -stored[key] if key == "p99_tpot" else stored[key] * 1.2}
    (item,) = items(capsys, save(tmp_path / "a.json", changed))
    assert item["verdict"] == "void"


# ------------------------------------------------------------------------------------ speed


def test_memory_does_not_grow_with_the_gaps_and_time_only_with_their_bytes(tmp_path: Path) -> None:
    """Four times the chunks, the same requests: the same memory, a piece at a time. The whole of
    it is in benchmarks/audit.py: 100 MB/s on one core; half of that is asked of a busy one."""

    def cost(chunks: int) -> tuple[int, float]:
        path = save(tmp_path / f"{chunks}.json", closed_loop(requests=2000, output_tokens=chunks))
        size_mb = path.stat().st_size / 1e6
        tracemalloc.start()
        found = audit.audit_file(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        began_s = time.process_time()
        audit.audit_file(path)
        assert found.parts[0][0].verdict == "valid"
        return peak_bytes, size_mb / (time.process_time() - began_s)

    (few, _), (many, mb_s) = cost(64), cost(256)
    assert many < 1.5 * few
    assert mb_s > 50
