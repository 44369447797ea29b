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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from anywhere, installed or not

from study import second, truth  # noqa: E402
from study.client import Client, Load  # noqa: E402
from study.nullserver import serve, stats  # noqa: E402
from study.truth import Claims  # noqa: E402

INPUT_TOKENS, OUTPUT_TOKENS, TTFT_MS, ITL_MS = 128, 64, 200.0, 50.0
LATENCY_S = (TTFT_MS + (OUTPUT_TOKENS - 1) * ITL_MS) / 1e3
RAMP_STREAMS, RAMP_S = 1024, 3.0
RAMP_ITL_MS = (50.0, 25.0, 17.0, 14.0, 12.0, 10.0, 9.0, 8.0)


def row(claims: Claims, streams: int, start: str, said: dict[str, float]) -> dict[str, object]:
    """Errors (claimed minus true) in ms, and the load by the server's clock."""
    found = truth.errors(claims, said)
    return {"client": claims.client, "streams": streams, "start": start, **found}


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
    return truth.claims_of(recording)


def vllms(core: int, base_url: str, streams: int, waves: int, folder: Path) -> Claims:
    """One call of `vllm bench serve`, in a process of its own as its users run it."""
    saved = folder / "vllm.json"
    options = {
        "backend": "openai", "base-url": base_url, "model": "null", "tokenizer": folder,
        "dataset-name": "random", "random-input-len": INPUT_TOKENS,
        "random-output-len": OUTPUT_TOKENS, "num-prompts": waves * streams,
        "max-concurrency": streams, "result-filename": saved.name, "result-dir": folder,
    }  # fmt: skip
    done = subprocess.run(
        second.command(options, [core], warm=False),
        capture_output=True,
        text=True,
        env=second.environment(),
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
        told_s=truth.told([result["generated_texts"][i] for i in fine]),
        failed=len(result["errors"]) - len(fine),
        cpu_s=second.cpu_s(done.stdout),
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
                stats(base_url, reset=True)
                claims = ours(client, base_url, streams, waves=asked.waves, ramp_s=ramp_s,
                              output_tokens=OUTPUT_TOKENS)  # fmt: skip
                yield row(claims, streams, start, stats(base_url))
            if not asked.skip_vllm:
                stats(base_url, reset=True)
                claims = vllms(core, base_url, streams, asked.waves, Path(folder))
                yield row(claims, streams, "together", stats(base_url))


def ramp(server: int, core: int) -> Iterator[dict[str, object]]:
    """Our client at a rising rate of chunks, until client or server is untrue twice.

    Twice, because a neighbour on the machine can spoil a run, but never make one better.
    """
    for itl_ms in RAMP_ITL_MS:
        found = at_rate(itl_ms, server, core)
        yield found
        if truth.untrue(found):
            again = at_rate(itl_ms, server, core)
            yield again
            if truth.untrue(again):
                return


def at_rate(itl_ms: float, server: int, core: int) -> dict[str, object]:
    """One load of RAMP_STREAMS staggered streams with this ITL."""
    with serve(TTFT_MS, itl_ms, cpus=[server]) as base_url, Client(cpus=[core]) as client:
        output_tokens = int(RAMP_S * 1e3 / itl_ms)
        claims = ours(client, base_url, RAMP_STREAMS, waves=2, ramp_s=RAMP_S,
                      output_tokens=output_tokens)  # fmt: skip
        found = row(claims, RAMP_STREAMS, f"ramp, ITL {itl_ms:g} ms", stats(base_url))
    found["chunks_per_s"] = truth.steady_rate(claims.told_s)
    return found


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
