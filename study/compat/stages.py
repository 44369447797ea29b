"""What the engine would do with one configuration, stage by stage, in its own code.

parser -> platform (may change the block size) -> selector (which back end) -> platform again
-> the back end's own constructor (heads, KV dtype) -> kernel block size.
The first stage that refuses decides; a stage that can't be decided makes the answer unknown.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args

from study.compat.devices import Device, boot, planted_config
from study.compat.source import Tree
from study.compat.standin import Planted, Said, Unknown
from study.compat.steps import Evidence, NotDerived, Refused, call, doubts, place, steps

ALLOWED, OVERRIDDEN, REFUSED, UNKNOWN = "allowed", "overridden", "refused", "unknown"
DTYPE = "torch.bfloat16"
GQA_GROUP = 8  # query heads per KV head
LATENT = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "qk_head_dim": 192,
    "v_head_dim": 128,
}
INDEXER = "vllm.v1.attention.backends.mla.indexer.DeepseekV32IndexerBackend"


@dataclass(frozen=True)
class Family:
    """An attention family as the selector sees it. head_size: of one KV entry, in elements."""

    name: str
    head_size: int
    mla: bool
    sparse: bool = False

    def kv_heads(self, heads: int) -> int:
        return 1 if self.mla else max(1, heads // GQA_GROUP)

    @property
    def facts(self) -> dict[str, Any]:
        """What the model's own configuration says, as far as back ends ask."""
        if not self.mla:
            return {"model_type": "llama"}
        sparse = {"index_topk": 2048} if self.sparse else {}
        return {"model_type": "deepseek_v32" if self.sparse else "deepseek_v3", **LATENT, **sparse}


FAMILIES = {
    "gqa": Family("gqa", head_size=128, mla=False),  # as in Llama and Qwen
    "mla": Family("mla", head_size=576, mla=True),  # 512 latent + 64 rotary: DeepSeek, Kimi
    "mla-sparse": Family("mla-sparse", head_size=576, mla=True, sparse=True),  # DeepSeek V3.2
}


@dataclass(frozen=True)
class Question:
    """backend: as in `--attention-backend`, "" for none named. block_size: None for no flag."""

    family: Family
    backend: str
    block_size: int | None
    kv_dtype: str
    heads: int


@dataclass(frozen=True)
class Answer:
    """block_size: what the KV cache would run, in tokens; kernel_block: what its kernels read."""

    outcome: str
    stage: str
    backend: str = ""
    block_size: int | None = None
    kernel_block: int | None = None
    words: str = ""
    evidence: str = ""


class Engine:
    """One version of the engine on one planted device."""

    def __init__(self, tree: Tree, device: Device, facts: Mapping[str, Any] | None = None) -> None:
        self.tree, self.device = tree, device
        self._config: Any = None
        here = {
            f"vllm.config{module}.{name}": self._current
            for module in ("", ".vllm")
            for name in ("get_current_vllm_config", "get_current_vllm_config_or_none")
        }
        self.loader, self.platform = boot(tree, device, {**here, **(facts or {})})
        self.registry = self.loader.resolve(
            "vllm.v1.attention.backends.registry.AttentionBackendEnum"
        )
        self.cache = self.loader.module("vllm.config.cache")

    def backends(self, family: Family) -> tuple[str, ...]:
        """The back ends that this platform's own source names, of this family."""
        named = self.tree.text(f"vllm/platforms/{self.device.kind}.py")
        return tuple(
            name
            for name in self.registry.__members__
            if f"AttentionBackendEnum.{name}" in named.replace("\n", "")
            and self._is_of(name, family)
        )

    def answer(self, question: Question) -> Answer:
        """What the engine would do."""
        self.loader.log.said.clear()
        asked = _Course(self, question)
        try:
            return asked.run()
        except Refused as refused:
            found = refused.evidence
            return Answer(
                REFUSED, asked.stage, asked.backend_name, words=found.words, evidence=str(found)
            )
        except NotDerived as error:
            return Answer(UNKNOWN, asked.stage, asked.backend_name, words=str(error))

    def plain(self) -> None:
        """Configure for a question of no consequence, as back ends may look at what is current."""
        self.configure(Question(FAMILIES["gqa"], "", None, "auto", GQA_GROUP))

    def _current(self, *_: object) -> Any:
        return self._config

    def _is_of(self, name: str, family: Family) -> bool:
        try:
            found = call(self.loader, self.registry[name].get_class)
            mla = call(self.loader, found.is_mla) or "MLA" in name
            sparse = call(self.loader, found.is_sparse) or "SPARSE" in name
        except (NotDerived, Refused):
            return False
        return bool(mla) == family.mla and bool(sparse) == family.sparse

    def configure(self, question: Question) -> Any:
        """The engine's configuration for a question, with its own default of the block size."""
        family = question.family
        named = self.registry[question.backend] if question.backend else None
        hf = SimpleNamespace(**family.facts)
        cache = Planted(
            "cache_config",
            block_size=question.block_size,
            cache_dtype=question.kv_dtype,
            user_specified_block_size=question.block_size is not None,
            kv_cache_dtype_skip_layers=[],
            _block_size_resolved=False,
            enable_prefix_caching=True,
            mamba_ssm_cache_dtype="auto",
        )
        declared = self.cache.CacheConfig
        if not isinstance(declared, Unknown) and hasattr(declared, "DEFAULT_BLOCK_SIZE"):
            cache.__dict__["DEFAULT_BLOCK_SIZE"] = declared.DEFAULT_BLOCK_SIZE
            call(self.loader, declared._apply_block_size_default, cache)
        self._config = planted_config(
            cache_config=cache,
            model_config=Planted(
                "model_config", use_mla=family.mla, hf_config=hf, hf_text_config=hf,
                is_hybrid=False, is_diffusion=False, rswa_window=None, attn_type="decoder",
                dtype=DTYPE, is_mm_prefix_lm=False, get_head_size=lambda: family.head_size,
                get_num_kv_heads=lambda _: family.kv_heads(question.heads),
                get_num_attention_heads=lambda _: question.heads,
            ),
            attention_config=Planted(
                "attention_config", backend=named, backend_per_kind={}, use_non_causal=False,
                use_prefill_decode_attention=False, flash_attn_version=None,
            ),
            parallel_config=Planted(
                "parallel_config", worker_cls="auto", decode_context_parallel_size=1,
                prefill_context_parallel_size=1,
            ),
            device_config=Planted("device_config", device_type=self.platform.device_type),
            scheduler_config=Planted("scheduler_config", enable_chunked_prefill=True),
            kv_transfer_config=None,
            speculative_config=None,
        )  # fmt: skip
        return self._config


