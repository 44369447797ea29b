"""Made-up checkpoints: every tensor that the model class expects, of a size that matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from study import models, theory, weights

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
