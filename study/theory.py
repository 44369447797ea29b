"""What arithmetic says of a model: its parameters, part by part, and the cache of a token.

Beside these figures the engine's own are shown. Norms, biases and quantisation scales outside of
a format are left out: together they are below 0.1 % of any model here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from study.models import Model, Part

BF16_BYTES = 2
PARTS: tuple[Part, ...] = get_args(Part)
BESIDE: tuple[Part, ...] = ("embedding", "head", "vision")  # the layers
INDEX_SCALE_BLOCK, INDEX_SCALE_BYTES = 128, 4  # the indexer's keys: 8 bits, a float a block


def attention_parameters(model: Model) -> int:
    """Weights of one layer's attention, without norms and without a sparse indexer.

    GQA: query, key, value, output. MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1): query, which
    may be compressed to `q_rank`, joint down-projection of key and value with the shared rotary
    key, up-projection to keys and values, output.
    """
    if model.attention == "gqa":
        assert model.head_dim and model.kv_heads
        return model.width * model.head_dim * 2 * (model.heads + model.kv_heads)
    assert model.kv_rank and model.rope_dim and model.nope_dim and model.value_dim
    queries = model.heads * (model.nope_dim + model.rope_dim)
    query = model.q_rank * (model.width + queries) if model.q_rank else model.width * queries
    down = model.width * (model.kv_rank + model.rope_dim)
    up = model.kv_rank * model.heads * (model.nope_dim + model.value_dim)
    return query + down + up + model.heads * model.value_dim * model.width


def indexer_parameters(model: Model) -> int:
    """Weights of one layer's sparse indexer (DeepSeek-V3.2-Exp, `inference/model.py`, `Indexer`):
    queries from the compressed query, one key, and a weight a head; 0 where there is none."""
    if not (model.index_heads and model.index_dim):
        return 0
    queries = (model.q_rank or model.width) * model.index_heads * model.index_dim
    return queries + model.width * (model.index_dim + model.index_heads)


def feed_forward_parameters(model: Model, *, active: bool) -> int:
    """Weights of one layer's gated feed-forward (gate, up, down), and the router of a mixture.

    Of a mixture that begins with dense layers, this is a layer with experts.
    """
    one = 3 * model.width * model.ffn_width
    if model.feed_forward == "dense":
        return one
    assert model.experts and model.experts_per_token
    routed = model.experts_per_token if active else model.experts
    return one * (routed + model.shared_experts) + model.width * model.experts


def parts(model: Model, *, active: bool) -> dict[Part, int]:
    """Parameters by part: those that a token passes through (`active`), or those stored.

    A token's pass reads one row of the embedding and the whole of the head. The layers for
    multi-token prediction are no part of the main model; see `mtp_parameters`.
    """
    mixture = model.layers - model.dense_layers if model.feed_forward == "moe" else 0
    one = 3 * model.width * model.ffn_width
    routed = (model.experts_per_token if active else model.experts) or 0
    dense_width = model.dense_ffn_width or model.ffn_width
    return {
        "attention": model.layers * attention_parameters(model),
        "indexer": model.layers * indexer_parameters(model),
        "router": mixture * model.width * (model.experts or 0),
        "dense": (model.layers - mixture) * 3 * model.width * dense_width,
        "shared": mixture * model.shared_experts * one,
        "experts": mixture * routed * one,
        "embedding": model.vocabulary * model.width,
        "head": model.vocabulary * model.width,
        "vision": model.vision_parameters,
    }


def parameters(model: Model, *, active: bool) -> int:
    """Weights of the layers that a token passes through (`active`), or that are stored."""
    known = parts(model, active=active)
    return sum(size for part, size in known.items() if part not in BESIDE)


def counted(model: Model, counts: Sequence[Part], *, active: bool) -> int:
    """Parameters of some parts, as a model's card counts them."""
    known = parts(model, active=active)
    return sum(known[part] for part in counts)


def read_parameters(model: Model) -> int:
    """Weights that a decoding step of one token must read: its layers and the head."""
    return parameters(model, active=True) + parts(model, active=True)["head"]


def mtp_parameters(model: Model) -> int:
    """Weights of the layers for multi-token prediction, without their copies of embedding and head
    (DeepSeek-V3, `README_WEIGHTS.md`): a whole layer, and the projection that joins its inputs."""
    layer = attention_parameters(model) + indexer_parameters(model)
    layer += feed_forward_parameters(model, active=False) + 2 * model.width**2
    return model.mtp_layers * layer


def kv_bytes_per_token(
    model: Model, element_bytes: int = BF16_BYTES, tensor_parallel: int = 1
) -> int:
    """Bytes of cache that one token needs on each device, all layers.

    GQA keeps a key and a value for each KV head, which tensor parallelism shares out until each
    device has one; from there on they are replicated. MLA keeps one compressed vector and one
    shared rotary key (arXiv 2405.04434, table 1), which have no heads to share out: every device
    holds them whole. A sparse indexer keeps its own keys in 8 bits beside them.
    """
    if model.attention == "gqa":
        assert model.head_dim and model.kv_heads
        heads = -(-model.kv_heads // tensor_parallel)
        return model.layers * 2 * heads * model.head_dim * element_bytes
    assert model.kv_rank and model.rope_dim
    return model.layers * (
        (model.kv_rank + model.rope_dim) * element_bytes + _index_key_bytes(model)
    )


def _index_key_bytes(model: Model) -> int:
    dim = model.index_dim or 0
    return dim + dim // INDEX_SCALE_BLOCK * INDEX_SCALE_BYTES


def kv_bytes_read(
    model: Model,
    context_tokens: float,
    element_bytes: int = BF16_BYTES,
    tensor_parallel: int = 1,
) -> float:
    """Bytes of cache that a decoding step reads on each device for one request of this length.

    All of it; sparse attention reads every index key, but only `index_top` tokens of the rest.
    """
    whole = kv_bytes_per_token(model, element_bytes, tensor_parallel)
    keys = model.layers * _index_key_bytes(model)
    attended = min(context_tokens, model.index_top or context_tokens)
    return attended * (whole - keys) + context_tokens * keys


def kv_capacity_tokens(model: Model, cache_bytes: int) -> int:
    """Tokens that a cache of so many bytes can hold, before it is cut into blocks."""
    return cache_bytes // kv_bytes_per_token(model)
