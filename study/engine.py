"""An arm as vLLM understands it: its command, and what the engine says is in force."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from study import cores, models, paths, platform, weights
from study.experiment import STORAGE, Arm
from study.models import Model

Flag = str | int | float | bool


@dataclass(frozen=True)
class Command:
    """How to start a server: an argument list (never a shell) and the environment it adds."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def as_shell(self) -> str:
        """The same, to be pasted into a shell. It holds no secret: the key is not part of it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.argv)])


def command(
    arm: Arm, python: str, folder: Path, name: str, port: int, seed: int, storage: str = ""
) -> Command:
    """The command that serves `folder` under `name` on a loopback port.

    `storage` is put where a flag of the arm says `STORAGE`.
    """
    given = {
        key: value.replace(STORAGE, storage) if isinstance(value, str) else value
        for key, value in arm.flags.items()
    }
    flags: dict[str, Flag] = {
        "model": str(folder),
        "served_model_name": name,
        "host": "127.0.0.1",
        "port": port,
        "seed": seed,
        "load_format": "auto" if (folder / weights.FILE).exists() else "dummy",
        **given,
    }
    if "auto_map" in models.config(arm.model):
        flags["trust_remote_code"] = True  # the configuration class that the study itself wrote
    if platform.engine().kind != "cpu" and _knows("jit-monitor-verbose"):
        flags["jit_monitor_verbose"] = True  # or a kernel's second compilation is not in the log
    argv = (python, "-m", "vllm.entrypoints.openai.api_server", *arguments(flags))
    return Command(argv, {**environment(), **arm.environment})


@cache
def _knows(flag: str) -> bool:
    """Whether the engine has this flag, by its source: to import it would take seconds."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return False
    with contextlib.suppress(OSError):
        return f'"--{flag}"' in Path(found.origin).with_name("engine").joinpath(
            "arg_utils.py"
        ).read_text("utf-8")
    return False


