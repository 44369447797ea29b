"""Made-up checkpoints: every tensor that the model class expects, of a size that matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from study import engine, models, platform, theory, weights
from study.platform import Kind

SMALL = ("gqa-dense", "gqa-moe", "mla-dense", "mla-moe")


@pytest.mark.parametrize("name", SMALL)
def test_the_shapes_add_up_to_what_arithmetic_says(name: str) -> None:
    model = models.load(name).at_depth(3)
    matrices = sum(
        int(np.prod(shape))
        for tensor, shape in weights.shapes(model)
        if len(shape) == 2 and "embed" not in tensor and "lm_head" not in tensor
    )
    assert matrices == theory.parameters(model, active=False)


def test_the_same_seed_gives_the_same_file_and_another_another(tmp_path: Path) -> None:
    model = models.load("mla-moe").at_depth(1)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        assert weights.write(model, tmp_path / name, seed)
    files = {name: (tmp_path / name / weights.FILE).read_bytes() for name in ("one", "again")}
    assert files["one"] == files["again"]
    one, other = (load_file(tmp_path / name / weights.FILE) for name in ("one", "other"))
    assert not np.array_equal(one["lm_head.weight"], other["lm_head.weight"])


def test_weights_are_made_once_and_anew_where_anything_differs(tmp_path: Path) -> None:
    model = models.load("gqa-dense").at_depth(1)

    def made(seed: int, depth: int = 1) -> int:
        assert weights.write(model.at_depth(depth), tmp_path, seed)
        return (tmp_path / weights.FILE).stat().st_mtime_ns

    first = made(1)
    assert made(1) == first
    assert made(2) > first and made(2, depth=2) > first
    (tmp_path / weights.MADE_FROM).unlink()  # as when it was killed on the way
    before = (tmp_path / weights.FILE).stat().st_mtime_ns
    assert made(2, depth=2) > before


@pytest.mark.parametrize(
    ("kind", "compared", "written"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_a_large_model_gets_weights_where_a_gpu_compares_its_outputs(
    kind: Kind, compared: bool, written: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LARGEST_WRITTEN", 1000)  # so that a small model is a large one
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("vllm", "1.0", kind))
    folder = engine.model_folder(models.load("gqa-dense").at_depth(1), 1, compared)
    assert (folder / weights.FILE).exists() == written


def test_what_passes_through_keeps_its_size(tmp_path: Path) -> None:
    model = models.load("gqa-dense").at_depth(1)
    weights.write(model, tmp_path, 0)
    tensors = load_file(tmp_path / weights.FILE)
    signal = np.random.default_rng(0).standard_normal(model.width)
    for name in ("q_proj", "v_proj"):
        passed = tensors[f"model.layers.0.self_attn.{name}.weight"].astype(float) @ signal
        assert 0.8 < passed.std() < 1.25


def test_a_large_model_has_no_file_and_a_stale_one_is_removed(tmp_path: Path) -> None:
    (tmp_path / weights.FILE).write_text("stale")
    assert not weights.write(models.load("gqa-moe-1b"), tmp_path, 0)
    assert not (tmp_path / weights.FILE).exists()
