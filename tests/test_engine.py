"""The engine's command, what it says is in force, and its own words when it says no."""

from __future__ import annotations

from pathlib import Path

import pytest

from study import engine
from study.counters import counters
from study.experiments import Aiter, Architecture
from study.gates.delivered import treatment_in_force

METRICS = """\
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
vllm:cache_config_info{block_size="16",effective_attention_block_size="16",engine="0",\
kv_cache_memory_bytes="1073741824",kv_cache_size_tokens="219302",num_gpu_blocks="14563"} 1.0
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 4.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 5.0
vllm:generation_tokens_total{engine="0",model_name="m"} 1.2e+03
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.25
vllm:e2e_request_latency_seconds_sum{engine="0",model_name="m"} 1.5
vllm:something_else{engine="0"} 7.0
"""
INFO = "dtype=torch.bfloat16, enforce_eager=True, enable_prefix_caching=False, kv_cache_dtype=auto"
LOG = """\
(APIServer pid=1) INFO 11-21 00:52:57 [model.py:733] Resolved architecture: DeepseekV3ForCausalLM
(Worker pid=2) INFO 11-21 00:51:25 [cpu.py:175] Using CPU_MLA backend.
(Worker pid=2) INFO 11-21 00:51:25 [selector.py:131] Using CPU_SDPA_MLA MLA prefill backend.
"""


def test_counters_are_summed_over_their_labels() -> None:
    found = counters(METRICS)
    assert found == {
        "running": 3.0,
        "waiting": 2.0,
        "requests_finished": 9.0,
        "output_tokens": 1200.0,
        "ttft_sum_s": 0.25,
        "e2e_sum_s": 1.5,
    }


def test_what_is_in_force_is_read_from_the_engine() -> None:
    found = engine.in_force(METRICS, INFO, LOG)
    assert found["attention_backend"] == "CPU_MLA"
    assert found["model_class"] == "DeepseekV3ForCausalLM"
    assert found["block_size"] == "16"
    assert found["kv_cache_tokens"] == "233008"  # blocks x size, not the engine's rounded count
    assert found["kv_bytes_per_token"] == "4608"
    assert (found["prefix_caching"], found["eager"]) == ("False", "True")


def test_the_block_size_that_a_back_end_has_set_counts_where_the_page_repeats_the_flag() -> None:
    page = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100",kv_cache_memory_bytes="%d"}'
    log = "Setting kv cache block size to 32 for FLASHINFER_MLA backend."
    found = engine.in_force(page % (3200 * 4608), "", log)
    assert (found["block_size"], found["kv_bytes_per_token"]) == ("32", "4608")
    newer = page.replace("{", '{effective_attention_block_size="64",') % (6400 * 4608)
    assert engine.in_force(newer, "", log)["block_size"] == "64"


@pytest.mark.parametrize(
    ("line", "backend"),
    [
        ("Using FLASH_ATTN attention backend out of potential backends: ['X_MLA']", "FLASH_ATTN"),
        ("Using FLASHINFER backend.", "FLASHINFER"),
        ("Using AttentionBackendEnum.TRITON_ATTN backend.", "TRITON_ATTN"),
        ("Using TRITON_ATTN backend (selected via --attention-backend).", "TRITON_ATTN"),
        ("Using ROCM_AITER_FA backend out of potential backends: ['X'].", "ROCM_AITER_FA"),
        ("Using FLEX_ATTENTION attention backend out of potential backends", "FLEX_ATTENTION"),
        (
            "Found incompatible backend(s) [TURBOQUANT] with AttentionType.DECODER. "
            "Overriding with ROCM_ATTN out of potential backends: ['ROCM_ATTN', 'TRITON_ATTN'].",
            "ROCM_ATTN",
        ),
        ("Using Triton MLA backend.", "TRITON_MLA"),
        ("Using AITER MLA backend.", "ROCM_AITER_MLA"),
        ("Using Triton Attention backend on V1 engine.", "TRITON_ATTN"),
        ("Using Aiter Flash Attention backend on V1 engine.", "ROCM_AITER_FA"),
        ("Using CPU_SDPA_MLA MLA prefill backend.", None),
        ("Using FLASHINFER_TRTLLM Unquantized MoE backend out of potential backends: []", None),
        ("Using AITER Flash Attention backend for ViT model.", None),
        ("Using backend AttentionBackendEnum.FLASH_ATTN for vit attention", None),
        ("Using max model len 2048", None),
    ],
)
def test_every_form_in_which_an_engine_names_its_attention(line: str, backend: str | None) -> None:
    log = f"(Worker pid=2) INFO 11-21 00:51:25 [rocm.py:776] {line}\n"
    assert engine.in_force("", "", log)["attention_backend"] == backend


