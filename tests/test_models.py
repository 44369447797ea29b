"""Model files: what is refused, what the engine gets, and that the factorial is balanced."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from study import models, paths, theory
from study.errors import StudyError

FAMILIES = [f"{attention}-{ffn}" for attention, ffn in product(("gqa", "mla"), ("dense", "moe"))]
GQA = yaml.safe_load((paths.MODELS / "gqa-moe.yaml").read_text())


@pytest.mark.parametrize("size", ["", "-1b"])
def test_the_families_differ_only_in_what_is_compared(size: str) -> None:
    """Equal width, depth, heads and vocabulary; active weights within 5 %."""
    group = [models.load(family + size) for family in FAMILIES]
    for field in ("width", "layers", "heads", "vocabulary", "context"):
        assert len({getattr(model, field) for model in group}) == 1, field
    assert len({(m.experts, m.experts_per_token) for m in group if m.feed_forward == "moe"}) == 1
    active = [theory.parameters(model, active=True) for model in group]
    assert max(active) / min(active) < 1.05


def test_parameters_of_a_layer_worked_by_hand() -> None:
    gqa, mla = models.load("gqa-dense"), models.load("mla-moe")
    # query and output 256 x 1024 (8 heads of 128), key and value 256 x 512 (4 heads)
    assert theory.attention_parameters(gqa) == 2 * 256 * 1024 + 2 * 256 * 512
    # query 256 x 8 x 96; down 256 x 576; up 512 x 8 x 64; output 256 x 256
    assert theory.attention_parameters(mla) == 196_608 + 147_456 + 262_144 + 65_536
    assert theory.feed_forward_parameters(gqa, active=True) == 3 * 256 * 1280
    assert theory.feed_forward_parameters(mla, active=True) == 2 * 3 * 256 * 720 + 256 * 8
    assert theory.feed_forward_parameters(mla, active=False) == 8 * 3 * 256 * 720 + 256 * 8


def test_cache_of_a_token_worked_by_hand() -> None:
    assert theory.kv_bytes_per_token(models.load("gqa-dense")) == 4 * 2 * 4 * 128 * 2
    assert theory.kv_bytes_per_token(models.load("mla-dense")) == 4 * 576 * 2
    # 1 GiB over 4 layers x 576 x 2 bytes, as the engine was seen to have it (less a part block)
    assert theory.kv_capacity_tokens(models.load("mla-dense"), 2**30) == 233_016


@given(st.integers(1, 64))
def test_weights_and_cache_grow_with_depth(layers: int) -> None:
    for family in FAMILIES:
        one, deep = models.load(family).at_depth(1), models.load(family).at_depth(layers)
        assert theory.parameters(deep, active=True) == layers * theory.parameters(one, active=True)
        assert theory.kv_bytes_per_token(deep) == layers * theory.kv_bytes_per_token(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads.*8 and 3"),
        ({"kv_heads": None}, "kv_heads must be given: attention is gqa"),
        ({"kv_rank": 512}, "kv_rank must be left out: attention is gqa"),
        ({"experts_per_token": 9}, r"experts_per_token must be at most experts \(8\); it was 9"),
        ({"head_dim": 63}, "head_dim must be even"),
        ({"layers": 0}, "layers: .*greater than 0, it was 0"),
        ({"layers": "many"}, "layers: .*integer, it was 'many'"),
        ({"attention": "mqa"}, "attention: .*'gqa' or 'mla', it was 'mqa'"),
        ({"colour": "blue"}, "colour: .*not permitted"),
    ],
)
def test_a_file_that_is_no_model_says_what_is_wrong(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        models.parse("mine", yaml.safe_dump({**GQA, **change}))


def test_text_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(StudyError, match=r"mine\.yaml must be YAML"):
        models.parse("mine", "layers: [")


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(StudyError, match=r"one of deepseek-v3\.2, .*Did you mean 'gqa-dense'"):
        models.load("gqa-dens")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_holds_what_the_engine_reads(family: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = models.load(family)
    folder = models.write_folder(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == model.layers
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == model.vocabulary
    assert all(tokenizer.id_to_token(index) for index in range(model.vocabulary))
    text = "What must be, what was: ü 5 %"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
