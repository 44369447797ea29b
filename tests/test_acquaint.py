"""What the engine learns of its model classes beforehand is what it would have learnt itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from study import acquaint, models, paths, plan
from study.experiments import BlockSize

SETUP: dict[str, Any] = {"engine": {"kind": "cpu"}, "packages": {}, "machine": {}}
GQA, MLA = "Qwen3ForCausalLM", "DeepseekV3ForCausalLM"


def launches(*names: str) -> tuple[plan.Launch, ...]:
    return plan.launches(BlockSize.of({"models": list(names), "launches": 1}), SETUP)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose engine has met no class yet."""
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    return tmp_path / "vllm" / "modelinfos"


def test_the_real_engine_is_acquainted_with_every_class_once(cache: Path) -> None:
    with acquaint.acquainted(launches("gqa-dense", "mla-dense")) as wait:
        wait()
        found = {path.stem.rpartition("-")[2]: path for path in cache.glob("*.json")}
        assert set(found) == {GQA, MLA}
    said = orjson.loads(found[MLA].read_bytes())["modelinfo"]
    assert said["is_text_generation_model"] and said["architecture"] == MLA
    began = time.monotonic()
    with acquaint.acquainted(launches("gqa-dense", "mla-dense")) as wait:
        wait()
    assert time.monotonic() - began < 1  # it knows them all: no process is started


def test_what_it_cannot_look_at_is_left_to_the_servers(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "class_name", lambda _: "NoSuchClass")
    with acquaint.acquainted(launches("gqa-dense")) as wait:
        wait()
    assert not cache.exists()


def test_it_does_not_outlive_whoever_waits_for_it(cache: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        acquaint.acquainted(launches("gqa-dense")),
    ):
        raise KeyboardInterrupt
    time.sleep(0.2)
    assert not cache.exists()
