"""What arithmetic says of a model, beside which the engine's own figures are shown."""

from __future__ import annotations

from study.models import Model

BF16_BYTES = 2


def attention_parameters(model: Model) -> int:
    """Weights of one layer's attention, without norms.

    GQA: query, key, value, output. MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1, without query
    compression): query, joint down-projection of key and value with the shared rotary key,
    up-projection to keys and values, output.
    """
    if model.attention == "gqa":
        assert model.head_dim and model.kv_heads
        return model.width * model.head_dim * 2 * (model.heads + model.kv_heads)
    assert model.kv_rank and model.rope_dim and model.nope_dim and model.value_dim
    query = model.width * model.heads * (model.nope_dim + model.rope_dim)
    down = model.width * (model.kv_rank + model.rope_dim)
    up = model.kv_rank * model.heads * (model.nope_dim + model.value_dim)
    return query + down + up + model.heads * model.value_dim * model.width


def feed_forward_parameters(model: Model, *, active: bool) -> int:
    """Weights of one layer's gated feed-forward (gate, up, down), and the router of a mixture."""
    one = 3 * model.width * model.ffn_width
    if model.feed_forward == "dense":
        return one
    assert model.experts and model.experts_per_token
    return one * (model.experts_per_token if active else model.experts) + (
        model.width * model.experts
    )


def parameters(model: Model, *, active: bool) -> int:
    """Non-embedding weights that a token passes through (`active`), or that are stored."""
    per_layer = attention_parameters(model) + feed_forward_parameters(model, active=active)
    return model.layers * per_layer


def kv_bytes_per_token(model: Model, element_bytes: int = BF16_BYTES) -> int:
    """Bytes of cache that one token needs on one device, all layers, without tensor parallelism.

    GQA keeps a key and a value for each KV head; MLA keeps one compressed vector and one shared
    rotary key (arXiv 2405.04434, table 1).
    """
    if model.attention == "gqa":
        assert model.head_dim and model.kv_heads
        values = 2 * model.kv_heads * model.head_dim
    else:
        assert model.kv_rank and model.rope_dim
        values = model.kv_rank + model.rope_dim
    return model.layers * values * element_bytes


def kv_capacity_tokens(model: Model, cache_bytes: int) -> int:
    """Tokens that a cache of so many bytes can hold, before it is cut into blocks."""
    return cache_bytes // kv_bytes_per_token(model)