def selected(engine: Engine, question: Question) -> Any:
    """The class of the back end that the engine selects. Raises Refused or NotDerived."""
    return _Course(engine, question).select()


class _Course:
    """One question on its way through the stages."""

    def __init__(self, engine: Engine, question: Question) -> None:
        self.engine, self.question = engine, question
        self.loader = engine.loader
        self.stage = "parser"
        self.backend_name = ""
        self.config: Any = None

    def run(self) -> Answer:
        backend = self.select()
        self.stage = "platform"
        self._resize(backend)
        self.stage = "constructor"
        self._construct(backend)
        self.stage = "kernel"
        return self._verdict(self._kernel(backend), backend)

    def select(self) -> Any:
        """The class of the back end."""
        engine = self.engine
        self._parse()
        self.stage = "platform"
        self.config = engine.configure(self.question)
        check = engine.platform.check_and_update_config
        self._steps(check, {"cls": engine.platform, "vllm_config": self.config})
        self.stage = "selector"
        backend = self._select()
        self.backend_name = _name_of(engine, backend)
        return backend

    def _parse(self) -> None:
        choices = get_args(getattr(self.engine.cache, "BlockSize", None))
        if self.question.block_size and choices and self.question.block_size not in choices:
            raise Refused(self._choice("BlockSize", self.question.block_size, choices))
        dtypes = get_args(self.engine.cache.CacheDType)
        if not dtypes:
            raise NotDerived("the KV dtypes that the parser takes were not found")
        if self.question.kv_dtype not in dtypes:
            raise Refused(self._choice("CacheDType", self.question.kv_dtype, dtypes))

    def _choice(self, name: str, value: object, choices: tuple[Any, ...]) -> Evidence:
        file = "vllm/config/cache.py"
        lines = self.engine.tree.text(file).splitlines()
        line = next(i for i, text in enumerate(lines, 1) if text.startswith(f"{name} ="))
        said = ", ".join(map(str, choices))
        return Evidence(file, line, name, f"{value} is not among the parser's choices: {said}")

    def _select(self) -> Any:
        selector = self.loader.module("vllm.v1.attention.selector")
        family = self.question.family
        known = {
            "head_size": family.head_size,
            "dtype": DTYPE,
            "kv_cache_dtype": self.question.kv_dtype,
            "block_size": self.config.cache_config.block_size,
            "use_mla": family.mla,
            "use_sparse": family.sparse,
            "num_heads": self.question.heads,
        }
        takes = inspect.signature(selector.get_attn_backend).parameters
        given = {name: value for name, value in known.items() if name in takes}
        return call(self.loader, selector.get_attn_backend, **given)

    def _resize(self, backend: Any) -> None:
        update = getattr(type(self.engine.platform), "update_block_size_for_backend", None)
        if update is None:  # before 0.18 the platform settled it in one go
            return
        together = self._together(backend)
        layers = {str(at): _layer_of(one) for at, one in enumerate(together)}
        self.loader.module("vllm.config.vllm").__dict__.update(
            get_layers_from_vllm_config=lambda *_: layers,
            set_current_vllm_config=Unknown("vllm.config.vllm.set_current_vllm_config"),
        )
        type(self.engine.platform)._find_non_ssm_backends = classmethod(lambda *_: together)
        self._steps(update, {"cls": self.engine.platform, "vllm_config": self.config})

    def _construct(self, backend: Any) -> None:
        question = self.question
        implementation = call(self.loader, backend.get_impl_cls)
        arguments = {
            "num_heads": question.heads,
            "head_size": question.family.head_size,
            "scale": 1.0,
            "num_kv_heads": question.family.kv_heads(question.heads),
            "kv_cache_dtype": question.kv_dtype,
            "attn_type": "decoder",
            "indexer": Planted("indexer"),
            "topk_indices_buffer": Planted("topk_indices_buffer"),
            **LATENT,
        }
        thing: Any = object.__new__(_bare(implementation))
        thing.__dict__.update(arguments)
        self._initialise(thing, implementation.__mro__, arguments)

    def _initialise(self, thing: Any, order: tuple[type, ...], arguments: dict[str, Any]) -> None:
        """Runs the constructor of the first class that has one; `super()` goes on from there."""
        rest = list(order)
        while rest and not hasattr(rest[0].__dict__.get("__init__"), "__code__"):
            rest.pop(0)
        if not rest:
            return
        own = rest[0].__dict__["__init__"]
        takes = inspect.signature(own).parameters
        rest_of = {name: value for name, value in arguments.items() if name not in takes}
        scope = {
            name: rest_of if one.kind is inspect.Parameter.VAR_KEYWORD else arguments.get(name)
            for name, one in takes.items()
            if name != "self"
        }
        above = SimpleNamespace(
            __init__=lambda *_, **__: self._initialise(thing, tuple(rest[1:]), arguments)
        )
        self._steps(own, scope | {"self": thing, "super": lambda *_: above})

    def _kernel(self, backend: Any) -> int:
        function = self._common()
        groups = self._together(backend)
        takes = list(inspect.signature(function).parameters)
        given = groups if takes[1] == "backends" else [Planted("g", backend=b) for b in groups]
        return int(call(self.loader, function, self.config.cache_config.block_size, given))

    def _together(self, backend: Any) -> list[Any]:
        """The back ends of a model's layers, in the order in which its layers are made: a sparse
        model's indexer comes before its attention."""
        if not self.question.family.sparse:
            return [backend]
        return [self.loader.resolve(INDEXER), backend]

    def _common(self) -> Any:
        shared = self.loader.module("vllm.v1.worker.utils")
        found = shared.__dict__.get("select_common_block_size")
        if found is None:
            runner = self.loader.resolve("vllm.v1.worker.gpu_model_runner.GPUModelRunner")
            found = runner.select_common_block_size
        return found

    def _verdict(self, kernel: int, backend: Any) -> Answer:
        asked = self.question.block_size
        got = self.config.cache_config.block_size
        if not isinstance(got, int):
            raise NotDerived(f"the block size in force rests on {got}")
        changed = asked is not None and got != asked
        moved = bool(self.question.backend) and self.backend_name != self.question.backend
        said = self._said(moved) if changed or moved else None
        decides = (
            self.engine.platform.get_attn_backend_cls
            if moved
            else (backend.get_supported_kernel_block_sizes)
        )
        return Answer(
            outcome=OVERRIDDEN if changed or moved else ALLOWED,
            stage="platform" if changed or moved else "kernel",
            backend=self.backend_name,
            block_size=got,
            kernel_block=kernel,
            words=said.words if said else "",
            evidence=f"{said.file}:{said.line}" if said else str(place(decides)),
        )

    def _said(self, moved: bool) -> Said | None:
        marks = ("Cannot use",) if moved else ("block size", "block_size")
        for said in self.loader.log.said:
            if any(mark in said.words for mark in marks) and "prefers" not in said.words:
                return said
        return None

    def _steps(self, function: Any, scope: dict[str, Any]) -> None:
        for reason in doubts(steps(self.loader, function, scope)):
            raise NotDerived(f"{place(function)}, {reason}")


def _layer_of(backend: Any) -> Planted:
    return Planted("layer", get_attn_backend=lambda: backend)


def _bare(made: type) -> type:
    """The class without what forbids making one: abstract methods and its own constructor."""
    return type(made.__name__, (made,), {"__abstractmethods__": frozenset(), "__slots__": ()})


def _name_of(engine: Engine, backend: Any) -> str:
    path = f"{backend.__module__}.{backend.__qualname__}"
    names: Iterator[str] = (one.name for one in engine.registry if one.value == path)
    return next(names, backend.__name__)
