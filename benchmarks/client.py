"""How true is the client? Ours beside `vllm bench serve`, both against the null server's own clock.

    python benchmarks/client.py [--quick] [--streams 16,256] [--skip-vllm] [--skip-ramp]

128 tokens in, 64 out, TTFT 200 ms, ITL 50 ms; the server on one core, the client on another. The
null server writes into every token the moment it sent it (and into the first, when the request
came), so the error of a client is what it claims minus what was. Then the rate of chunks is
raised until the client, or the server itself, is no longer true. Writes
data/derived/benchmark_client.csv and prints the same as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from anywhere, installed or not

from study.client import Client, Load  # noqa: E402
from study.nullserver import serve  # noqa: E402

INPUT_TOKENS, OUTPUT_TOKENS, TTFT_MS, ITL_MS = 128, 64, 200.0, 50.0
LATENCY_S = (TTFT_MS + (OUTPUT_TOKENS - 1) * ITL_MS) / 1e3
RAMP_STREAMS, RAMP_S = 1024, 3.0
RAMP_ITL_MS = (50.0, 25.0, 17.0, 14.0, 12.0, 10.0, 9.0, 8.0)
TRUE_MS = 10.0
VLLM = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv.pop(1))})
from vllm.benchmarks import serve
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from argparse import ArgumentParser as FlexibleArgumentParser
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
asked = parser.parse_args()
before = time.process_time()
serve.main(asked)
print("CPU_S", time.process_time() - before)
"""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Claims:
    """What a client says of its completed requests, and what the server wrote into them.

    `first_s`, `ttft_s`: per request, first token on the client's clock (CLOCK_MONOTONIC) and TTFT.
    `gaps_s`: requests x (tokens - 1). `told_s`: requests x (1 + tokens), received and written.
    """

    client: str
    first_s: Floats
    ttft_s: Floats
    gaps_s: Floats
    told_s: Floats
    failed: int
    cpu_s: float


def told(texts: list[str]) -> Floats:
    """The server's own times out of the text of each request, in seconds."""
    return np.array([text.split() for text in texts], dtype=np.float64) / 1e9


def row(claims: Claims, streams: int, start: str, stats: dict[str, float]) -> dict[str, object]:
    """Errors (claimed minus true) in ms, and the load by the server's clock."""
    received_s, written_s = claims.told_s[:, 0], claims.told_s[:, 1:]
    ttft_ms = (claims.ttft_s - (written_s[:, 0] - received_s)) * 1e3
    read_ms = (claims.first_s - written_s[:, 0]) * 1e3
    itl_ms = np.abs(claims.gaps_s - np.diff(written_s, axis=1)) * 1e3
    span_s = written_s.max() - received_s.min()
    return {
        "client": claims.client,
        "streams": streams,
        "start": start,
        "completed": len(received_s),
        "failed": claims.failed,
        "in_flight_mean": in_flight(received_s, written_s[:, -1]),
        "ttft_error_median_ms": np.median(ttft_ms),
        "ttft_error_p99_ms": np.quantile(ttft_ms, 0.99),
        "first_read_late_median_ms": np.median(read_ms),
        "first_read_late_p99_ms": np.quantile(read_ms, 0.99),
        "itl_error_median_ms": np.median(itl_ms),
        "itl_error_p99_ms": np.quantile(itl_ms, 0.99),
        "client_cpu_s": claims.cpu_s,
        "chunks_per_s": written_s.size / span_s,
        "server_late_p99_ms": stats["tick_late_p99_ms"],
    }


def in_flight(received_s: Floats, ended_s: Floats) -> float:
    """Mean requests in flight over the middle 40 % of the load, by the server's clock."""
    begin_s, end_s = received_s.min(), ended_s.max()
    low, high = begin_s + 0.3 * (end_s - begin_s), begin_s + 0.7 * (end_s - begin_s)
    inside_s = np.clip(ended_s, low, high) - np.clip(received_s, low, high)
    return float(inside_s.sum() / (high - low))


