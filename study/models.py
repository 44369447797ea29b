"""Model architectures as data, and the model folders the engine serves from them.

A YAML file in `study/models/` holds the numbers of one architecture. Of a synthetic one come the
`config.json` and a byte-level tokenizer; weights are made by study.weights, or by the engine.
A published model brings what its card says; arithmetic is done on it, but nobody serves it here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from study import paths
from study.errors import StudyError, problem, unknown_name

GQA_ONLY = ("kv_heads", "head_dim")
MLA_ONLY = ("kv_rank", "rope_dim", "nope_dim", "value_dim")
MOE_ONLY = ("experts", "experts_per_token")
# A model with any of these is somebody's: it can be reckoned, but the study cannot build it.
PUBLISHED_ONLY = (
    *("q_rank", "index_heads", "index_dim", "index_top", "shared_experts", "dense_layers"),
    *("dense_ffn_width", "mtp_layers", "vision_parameters", "card"),
)
UNUSED_IF_DEFAULT = (*PUBLISHED_ONLY, "source", "checkpoints")
SPECIAL = ("<s>", "</s>")

Part = Literal[
    "attention", "indexer", "router", "dense", "shared", "experts", "embedding", "head", "vision"
]


class Card(BaseModel):
    """What a model's own card says of its size, and which parts it counts to come to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: int
    total_counts: tuple[Part, ...]
    active: int
    active_counts: tuple[Part, ...]
    source: str


class Checkpoint(BaseModel):
    """A published checkpoint: the parts that are stored in its format (the rest is bf16)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    quantised: tuple[Part, ...]
    bytes: int | None = None  # where a source states them
    includes_mtp: bool = False  # whether these bytes hold the layers for multi-token prediction


class Model(BaseModel):
    """The numbers that define one decoder; every size is a count, never bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    description: str = ""
    attention: Literal["gqa", "mla"]
    feed_forward: Literal["dense", "moe"]
    layers: int = Field(gt=0)
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    ffn_width: int = Field(gt=0)  # of one expert in a mixture
    vocabulary: int = Field(ge=512)  # 256 bytes and what marks a text, rounded up
    context: int = Field(default=4096, gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    kv_rank: int | None = Field(default=None, gt=0)
    rope_dim: int | None = Field(default=None, gt=0)
    nope_dim: int | None = Field(default=None, gt=0)
    value_dim: int | None = Field(default=None, gt=0)
    experts: int | None = Field(default=None, gt=0)
    experts_per_token: int | None = Field(default=None, gt=0)
    source: str = ""  # of these numbers
    q_rank: int | None = Field(default=None, gt=0)  # MLA's compressed query
    index_heads: int | None = Field(default=None, gt=0)  # sparse attention: of the indexer
    index_dim: int | None = Field(default=None, gt=0)
    index_top: int | None = Field(default=None, gt=0)  # tokens that it leaves to attend to
    shared_experts: int = Field(default=0, ge=0)  # for every token, beside the routed ones
    dense_layers: int = Field(default=0, ge=0)  # the first layers, which have no experts
    dense_ffn_width: int | None = Field(default=None, gt=0)
    mtp_layers: int = Field(default=0, ge=0)  # for multi-token prediction, beyond `layers`
    vision_parameters: int = Field(default=0, ge=0)
    card: Card | None = None
    checkpoints: dict[str, Checkpoint] = {}  # by format

    @model_serializer(mode="wrap")
    def _as_identity(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what only published models have: an unused option is no other launch."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in plain(self).items()
            if name not in UNUSED_IF_DEFAULT or getattr(self, name) != fields[name].default
        }

    @property
    def synthetic(self) -> bool:
        """Whether the study can build it, and so serve it."""
        return not any(getattr(self, name) for name in PUBLISHED_ONLY)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._needs(GQA_ONLY, self.attention == "gqa", f"attention is {self.attention}")
        self._needs(MLA_ONLY, self.attention == "mla", f"attention is {self.attention}")
        self._needs(MOE_ONLY, self.feed_forward == "moe", f"feed_forward is {self.feed_forward}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, so that every group has the same size; "
                f"they were {self.heads} and {self.kv_heads}"
            )
        if self.head_dim and self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding); it was {self.head_dim}")
        if self.experts and self.experts_per_token and self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token must be at most experts ({self.experts}); "
                f"it was {self.experts_per_token}"
            )
        if self.dense_layers and (not self.experts or not self.dense_ffn_width):
            raise ValueError("dense_layers are those of a mixture, and need dense_ffn_width")
        if self.card and not self.source:
            raise ValueError("a model with a card must say the source of its other numbers")
        return self

    def _needs(self, names: tuple[str, ...], wanted: bool, because: str) -> None:
        for name in names:
            if (getattr(self, name) is not None) != wanted:
                must = "must be given" if wanted else "must be left out"
                raise ValueError(f"{name} {must}: {because}")

    def at_depth(self, layers: int) -> Model:
        """The same decoder with another number of layers."""
        return Model(**{**self.model_dump(), "layers": layers})


