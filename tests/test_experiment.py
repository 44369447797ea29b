"""Parameters: what is asked, what is refused and how, and the arms that come of it."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import notebooks, paths, plan, profiles, reproduce, speed, theory
from study.__main__ import main
from study.curves import LEAST_LEVELS
from study.errors import StudyError
from study.experiment import Workload
from study.experiments import (
    EXPERIMENTS,
    Aiter,
    Architecture,
    BlockSize,
    Bound,
    Offload,
    Saturation,
)
from study.search import Search
from study.store import Store

COUNT = st.integers(1, 10_000)


@given(COUNT, st.integers(2, 10_000))
def test_a_workload_reads_back_as_written(given_tokens: int, made: int) -> None:
    workload = Workload.parse(f"short:{given_tokens}/{made}")
    assert (workload.input_tokens, workload.output_tokens) == (given_tokens, made)
    assert Workload.parse(str(workload)) == workload


@pytest.mark.parametrize(
    "text", ["short", "short:128", "short:a/b", "short:128/1", ":1/2", "s:0/2"]
)
def test_a_workload_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(StudyError, match="workloads: must be written name:input/output"):
        Architecture.of({"workloads": [text]})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"levls": [1]}, "must be one of .*levels.* Did you mean 'levels'"),
        ({"levels": [0]}, "levels: .*greater than or equal to 1; it was 0"),
        ({"levels": "many"}, r"levels: must be a list, as in \[1, 16\]; it was 'many'"),
        ({"levels": ["many"]}, "levels: .*integer; it was 'many'"),
        ({"levels": []}, "levels: .*at least 1 item"),
        ({"levels": [4, 4]}, r"levels: must hold each value once; it was \[4, 4\]"),
        ({"launches": 0}, "launches: .*greater than or equal to 1; it was 0"),
        ({"launches": 2.5}, "launches: .*integer; it was 2.5"),
        ({"launches": True}, "launches: .*integer; it was True"),
        ({"steady_s": 0.0}, "steady_s: .*greater than 0; it was 0.0"),
    ],
)
def test_a_bad_parameter_is_named_with_what_is_allowed(
    parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        Architecture.of(parameters)


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        StudyError, match="a model that the study can build must be one of gqa-dense"
    ):
        Architecture.of({"models": ["gqa"]})


def test_text_from_plain_papermill_is_read_as_the_list_it_means() -> None:
    assert Architecture.of({"levels": "[1,16]"}).levels == (1, 16)
    assert Architecture.of({"models": "['mla-moe']"}).models == ("mla-moe",)
    with pytest.raises(StudyError, match=r"it's\.jsonl"):  # read as written, and not there
        Architecture.of({"workloads": """["own:@it's.jsonl/64"]"""})


def test_a_notebook_with_an_unknown_parameter_is_refused() -> None:
    """Papermill injects a name that nobody reads, and only warns."""
    cells = ["import study", "launches = 3\nlevels = [1]", "lanches = 5", "Architecture.from_..."]
    with pytest.raises(StudyError, match=r"'lanches'\. Did you mean 'launches'"):
        Architecture.from_notebook({"In": cells, "launches": 3, "levels": [1], "lanches": 5})


def test_a_notebook_run_again_is_not_disturbed_by_its_own_variables() -> None:
    cells = ["launches = 3", "frames = read(launches)\nprint(frames)", "Architecture.from_..."]
    names = {"In": cells, "launches": 3, "frames": object()}
    assert Architecture.from_notebook(names).launches == 3
    again = ["launches = 2", "experiment = Architecture.from_...(globals())", "launches = 3", "..."]
    assert Architecture.from_notebook({"In": again, "launches": 3}).launches == 3


def test_parameters_may_stand_in_several_cells() -> None:
    cells = ["import study", "seed = 7\nstaedy_s = 4.0", "launches = 3", "Architecture.from_..."]
    names = {"In": cells, "seed": 7, "launches": 3, "staedy_s": 4.0}
    with pytest.raises(StudyError, match=r"'staedy_s'\. Did you mean 'steady_s'"):
        Architecture.from_notebook(names)


def test_only_the_first_depth_sees_every_level() -> None:
    asked = {"depths": [2, 4], "levels": [1, 4, 16], "slope_levels": [1], "models": ["gqa-moe"]}
    shallow, deep = Architecture.of(asked).arms()
    assert [window.level for window in shallow.windows] == [1, 4, 16] * 2
    assert [window.level for window in deep.windows] == [1] * 2
    assert (shallow.factors["layers"], deep.factors["layers"]) == (2, 4)


def test_all_arms_get_the_same_flags() -> None:
    """What differs must be the model alone, and what a whole block of its cache is."""
    arms = Architecture().arms()
    assert len(arms) == 4
    flags = [dict(arm.flags) for arm in arms]
    held = [int(one.pop("kv_cache_memory_bytes")) for one in flags]
    assert all(one == flags[0] for one in flags)
    assert min(held) > 0.99 * max(held)


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_made_of_valid_experiments(name: str) -> None:
    profile = profiles.load(name)
    assert profile.description
    assert set(profile.experiments) <= set(EXPERIMENTS)
    measuring = [one for one in profile.experiments.values() if one.name != Bound.name]
    assert all(one.arms() for one in measuring)  # a bound may be shown without a window


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(StudyError, match=r"one of auto, cpu, gpu, smoke; it was 'smok'\. Did you"):
        profiles.load("smok")


def test_parameters_on_the_command_line() -> None:
    assert notebooks.parse(["levels=[1,16]", "launches=5"]) == {"levels": [1, 16], "launches": 5}
    with pytest.raises(StudyError, match="must be written name=value"):
        notebooks.parse(["launches"])
    with pytest.raises(StudyError, match="value of levels must be YAML"):
        notebooks.parse(["levels=[1"])


def test_an_unknown_notebook_or_parameter_is_refused_before_anything_starts() -> None:
    with pytest.raises(StudyError, match=r"a notebook must be one of .*20_architecture"):
        notebooks.execute("20_architectur", {})
    with pytest.raises(StudyError, match="Did you mean 'launches'"):
        notebooks.execute("20_architecture", {"lanches": 5})


# --- five experiments -----------------------------------------------------------------------------

SETUP: dict[str, Any] = {"engine": {"kind": "cpu"}, "packages": {}, "machine": {}}


@pytest.mark.parametrize("name", profiles.names())
def test_saturation_reads_windows_of_the_families_launches(name: str) -> None:
    profile = profiles.load(name)
    families = plan.launches(profile.experiments["20_architecture"], SETUP)
    curves = plan.launches(profile.experiments["60_saturation"], SETUP)
    assert {one.id for one in curves} < {one.id for one in families}
    assert len({one.arm.model.attention for one in curves}) == 2
    for launch in curves:
        batch = int(launch.arm.flags["max_num_seqs"])
        assert launch.arm.search == Search(batch=batch, ceiling=4 * batch)
        for workload in {window.workload.name for window in launch.arm.windows}:
            of_workload = [w for w in launch.expected_windows if w.workload.name == workload]
            assert 1 in {window.level for window in of_workload}
            assert len(of_workload) >= LEAST_LEVELS


def test_only_saturated_models_search_and_only_at_the_first_depth() -> None:
    given = {"models": ["gqa-dense", "mla-dense"], "depths": [2, 4], "saturated": ["mla-dense"]}
    arms = Architecture.of({**given, "max_num_seqs": 16}).arms()
    assert {arm.name: arm.search for arm in arms if arm.search} == {
        "mla-dense-2": Search(batch=16, ceiling=64)
    }
    lower = Architecture.of({**given, "max_num_seqs": 16, "ceiling": 20}).arms()
    assert [arm.search.ceiling for arm in lower if arm.search] == [20]
    with pytest.raises(StudyError, match="saturated must hold at least one model"):
        Saturation.of({"saturated": []})


def test_the_smoke_profile_is_small() -> None:
    experiments = profiles.load("smoke").experiments
    assert set(experiments) == set(EXPERIMENTS)
    assert len(reproduce.all_launches(profiles.load("smoke"))) <= 16


def test_a_profile_is_narrowed() -> None:
    choice = profiles.Choice("cpu", only=["block_size", "40_offload"], launches=5)
    found = profiles.load(choice).experiments
    assert list(found) == ["30_block_size", "40_offload"]
    assert {one.launches for one in found.values()} == {5}

    models = profiles.load(profiles.Choice("cpu", models=["mla-dense"])).experiments
    assert {arm.model.name for one in models.values() for arm in one.arms()} == {"mla-dense"}

    with pytest.raises(StudyError, match=r"must be one of .*block_size.*'blocksize'.*'block_size'"):
        profiles.load(profiles.Choice("cpu", only=["blocksize"]))
    with pytest.raises(StudyError, match="Did you mean"):
        profiles.load(profiles.Choice("cpu", models=["mla-densee"]))


def test_models_start_no_server_where_the_profile_starts_none() -> None:
    narrowed = profiles.load(profiles.Choice("smoke", models=["mla-dense"])).experiments
    assert not narrowed["70_theory"].arms() and narrowed["20_architecture"].arms()


def test_a_choice_is_said_as_it_was_asked() -> None:
    assert str(profiles.Choice("smoke")) == "PROFILE=smoke"
    asked = profiles.Choice("cpu", ["aiter"], ["gqa-dense", "mla-dense"], 5, "my prompts.jsonl")
    assert str(asked) == (
        "PROFILE=cpu ONLY=aiter MODELS=gqa-dense,mla-dense LAUNCHES=5 PROMPTS='my prompts.jsonl'"
    )


@pytest.mark.parametrize(
    "content",
    [
        "notebooks: [",
        "notebooks: {10_instrument: 3}\ndescription: x",
        "- 1",
        "description: no notebooks",
        "notebooks: 20_architecture\ndescription: x",
    ],
)
def test_a_broken_profile_says_what_it_must_be(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    with pytest.raises(StudyError, match=r"mine\.yaml must be YAML with `description`"):
        profiles.load("mine")


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_launches_are_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--profile", "smoke", "--launches", count]) == 1
    assert f"launches must be at least 1; it was {count}" in capsys.readouterr().err


@pytest.fixture
def analyses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two notebooks that start no server, one of them read after the experiments."""
    found = ["00_known", "80_bounds"]
    every = [*EXPERIMENTS, *found, notebooks.REPORT]
    monkeypatch.setattr(notebooks, "names", lambda: sorted(every))
    monkeypatch.setattr(reproduce, "acquainted", lambda _: nullcontext(lambda: None))
    return found