def ours(client: Client, base_url: str, streams: int, *, waves: int, ramp_s: float,
         output_tokens: int) -> Claims:  # fmt: skip
    """One load of our client."""
    load = Load(
        base_url=base_url,
        model="null",
        input_tokens=INPUT_TOKENS,
        output_tokens=output_tokens,
        vocabulary=1000,
        concurrency=streams,
        requests=waves * streams,
        ramp_s=ramp_s,
        keep_text=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        recording = client.run(load, Path(folder) / "window")
    fine = recording.requests[recording.requests["error"] == ""]
    read = recording.chunks[recording.chunks["request"].isin(fine["request"])]["time_s"]
    return Claims(
        client="study",
        first_s=fine["first_s"].to_numpy(),
        ttft_s=(fine["first_s"] - fine["due_s"]).to_numpy(),
        gaps_s=np.diff(read.to_numpy().reshape(len(fine), output_tokens), axis=1),
        told_s=told(fine["text"].tolist()),
        failed=len(recording.requests) - len(fine),
        cpu_s=recording.info["cpu_s"],
    )


def vllms(core: int, base_url: str, streams: int, waves: int, folder: Path) -> Claims:
    """One call of `vllm bench serve`, in a process of its own as its users run it."""
    saved = folder / "vllm.json"
    options = {
        "backend": "openai", "base-url": base_url, "model": "null", "tokenizer": folder,
        "dataset-name": "random", "random-input-len": INPUT_TOKENS,
        "random-output-len": OUTPUT_TOKENS, "num-prompts": waves * streams,
        "max-concurrency": streams, "result-filename": saved.name, "result-dir": folder,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
    done = subprocess.run(
        [sys.executable, "-c", VLLM, str(core), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"vllm bench serve must run; it said:\n{done.stderr[-2000:]}")
    result = json.loads(saved.read_text())
    fine = [index for index, error in enumerate(result["errors"]) if not error]
    first_s = np.array([result["start_times"][i] + result["ttfts"][i] for i in fine])
    return Claims(
        client="vllm bench serve",
        first_s=first_s,
        ttft_s=np.array([result["ttfts"][i] for i in fine]),
        gaps_s=np.array([result["itls"][i] for i in fine]),
        told_s=told([result["generated_texts"][i] for i in fine]),
        failed=len(result["errors"]) - len(fine),
        cpu_s=float(done.stdout.rpartition("CPU_S")[2]),
    )


def make_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, so that nothing need be fetched."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def ask(base_url: str, path: str, method: str = "GET") -> dict[str, float]:
    """One call of the null server's own endpoints."""
    request = urllib.request.Request(base_url + path, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, float] = json.load(answer)
    return found


def levels(asked: argparse.Namespace, server: int, core: int) -> Iterator[dict[str, object]]:
    """Every client at every number of streams."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(TTFT_MS, ITL_MS, cpus=[server]) as base_url,
        Client(cpus=[core]) as client,
    ):
        if not asked.skip_vllm:
            make_tokenizer(Path(folder))
        for streams in asked.streams:
            for start, ramp_s in (("together", 0.0), ("staggered", LATENCY_S)):
                ask(base_url, "/stats/reset", "POST")
                claims = ours(client, base_url, streams, waves=asked.waves, ramp_s=ramp_s,
                              output_tokens=OUTPUT_TOKENS)  # fmt: skip
                yield row(claims, streams, start, ask(base_url, "/stats"))
            if not asked.skip_vllm:
                ask(base_url, "/stats/reset", "POST")
                claims = vllms(core, base_url, streams, asked.waves, Path(folder))
                yield row(claims, streams, "together", ask(base_url, "/stats"))


def ramp(server: int, core: int) -> Iterator[dict[str, object]]:
    """Our client at a rising rate of chunks, until client or server is untrue twice.

    Twice, because a neighbour on the machine can spoil a run, but never make one better.
    """
    for itl_ms in RAMP_ITL_MS:
        found = at_rate(itl_ms, server, core)
        yield found
        if _untrue(found):
            again = at_rate(itl_ms, server, core)
            yield again
            if _untrue(again):
                return


def at_rate(itl_ms: float, server: int, core: int) -> dict[str, object]:
    """One load of RAMP_STREAMS staggered streams with this ITL."""
    with serve(TTFT_MS, itl_ms, cpus=[server]) as base_url, Client(cpus=[core]) as client:
        output_tokens = int(RAMP_S * 1e3 / itl_ms)
        claims = ours(client, base_url, RAMP_STREAMS, waves=2, ramp_s=RAMP_S,
                      output_tokens=output_tokens)  # fmt: skip
        found = row(claims, RAMP_STREAMS, f"ramp, ITL {itl_ms:g} ms", ask(base_url, "/stats"))
    found["chunks_per_s"] = steady_rate(claims.told_s)
    return found


def _untrue(found: dict[str, object]) -> bool:
    """Past TRUE_MS at p99: the client's errors, or the server's own lateness."""
    names = ("first_read_late_p99_ms", "itl_error_p99_ms", "server_late_p99_ms")
    return max(float(str(found[name])) for name in names) > TRUE_MS


def steady_rate(told_s: Floats) -> float:
    """Chunks per second in the middle fifth of the load, by the server's clock."""
    written_s = told_s[:, 1:].ravel()
    low, high = np.quantile(written_s, [0.4, 0.6])
    return float(0.2 * written_s.size / (high - low))


def markdown(table: pd.DataFrame) -> str:
    """The table for a reader."""
    words = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    lines += [" | ".join(line) for line in words.to_numpy().tolist()]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Run what was asked; save after every row, so that nothing measured is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="16,256,1024,2048", help="as 16,256")
    parser.add_argument("--waves", type=int, default=3, help="requests per stream")
    parser.add_argument("--quick", action="store_true", help="256 streams, 2 waves, no vllm")
    parser.add_argument("--skip-vllm", action="store_true")
    parser.add_argument("--skip-ramp", action="store_true")
    parser.add_argument("--save", type=Path, default=ROOT / "data/derived/benchmark_client.csv")
    asked = parser.parse_args()
    if asked.quick:
        asked.streams, asked.waves, asked.skip_vllm, asked.skip_ramp = "256", 2, True, True
    asked.streams = [int(word) for word in asked.streams.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    server, core = cores[0], cores[-1]
    rows: list[dict[str, object]] = []
    for source in (levels(asked, server, core), () if asked.skip_ramp else ramp(server, core)):
        for found in source:
            rows.append(found)
            asked.save.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(asked.save, index=False, float_format="%.4g")
            print(time.strftime("%H:%M:%S"), markdown(pd.DataFrame([found])).splitlines()[-1])
    print(markdown(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