def environment() -> dict[str, str]:
    """What every server gets: no network, no telemetry, the pages that the study reads."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(paths.CACHE / "huggingface"),
        "VLLM_CACHE_ROOT": str(paths.CACHE / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # /server_info and /reset_prefix_cache
        # The study reads what is in force from the log, so nobody may have made it quieter.
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_LOGGING_COLOR": "0",
        "AITER_LOG_LEVEL": "INFO",
        "AITER_LOG_MORE": "0",
        "PYTHONUNBUFFERED": "1",
        **cores.environment(),
    }


# Variables that engines, their libraries and drivers are steered by, and what none may tell. Where
# caches lie changes no number.
STEERING = re.compile(
    r"(?:VLLM|AITER|HIP|HIPBLASLT|ROCR|HSA|GPU|CUDA|NCCL|RCCL|OMP|TRITON|FLASHINFER|FLASH_ATTENTION)_"
    r"|(?:PY)?TORCH|LD_PRELOAD$"
)
SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$|_CACHE_(?:DIR|ROOT)$")


def inherited() -> dict[str, str]:
    """What a server takes over from whoever starts the study, as far as it could change a result.

    Without secrets, and without what every server is given in its place.
    """
    own = environment()
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if STEERING.match(name) and not SECRET.search(name) and name not in own
    }


def compile_cache() -> dict[str, int]:
    """Files in the engine's compile cache: a first compilation starts slower than a second."""
    files = [path for path in (paths.CACHE / "vllm").rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def arguments(flags: Mapping[str, Flag]) -> list[str]:
    """Python keys as command-line flags; False becomes `--no-...`, never silence."""
    words: list[str] = []
    for key, value in flags.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def folder_of(model: Model) -> Path:
    """Where the folder of a synthetic model lies, tokenizer and all."""
    return paths.CACHE / "models" / f"{model.name}-{model.layers}"


def model_folder(model: Model, seed: int, compared: bool = False) -> Path:
    """The folder of a synthetic model, with weights unless it is large.

    `compared`: its outputs will be, for which weights must be made even for a large one. Only on
    a GPU: on a CPU that would take longer than all that is measured with it.
    """
    folder = folder_of(model)
    models.write_folder(model, folder)
    worth_it = compared and platform.engine().kind != "cpu"
    largest = weights.LARGEST_COMPARED if worth_it else weights.LARGEST_WRITTEN
    weights.write(model, folder, seed, largest)
    return folder


# --- what is in force ---------------------------------------------------------------------------

LABEL = re.compile(r'(\w+)="([^"]*)"')

# The engine names the parts it chose only in its log.
LOGGED = {
    "model_class": r"Resolved architecture: (\w+)",
    "model_runner": r"Using (V\d+) Model Runner",
    "mla_prefill": r"Using (\w+) MLA prefill backend",
    "attention_backend": (
        r"(?:Using (?:AttentionBackendEnum\.)?|Overriding with )"
        r"((?:\w+ ){0,2}\w*(?:ATTN|ATTENTION|Attention|MLA|FLASH|SDPA|AITER_FA)\w*)"
        r" (?:(?:attention )?backend|out of potential backends)(?! for ViT)"
    ),
    "moe_backend": r"Using (.+?) MoE backend",
    # What the engine prefers, by its switches: no proof that it is there.
    "rms_norm": r"IrOpPriorityConfig\(rms_norm=\['(\w+)'",
    "cache_layout": r"Using (\w+) KV cache layout",
    "kv_connector": r"Creating v1 connector with name: (\w+)",
    # The switch that does not switch, in the engine's own words.
    "override": r"([^\s\]][^\n\]]*overriding user-specified [^\n]*)",
}

# What older engines call a back end, and what it is called as a flag and by newer ones.
FORMER_NAMES = {
    "Triton Attention": "TRITON_ATTN",
    "Aiter Flash Attention": "ROCM_AITER_FA",
    "Triton MLA": "TRITON_MLA",
    "AITER MLA": "ROCM_AITER_MLA",
}

# And the resolved configuration as one line of text.
RESOLVED = {
    "prefix_caching": r"enable_prefix_caching=(\w+)",
    "chunked_prefill": r"enable_chunked_prefill=(\w+)",
    "eager": r"enforce_eager=(\w+)",
    "dtype": r"[( ]dtype=torch\.(\w+)",
    "kv_dtype": r"kv_cache_dtype=(\w+)",
    "tensor_parallel": r"tensor_parallel_size=(\d+)",
}

# What is in a log only where AITER's kernels are: a module that is loaded (but for those that its
# mere import loads), or a kernel that was chosen.
AITER = re.compile(r"\[aiter\] import \[module_(?!aiter_)|\bSelected Aiter")

# Switches that the engine takes from its environment, as its own page reports them: what was asked
# for. Where AITER cannot be imported its switch stays on, and the engine goes on without it.
SWITCHES = re.compile(r'"(VLLM_ROCM_USE_AITER\w*|VLLM_CPU_ATTN_SPLIT_KV)": ?(true|false)')


def in_force(metrics: str, server_info: str, log: str) -> dict[str, str | None]:
    """What the engine says it runs; None where it does not say.

    Args: the text of `/metrics`, of `/server_info`, and of the log so far.
    """
    found = {name: _first(pattern, log) for name, pattern in LOGGED.items()}
    named = found["attention_backend"]
    found["attention_backend"] = FORMER_NAMES.get(named or "", named)
    found |= {name: _first(pattern, server_info) for name, pattern in RESOLVED.items()}
    found |= {name: said.capitalize() for name, said in SWITCHES.findall(server_info)}
    found["max_num_seqs"] = _first(r"['\"]?max_num_seqs['\"]?[=:] ?(\d+)", server_info + log)
    chosen = f"{found['attention_backend']} {found['moe_backend']}"
    if "aiter" in chosen.lower() or AITER.search(log):
        found["aiter"] = "used"
    elif found.get("VLLM_ROCM_USE_AITER") == "False":
        found["aiter"] = "not used"
    return found | _cache(metrics, log)


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None


# Older engines report the size that was asked for, even where a back end has set another.
SET_SIZE = r"Setting kv cache block size to (\d+)"


def _cache(metrics: str, log: str) -> dict[str, str | None]:
    line = _first(r"(?m)^vllm:cache_config_info\{(.*)\}", metrics) or ""
    labels = {name: value for name, value in LABEL.findall(line) if value != "None"}
    said = _first(SET_SIZE, log) or labels.get("block_size")
    block_size = labels.get("effective_attention_block_size") or said
    blocks, memory = labels.get("num_gpu_blocks"), labels.get("kv_cache_memory_bytes")
    # Blocks times their size: the tokens that the engine prints are for requests of full length,
    # whose last block is partly empty.
    tokens = int(blocks) * int(block_size) if blocks and block_size else None
    per_token = None
    if memory and tokens and "num_gpu_blocks_override" not in labels:  # then not all of it is used
        per_token = str(round(int(memory) / tokens))
    return {
        "block_size": block_size,
        "kv_cache_tokens": str(tokens) if tokens else None,
        "kv_cache_bytes": memory,
        "kv_bytes_per_token": per_token,
    }


# --- why it did not start -----------------------------------------------------------------------

# Exceptions with which an engine refuses what it was asked, as opposed to breaking.
REFUSALS = re.compile(r"(?:Value|NotImplemented|Assertion|Validation|Type)Error$")

# And a plain exception is one when it says so.
REFUSING = re.compile(r"not supported|only supported|unsupported|not.implemented", re.IGNORECASE)

# These are no answer to what was asked: another process had the memory at that moment.
PASSING = re.compile(r"Free memory on device|Error in memory profiling|Available memory on node")

# These only say that something else, further up, went wrong.
ECHOES = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineDeadError|"
    r"EngineCore encountered an issue|Worker failed with error|cancelled|Failed core proc"
)