SWITCHED_ON = '{"vllm_env": {"VLLM_ROCM_USE_AITER": true, "VLLM_ROCM_USE_AITER_MHA": true}}'
ECHOES = """\
(APIServer pid=1) INFO [utils.py:233] non-default args: {'attention_backend': 'ROCM_AITER_FA'}
(EngineCore pid=2) INFO [core.py:133] config: IrOpPriorityConfig(rms_norm=['aiter', 'native'])
(EngineCore pid=2) INFO [rocm.py:776] Using ROCM_ATTN backend out of potential backends: \
['ROCM_ATTN', 'ROCM_AITER_FA'].
[aiter] import [module_aiter_enum] under /opt/aiter/jit/module_aiter_enum.so
"""


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("", "cannot judge"),
        ("INFO [rocm.py:466] Using Aiter Flash Attention backend on V1 engine.", "pass"),
        ("INFO [unquantized.py:364] Using ROCm AITER Unquantized MoE backend out of", "pass"),
        ("[aiter] import [module_rmsnorm] under /opt/aiter/jit/module_rmsnorm.so", "pass"),
        ("INFO Selected AiterInt8ScaledMMLinearKernel for QuarkW8A8Int8", "pass"),
    ],
)
def test_the_switch_of_aiter_is_no_proof_of_its_use(line: str, verdict: str) -> None:
    """Where AITER cannot be imported, the engine says nothing and its page repeats the switch."""
    arm = next(arm for arm in Aiter().arms() if arm.name.endswith("aiter-on"))
    said = engine.in_force("", SWITCHED_ON, f"{line}\n{ECHOES}")
    asked = {name: arm.expected[name] for name in ("VLLM_ROCM_USE_AITER", "aiter")}
    assert said["VLLM_ROCM_USE_AITER"] == "True"
    assert treatment_in_force(asked, said).verdict == verdict


def test_what_the_engine_does_not_say_is_unknown() -> None:
    assert set(engine.in_force("", "", "").values()) == {None}


def test_flags_are_never_silent() -> None:
    words = engine.arguments({"max_model_len": 8, "enforce_eager": True, "enable_x": False})
    assert words == ["--max-model-len", "8", "--enforce-eager", "--no-enable-x"]


def test_the_command_is_a_list_on_loopback_without_network() -> None:
    arm = Architecture().arms()[-1]
    command = engine.command(arm, "python", Path("folder"), "name", 1234, seed=7)
    words = " ".join(command.argv)
    assert "--host 127.0.0.1 --port 1234 --seed 7 --load-format dummy" in words
    assert "--trust-remote-code" in words
    assert command.environment["HF_HUB_OFFLINE"] == "1"
    assert f"--kv-cache-memory-bytes {arm.flags['kv_cache_memory_bytes']}" in words
    assert "VLLM_API_KEY" not in command.as_shell()


PYDANTIC = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
  Value error, max_num_batched_tokens (8) is smaller than max_model_len (1088). [type=value_error]
"""
CHAIN = """\
(EngineCore pid=9) ERROR 11-21 00:51:30 [core.py:9]   File "x.py", line 3, in f
(EngineCore pid=9) ERROR 11-21 00:51:30 [core.py:9] ValueError: No common block size for 1
(APIServer pid=8) Traceback (most recent call last):
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.
"""
SHARED = """\
huggingface_hub.errors.StrictDataclassFieldValidationError: Validation error for field 'n':
    TypeError: Field 'n' expected int, got NoneType (value: None)
"""
FULL = (
    "Free memory on device cuda:0 (3.25/23.43 GiB) on startup is less than desired GPU memory "
    "utilization (0.96, 22.49 GiB)."
)
LITTLE = (
    "Available memory on node 0 (3.20/23.54 GiB) on kv cache allocation is less than requested "
    "memory for kv (8.00/8.00 GiB). Reduce CPU memory used by other processes."
)
CHANGED = (
    "Error in memory profiling. Initial free memory 20.58 GiB, current free memory 22.54 GiB. "
    "This happens when other processes sharing the same container release GPU memory."
)


@pytest.mark.parametrize(
    ("log", "words", "refused"),
    [
        (CHAIN, "ValueError: No common block size for 1", True),
        (PYDANTIC, "smaller than max_model_len", True),
        (SHARED, "StrictDataclassFieldValidationError", True),
        ("RuntimeError: out of memory\n", "RuntimeError: out of memory", False),
        (f"ValueError: {FULL}\n", "Free memory on device", False),
        (f"ValueError: {LITTLE}\n", "Available memory on node", False),
        (f"AssertionError: {CHANGED}\n", "Error in memory profiling", False),
        (
            "api_server.py: error: unrecognized arguments: --x\n",
            "unrecognized arguments: --x",
            True,
        ),
        ("one line\nlast line\n", "last line", False),
        ("", "it said nothing", False),
    ],
)
def test_the_reason_is_the_engines_own_and_not_an_echo(log: str, words: str, refused: bool) -> None:
    reason = engine.reason(log)
    assert words in reason.text
    assert reason.refused is refused
