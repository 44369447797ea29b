"""Made-up weights that matter: random, but of a size at which the output depends on the prompt.

The engine's own dummy weights are so small that every prompt gives nearly the same output; no
comparison of outputs could then fail. Small models therefore get a checkpoint of their own, and so
do larger ones on a GPU where outputs are compared.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from study import theory
from study.models import Model

LARGEST_WRITTEN = 200_000_000  # stored parameters; above, the engine's dummy weights have to do,
LARGEST_COMPARED = 8_000_000_000  # but for a comparison of outputs: there a minute is well spent
FILE = "model.safetensors"
MADE_FROM = "made-from"  # beside it: what the file was made from, so that it is made once

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write(model: Model, folder: Path, seed: int, largest: int = LARGEST_WRITTEN) -> bool:
    """Write the checkpoint of a model; False (and no file) above `largest` stored parameters.

    The same model and seed give the same bytes, so a file that is there already is kept. Half
    precision is enough: the engine casts to its own type.
    """
    made_from = folder / MADE_FROM
    wanted = hashlib.sha256(Path(__file__).read_bytes())
    wanted.update(f"{model.model_dump_json()} {seed}".encode())
    fits = theory.parameters(model, active=False) <= largest
    there = made_from.exists() and made_from.read_text() == wanted.hexdigest()
    if fits and there and (folder / FILE).exists():
        return True
    made_from.unlink(missing_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    if not fits:
        return False
    from safetensors.numpy import save_file

    tensors = {name: _tensor(name, shape, seed) for name, shape in shapes(model)}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    made_from.write_text(wanted.hexdigest())  # last: what is there with it is whole
    return True


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if len(shape) == 1:  # norms
        return np.ones(shape, np.float16)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    scale = 1.0 if "embed" in name else shape[1] ** -0.5  # keeps the size of what passes through
    return (random.standard_normal(shape, np.float32) * scale).astype(np.float16)


def shapes(model: Model) -> Shapes:
    """Name and shape of every tensor, as checkpoints of the model's class name them."""
    yield "model.embed_tokens.weight", (model.vocabulary, model.width)
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (model.width,)
        yield f"{prefix}.post_attention_layernorm.weight", (model.width,)
        attention = _gqa(model) if model.attention == "gqa" else _mla(model)
        yield from ((f"{prefix}.self_attn.{name}.weight", shape) for name, shape in attention)
        yield from ((f"{prefix}.mlp.{name}.weight", shape) for name, shape in _feed_forward(model))
    yield "model.norm.weight", (model.width,)
    yield "lm_head.weight", (model.vocabulary, model.width)


def _gqa(model: Model) -> Shapes:
    assert model.head_dim and model.kv_heads
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "q_proj", (queries, model.width)
    yield "k_proj", (keys, model.width)
    yield "v_proj", (keys, model.width)
    yield "o_proj", (model.width, queries)
    yield "q_norm", (model.head_dim,)
    yield "k_norm", (model.head_dim,)


def _mla(model: Model) -> Shapes:
    assert model.kv_rank and model.rope_dim and model.nope_dim and model.value_dim
    yield "q_proj", (model.heads * (model.nope_dim + model.rope_dim), model.width)
    yield "kv_a_proj_with_mqa", (model.kv_rank + model.rope_dim, model.width)
    yield "kv_a_layernorm", (model.kv_rank,)
    yield "kv_b_proj", (model.heads * (model.nope_dim + model.value_dim), model.kv_rank)
    yield "o_proj", (model.width, model.heads * model.value_dim)


def _feed_forward(model: Model) -> Shapes:
    inner, outer = (model.ffn_width, model.width), (model.width, model.ffn_width)
    gated = {"gate_proj": inner, "up_proj": inner, "down_proj": outer}
    if model.feed_forward == "dense":
        yield from gated.items()
        return
    assert model.experts
    yield "gate", (model.experts, model.width)  # the router
    for expert in range(model.experts):
        yield from ((f"experts.{expert}.{name}", shape) for name, shape in gated.items())
