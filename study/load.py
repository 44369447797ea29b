"""`study load`: one load from the shell, its result in the format of `vllm bench serve`.

So whoever reads `--save-result --save-detailed` files can read ours. Latencies run from the moment
a request was due. The generated text is not kept: `generated_texts` holds empty strings.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from study.client import Load, Recording, run_inline
from study.errors import StudyError

P99_NEEDS = 368  # below it the 95 % order-statistic interval of a p99 leaves the sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `study load`."""
    parser.add_argument("--base-url", required=True, help="as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="the name the server knows it by")
    parser.add_argument("--concurrency", type=int, help="closed loop: requests in flight")
    parser.add_argument("--rate", type=float, help="open loop: requests per second (Poisson)")
    parser.add_argument("--requests", type=int, required=True, help="how many in all")
    parser.add_argument("--input-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--api-key")
    parser.add_argument("--vocabulary", type=int, default=1000, help="token ids lie below it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600.0, help="of one request, in seconds")
    parser.add_argument("--save", type=Path, required=True, metavar="FILE.json")


def main(args: argparse.Namespace) -> int:
    """Run the load, print a table, save the file; 0, or 1 if every request failed, 2 if unasked.

    A wrong call (a value that cannot be, a file that cannot be written) is refused before
    anything is sent.
    """
    try:
        load = _load(args)
        _require_writable(args.save)
    except StudyError as error:
        print(f"study load: {error}", file=sys.stderr)
        return 2
    recording = run_inline(load)
    result = detailed(load, recording)
    _write(args.save, result)
    print(table(recording, result))
    return 0 if result["completed"] else 1


def _load(args: argparse.Namespace) -> Load:
    return Load(
        base_url=args.base_url,
        model=args.model,
        api_key=args.api_key,
        concurrency=args.concurrency,
        rate_per_s=args.rate,
        requests=args.requests,
        input_tokens=args.input_tokens,
        output_tokens=args.output_tokens,
        vocabulary=args.vocabulary,
        seed=args.seed,
        request_timeout_s=args.timeout,
    )


def detailed(load: Load, recording: Recording) -> dict[str, Any]:
    """The recording as `vllm bench serve --save-result --save-detailed` writes it (vLLM 0.32).

    Arrays are in seconds, in order of request; summaries (`_ms`) are over completed requests, with
    population standard deviations and linearly interpolated percentiles, as there. A failed
    request has TTFT 0, no ITL and length 0, as there. Summaries of nothing are NaN (null in JSON).
    """
    requests = recording.requests
    fine = (requests["error"] == "").to_numpy()
    gaps_s = _gaps_s(recording)
    ttft_s = (requests["first_s"] - requests["due_s"]).to_numpy()
    e2el_s = (requests["last_s"] - requests["due_s"]).to_numpy()
    output = requests["output_tokens"].to_numpy()
    several = fine & (output > 1)
    tpot_s = (e2el_s - ttft_s)[several] / (output[several] - 1)
    input_lens = requests["input_tokens"].fillna(load.input_tokens).astype(int)
    output_lens = np.where(fine, np.nan_to_num(output), 0).astype(int)
    inputs, outputs = int(input_lens[fine].sum()), int(output_lens.sum())
    duration_s = recording.info["wall_s"]
    return {
        **_heading(load, recording),
        "duration": duration_s,
        "completed": int(fine.sum()),
        "failed": int((~fine).sum()),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": int(fine.sum()) / duration_s,
        "request_goodput": None,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
        "input_lens": input_lens.tolist(),
        "output_lens": output_lens.tolist(),
        "ttfts": np.where(fine, ttft_s, 0.0).tolist(),
        "itls": [gap_s.tolist() if good else [] for gap_s, good in zip(gaps_s, fine, strict=True)],
        "latencies": np.where(fine, e2el_s, 0.0).tolist(),
        "start_times": requests["due_s"].tolist(),
        "generated_texts": [""] * len(requests),
        "errors": [_error(*row) for row in requests[["error", "error_text"]].to_numpy()],
        **_summary("ttft", ttft_s[fine]),
        **_summary("tpot", tpot_s),
        **_summary("itl", np.concatenate([np.empty(0), *_where(gaps_s, fine)])),
        **_summary("e2el", e2el_s[fine]),
        "client": recording.info,
    }


def table(recording: Recording, result: dict[str, Any]) -> str:
    """A short summary for the terminal."""
    kinds = recording.requests["error"].value_counts().drop("", errors="ignore")
    failures = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    lag_ms = recording.info["loop_lag_p99_s"] * 1e3
    lines = [
        f"requests     {len(recording.requests)}, completed {result['completed']}",
        f"failures     {failures or 'none'}",
        f"output       {result['output_throughput']:.1f} tok/s over {result['duration']:.2f} s, "
        "ramp and drain included",
    ]
    for name in ("ttft", "tpot", "itl"):
        p99 = f"{result[f'p99_{name}_ms']:.2f} ms"
        p99 = p99 if result["completed"] >= P99_NEEDS else f"needs {P99_NEEDS} requests"
        median_ms = result[f"median_{name}_ms"]
        lines.append(f"{name.upper():<12} median {median_ms:.2f} ms, p99 {p99}")
    because = recording.info["stopped_because"]
    lines.append(f"client lag   p99 {lag_ms:.2f} ms, its own lateness (stopped by: {because})")
    return "\n".join(lines)


def _heading(load: Load, recording: Recording) -> dict[str, Any]:
    return {
        "date": datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": load.model,
        "tokenizer_id": load.model,
        "num_prompts": len(recording.requests),
        "request_rate": "inf" if load.rate_per_s is None else load.rate_per_s,
        "burstiness": 1.0,
        "max_concurrency": load.concurrency,
    }


def _gaps_s(recording: Recording) -> list[NDArray[np.float64]]:
    """Times between the chunks of each request, in order of request."""
    chunks = recording.chunks
    ends = np.cumsum(recording.requests["chunks"].to_numpy())[:-1]
    return [np.diff(times_s) for times_s in np.split(chunks["time_s"].to_numpy(), ends)]


def _where(parts: list[NDArray[np.float64]], kept: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    return [part for part, keep in zip(parts, kept, strict=True) if keep]


def _summary(name: str, values_s: NDArray[np.float64]) -> dict[str, float]:
    ms = values_s * 1e3 if len(values_s) else np.array([np.nan])
    return {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(ms.std()),
        f"p99_{name}_ms": float(np.percentile(ms, 99)),
    }


def _error(kind: str, text: str) -> str:
    return f"{kind}: {text}" if kind else ""


def _require_writable(path: Path) -> None:
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StudyError(f"--save must be a file in a folder that can be written to; it was {path}")
    if path.exists() and not os.access(path, os.W_OK):
        raise StudyError(f"--save must be a file that can be written; {path} is read-only.")


def _write(path: Path, result: dict[str, Any]) -> None:
    """All or nothing: a temporary file beside it, then a rename."""
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, delete=False) as partial:
        partial.write(orjson.dumps(result))
    temporary = Path(partial.name)
    temporary.chmod(0o644)
    temporary.replace(path)


if __name__ == "__main__":
    command = argparse.ArgumentParser(prog="python -m study.load", description=__doc__)
    add_arguments(command)
    sys.exit(main(command.parse_args()))
