"""How fast, and in how much memory, does `study audit` read large results?

    python benchmarks/audit.py [--requests 1000000] [--gaps-mb 400]

Three files: a million requests in detail without gaps between chunks (aims: under 10 s and
1 GiB), and two with gaps, the second four times as large (aims: 100 MB/s on one core, and the
same memory). Each is audited by a process of its own, its start included. Writes
data/derived/benchmark_audit.csv and prints the same as Markdown.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
DERIVED = ROOT / "data" / "derived"
LEVEL, TTFT_S, ITL_S, TOKENS = 256, 0.2, 0.02, 128
TEXT = "a few words of text, as a server would have sent them"


@dataclass(frozen=True)
class Row:
    """What one file cost. `mb_s` is its size over CPU time, which is that of one core."""

    file: str
    requests: int
    size_mb: float
    wall_s: float
    cpu_s: float
    mb_s: float
    peak_mib: float
    verdict: str


def parts(requests: int, gaps: bool) -> Iterator[bytes]:
    """A detailed result of a full closed loop, piece by piece: it need not fit into memory."""
    rng = np.random.default_rng(0)
    ttft_s = TTFT_S * (1 + 0.01 * rng.standard_normal(requests))
    latency_s = ttft_s + (TOKENS - 1) * ITL_S
    start_s = np.arange(requests) * (latency_s.mean() / LEVEL)  # one leaves, one comes
    duration_s = float((start_s + latency_s).max())
    rates = {
        "request_throughput": requests / duration_s,
        "output_throughput": requests * TOKENS / duration_s,
        "total_token_throughput": requests * 2 * TOKENS / duration_s,
    }
    times_s = {"ttft": ttft_s, "e2el": latency_s}
    heading = {
        "model_id": "made-up", "num_prompts": requests, "request_rate": "inf",
        "max_concurrency": LEVEL, "duration": duration_s, "completed": requests, "failed": 0,
        "total_input_tokens": requests * TOKENS, "total_output_tokens": requests * TOKENS,
        **rates,
        **{f"mean_{name}_ms": float(all_s.mean()) * 1e3 for name, all_s in times_s.items()},
        **{f"p99_{name}_ms": float(np.quantile(all_s, 0.99)) * 1e3
           for name, all_s in times_s.items()},
    }  # fmt: skip
    yield orjson.dumps(heading)[:-1]
    lengths = np.full(requests, TOKENS)
    arrays = {
        "input_lens": lengths, "output_lens": lengths, "start_times": start_s,
        "ttfts": ttft_s, "latencies": latency_s,
    }  # fmt: skip
    for name, values in arrays.items():
        yield b',"%s":' % name.encode() + orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    yield b',"generated_texts":' + orjson.dumps([TEXT] * requests)
    yield b',"errors":' + orjson.dumps([""] * requests)
    if gaps:
        gap_s = ITL_S * (1 + 0.01 * rng.standard_normal((1000, TOKENS - 1)))
        gap_s *= (TOKENS - 1) * ITL_S / gap_s.sum(axis=1, keepdims=True)
        some = orjson.dumps(gap_s, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield b',"itls":['
        for i in range(requests // 1000):
            yield (b"," if i else b"") + some
        yield b"]"
    yield b"}"


def measured(name: str, requests: int, gaps: bool, folder: Path) -> Row:
    path = folder / "result.json"
    with path.open("wb") as file:
        file.writelines(parts(requests, gaps))
    size_mb = path.stat().st_size / 1e6
    began_s = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "study.audit.command", str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None
    said = child.stdout.read().decode()
    _, status, used = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - began_s
    if status:
        raise SystemExit(f"the audit of {name} ended with status {status}:\n{said}")
    path.unlink()
    return row(name, requests, size_mb, wall_s, used, said.split()[0])


def row(
    name: str, requests: int, size_mb: float, wall_s: float,
    used: resource.struct_rusage, verdict: str,
) -> Row:  # fmt: skip
    cpu_s = used.ru_utime + used.ru_stime
    peak_mib = used.ru_maxrss / 1024  # KiB on Linux; includes pages of the file that are mapped
    return Row(name, requests, size_mb, wall_s, cpu_s, size_mb / cpu_s, peak_mib, verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the file without gaps")
    parser.add_argument("--gaps-mb", type=int, default=400, help="size of the larger with gaps")
    asked = parser.parse_args()
    each_mb = 22 * TOKENS / 1e6  # some 22 bytes a gap
    large = max(4000, round(asked.gaps_mb / each_mb / 4000) * 4000)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measured("without gaps", asked.requests, False, Path(folder)),
            measured("with gaps, a quarter", large // 4, True, Path(folder)),
            measured("with gaps", large, True, Path(folder)),
        ]
    table = pd.DataFrame([asdict(one) for one in rows])
    DERIVED.mkdir(parents=True, exist_ok=True)
    table.to_csv(DERIVED / "benchmark_audit.csv", index=False)
    print(markdown(table))


def markdown(table: pd.DataFrame) -> str:
    lines = [" | ".join(table.columns), " | ".join("---" for _ in table.columns)]
    for values in table.itertuples(index=False):
        cells = [f"{value:,.1f}" if isinstance(value, float) else f"{value}" for value in values]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