EXCEPTION = re.compile(
    r"(?m)^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)\b.*)$"
)
USAGE = re.compile(r"(?m)^\S*api_server\S*: error: (.+)$")


COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def plain(log: str) -> str:
    """The log without colours, which a notebook's kernel asks every program for."""
    return COLOUR.sub("", log)


CORE = re.compile(r"(?m)^\(EngineCore[^)]*pid=(\d+)\)")


def core_pid(log: str) -> int | None:
    """The process that schedules and, on one device, computes, as it signs its lines of the log."""
    found = CORE.search(log)
    return int(found[1]) if found else None


# What an engine writes when it compiles, captures graphs or tunes kernels: vLLM ("Starting
# torch.compile", "Capturing CUDA graphs", its JIT monitor's "JIT compilation during inference",
# "Running FlashInfer autotune"), Triton ("Triton autotuning for function"), AITER ("start build").
# A folder of the name of `jit` is none of them.
COMPILING = re.compile(
    r"compil|capturing|autotun|(?<!/)\bjit\b(?!/)|\b(?:start|finish) build", re.IGNORECASE
)


def building(log: str) -> bool:
    """Whether AITER builds a module now, which takes minutes without a line."""
    return log.count("start build") > log.count("finish build")


def compiling(log: str) -> list[str]:
    """The lines in which the engine says that it compiles, captures or tunes."""
    return [line.strip() for line in log.splitlines() if COMPILING.search(line)]


@dataclass(frozen=True)
class Reason:
    """Why a server did not start or stopped, in the engine's own words."""

    text: str
    refused: bool  # the engine said no, as opposed to breaking


def reason(log: str) -> Reason:
    """The engine's own reason: the first exception of the last chain that is not an echo."""
    if usage := USAGE.search(log):
        return Reason(usage.group(1).strip(), refused=True)
    found = [match.strip() for match in EXCEPTION.findall(log)]
    causes = [text for text in found if not ECHOES.search(text)]
    if not causes:
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return Reason((found or lines or ["it said nothing"])[-1], refused=False)
    cause = causes[0]
    kind = cause.partition(":")[0].rpartition(".")[2]
    says_no = REFUSALS.search(kind) or (kind == "Exception" and REFUSING.search(cause))
    refused = bool(says_no) and not PASSING.search(cause)
    return Reason(_with_detail(cause, log), refused)


def _with_detail(cause: str, log: str) -> str:
    """Validation errors have their sentence on the lines after the exception's name."""
    if "alidation error" not in cause:
        return cause
    after = log[log.index(cause) + len(cause) :].splitlines()[1:3]
    return " ".join([cause, *(line.partition("] ")[2] or line.strip() for line in after)])