def test_analyses_run_every_time_in_reading_order(
    analyses: list[str], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(notebooks, "execute", lambda name, given: ran.update({name: dict(given)}))
    monkeypatch.setattr(reproduce, "render", lambda _, path: path)
    monkeypatch.setattr(reproduce, "Store", lambda: Store(scratch / "data/raw"))
    reproduce.reproduce(profiles.Choice("smoke"))
    reading = ["00_known", *EXPERIMENTS, "80_bounds", notebooks.REPORT]
    assert list(ran) == reading
    assert all(not ran[name] for name in analyses) and ran["20_architecture"]["launches"]

    ran.clear()
    reproduce.reproduce(profiles.Choice("smoke", only=["known"]))
    assert list(ran) == ["00_known", notebooks.REPORT]


def test_a_notebook_that_fails_stops_no_other_and_not_the_report(
    analyses: list[str],
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[str] = []

    def execute(name: str, _: object) -> None:
        ran.append(name)
        if name in ("00_known", "30_block_size"):
            raise StudyError(f"{name} failed in cell 3")

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(reproduce, "render", lambda _, path: path)
    monkeypatch.setattr(reproduce, "Store", lambda: Store(scratch / "data/raw"))
    with pytest.raises(StudyError, match="00_known, 30_block_size did not"):
        reproduce.reproduce(profiles.Choice("smoke"))
    assert ran == ["00_known", *EXPERIMENTS, "80_bounds", notebooks.REPORT]
    assert "30_block_size failed in cell 3" in capsys.readouterr().err


def test_only_leaves_analyses_away_unless_it_names_them(analyses: list[str]) -> None:
    assert profiles.load("smoke").analyses == tuple(analyses)
    assert not profiles.load(profiles.Choice("smoke", only=["block_size"])).analyses
    both = profiles.load(profiles.Choice("smoke", only=["block_size", "80_bounds"]))
    assert reproduce.in_reading_order(both) == ["30_block_size", "80_bounds"]


def test_the_plan_names_analyses(analyses: list[str], scratch: Path) -> None:
    with_them = profiles.load("smoke")
    store = Store(scratch / "data/raw")
    said = reproduce.describe(with_them, store)
    assert re.search(r"without a server: +00_known, 80_bounds\n", said)
    none = profiles.load(profiles.Choice("smoke", only=["block_size"]))
    assert re.search(r"without a server: +nothing", reproduce.describe(none, store))


def test_the_plan_follows_what_was_measured_here(
    analyses: list[str], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "slowness", lambda: 1.5)
    profile, store = profiles.load("smoke"), Store(scratch / "data/raw")

    def fitting() -> int:
        said = reproduce.describe(profile, store, budget_s=600.0)
        return int(re.findall(r"within the budget: (\d+) launches", said)[0])

    guessed, launches = fitting(), len(reproduce.all_launches(profile))
    said = reproduce.describe(profile, store, budget_s=600.0)
    assert f"of the launches, {launches - guessed} will be shown as not measured" in said
    ample = reproduce.describe(profile, store, budget_s=1e5)
    assert "which is all" in ample and "not measured" not in ample
    assert "a core of it takes 1.5 times as long" in reproduce.describe(profile, store)
    first, *rest = reproduce.all_launches(profile)
    writer = store.begin(first)
    writer.update(wall_s=3 * first.expected_s)
    writer.end("measured")
    said = reproduce.describe(profile, store)
    assert "pace: 1 launch measured here took 3 times as long as planned" in said
    assert f"still to measure:  {plan.cost(rest).at(3.0)}" in said
    assert 0 < fitting() < guessed


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ("long:4096/64", "at most 4032 tokens"),
        ("short:2/64", "at least 5 tokens, else those of a vocabulary of 512 repeat"),
        ("own:@ids.jsonl/64", r"below the vocabulary of gqa-dense \(512\); prompt 1 has 900"),
        ("own:@long.jsonl/64", "at most 4032 tokens"),
    ],
)
def test_what_a_model_cannot_take_is_said_before_a_server_starts(
    workload: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.jsonl").write_text('{"prompt_token_ids": [5, 900]}\n')
    Path("long.jsonl").write_text('{"prompt": "' + "far too long " * 400 + '"}\n')
    with pytest.raises(StudyError, match=words):
        BlockSize.of({"workloads": [workload]})


def test_prompts_of_ones_own_replace_the_synthetic_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Hello, server"}\n')
    found = profiles.load(profiles.Choice("smoke", prompts=str(path))).experiments
    arms = [arm for name in ("20_architecture", "30_block_size") for arm in found[name].arms()]
    workloads = {str(window.workload) for arm in arms for window in arm.windows}
    assert workloads == {f"own:@{path}/64"}
    parameters = notebooks._plain(dict(found["30_block_size"]))  # what papermill is given
    assert EXPERIMENTS["30_block_size"].of(parameters) == found["30_block_size"]


@pytest.mark.parametrize("model", ["gqa-dense", "mla-dense", "mla-dense-1b"])
@pytest.mark.parametrize("gib", [0.25, 1, 40])
def test_the_cache_has_whole_blocks_of_any_size(model: str, gib: float) -> None:
    """Or its bytes over its tokens would be a byte off what tells the families apart."""
    experiment = Architecture(models=(model,), depths=(32,), kv_cache_gib=gib)
    (arm,) = experiment.arms()
    held, each = int(arm.flags["kv_cache_memory_bytes"]), int(arm.expected["kv_bytes_per_token"])
    assert 0 <= gib * 2**30 - held < 256 * each
    for size in (1, 16, 32, 64, 128):
        assert held % (size * each) == 0


def test_all_modes_of_offload_can_be_given_one_back_end() -> None:
    arms = Offload(modes=("off", "file"), gqa_backend="TRITON_ATTN").arms()
    for arm in arms:
        wanted = "TRITON_ATTN" if arm.factors["attention"] == "gqa" else None
        assert arm.flags.get("attention_backend") == wanted
        assert arm.expected.get("attention_backend") == wanted
    assert not any("attention_backend" in arm.flags for arm in Offload().arms())


def test_offload_needs_a_set_that_memory_cannot_hold() -> None:
    with pytest.raises(StudyError, match="at least twice repeated"):
        Offload.of({"prompts": 20, "repeated": 16})
    with pytest.raises(StudyError, match="exceed the cache"):
        Offload.of({"prompts": 32, "repeated": 16, "prompt_tokens": 64})
    assert Offload.of(notebooks.parse(["modes=[off,file]"])).modes == ("off", "file")
    for arm in Offload().arms():  # the cache is a whole number of blocks, whatever their size
        per_token = theory.kv_bytes_per_token(arm.model)
        assert int(arm.flags["kv_cache_memory_bytes"]) % (256 * per_token) == 0
        cold = arm.windows[0]
        assert cold.requests is not None
        set_tokens = cold.requests * cold.workload.input_tokens
        assert set_tokens * per_token > int(arm.flags["kv_cache_memory_bytes"])


def test_what_is_offloaded_must_have_room_for_all_prompts() -> None:
    large = {"models": ["gqa-dense-1b"], "layers": 16}
    with pytest.raises(StudyError, match=r"offload_gib must hold .* 2\.06 GiB"):
        Offload.of(large)
    with pytest.raises(StudyError, match="at most 4064 tokens"):
        Offload.of({"prompt_tokens": 4096})
    assert Offload.of({**large, "offload_gib": 3}) and Offload.of({**large, "modes": ["file"]})


def test_every_switch_has_its_baseline_in_the_same_experiment() -> None:
    for switches in (["compile"], ["kv_split"], ["aiter"], ["compile", "kv_split", "aiter"]):
        arms = Aiter.of({"switches": switches}).arms()
        names = {arm.name for arm in arms}
        assert {arm.factors["baseline"] for arm in arms} < names