def names() -> list[str]:
    """Every model the study knows."""
    return sorted(path.stem for path in paths.MODELS.glob("*.yaml"))


def synthetic(name: str) -> Model:
    """The model called `name`, which an experiment can measure; a StudyError lists those."""
    if name not in names() or not load(name).synthetic:
        choices = [known for known in names() if load(known).synthetic]
        raise unknown_name("a model that the study can build", name, choices)
    return load(name)


def load(name: str) -> Model:
    """The model called `name`; a StudyError lists the known ones, or says what its file breaks."""
    path = paths.MODELS / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("a model", name, names())
    return parse(name, path.read_text())


def parse(name: str, text: str) -> Model:
    """A model from the text of its YAML file."""
    try:
        return Model(name=name, **yaml.safe_load(text))
    except ValidationError as error:
        problems = "; ".join(problem(dict(item)) for item in error.errors())
        raise StudyError(f"the model file {name}.yaml is not a model: {problems}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise StudyError(
            f"the model file {name}.yaml must be YAML of the form `key: value`: {error}"
        ) from error


def write_folder(model: Model, folder: Path) -> Path:
    """Write the folder that the engine serves: `config.json` and a tokenizer, no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(model), indent=1))
    write_tokenizer(model.vocabulary, folder)
    if model.attention == "mla":
        (folder / "configuration_without_shared_experts.py").write_text(WITHOUT_SHARED_EXPERTS)
    return folder


def class_name(model: Model) -> str:
    """The engine's model class that serves it, as `config.json` names it."""
    return str(config(model)["architectures"][0])  # type: ignore[index]


def config(model: Model) -> dict[str, object]:
    """The `config.json` of a model: what the engine's own model classes read."""
    common: dict[str, object] = {
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    return common | (_gqa(model) if model.attention == "gqa" else _mla(model))


def _gqa(model: Model) -> dict[str, object]:
    attention = {"num_key_value_heads": model.kv_heads, "head_dim": model.head_dim}
    if model.feed_forward == "dense":
        return attention | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "intermediate_size": model.ffn_width,
        }
    return attention | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": model.ffn_width,
        "moe_intermediate_size": model.ffn_width,
        "num_experts": model.experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
    }


def _mla(model: Model) -> dict[str, object]:
    dense = model.feed_forward == "dense"
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "auto_map": {
            "AutoConfig": "configuration_without_shared_experts.WithoutSharedExpertsConfig"
        },
        "num_key_value_heads": model.heads,
        "q_lora_rank": None,
        "kv_lora_rank": model.kv_rank,
        "qk_nope_head_dim": model.nope_dim,
        "qk_rope_head_dim": model.rope_dim,
        "v_head_dim": model.value_dim,
        "intermediate_size": model.ffn_width,
        "moe_intermediate_size": model.ffn_width,
        "first_k_dense_replace": model.layers if dense else 0,
        "moe_layer_freq": 1,
        "n_shared_experts": None,
        "n_routed_experts": model.experts or 1,
        "num_experts_per_tok": model.experts_per_token or 1,
        # As the GQA mixture routes: softmax over all experts, best k, renormalised.
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }


# DeepSeek-V3's configuration class insists on an integer here, and the engine takes 0 for a
# shared expert of no width, which it then cannot run. Its model class does accept None.
WITHOUT_SHARED_EXPERTS = '''"""DeepSeek-V3's configuration, allowed to have no shared experts."""

from transformers import DeepseekV3Config

if hasattr(DeepseekV3Config, "__dataclass_fields__"):
    from huggingface_hub.dataclasses import strict
else:  # before transformers 5, whose classes check types

    def strict(it):
        return it


@strict
class WithoutSharedExpertsConfig(DeepseekV3Config):
    n_shared_experts: int | None = None
'''


def tokenizer(vocabulary: int) -> Any:
    """A byte-level tokenizer (tokenizers.Tokenizer) whose every id has a text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = (first + second for first in alphabet for second in alphabet)
    tokens = [*alphabet, *SPECIAL]
    tokens += [next(pairs) for _ in range(vocabulary - len(tokens))]
    vocab = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


def write_tokenizer(vocabulary: int, folder: Path) -> None:
    """The tokenizer's files, as the engine reads them."""
    tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
