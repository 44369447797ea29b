"""The study beside `vllm bench sweep serve`: two arms, six levels, as many requests at each.

    python benchmarks/sweep.py

Both start the same two servers and send as many requests of the same lengths at the same levels.
What is compared is the time of a level that is not load: start-up, waiting, writing. Takes about
six minutes on two cores. Writes data/derived/benchmark_sweep.csv.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from anywhere, installed or not

from study import engine, paths  # noqa: E402
from study.experiments import Architecture  # noqa: E402
from study.run import run_experiment  # noqa: E402
from study.server import free_port  # noqa: E402
from study.store import Store  # noqa: E402

LEVELS = [1, 2, 4, 8, 16, 32]
ASKED = Architecture.of(
    {
        "models": ["gqa-dense", "gqa-moe"],
        "levels": LEVELS,
        "workloads": ["short:128/64"],
        "launches": 1,
    }
)
# The console script fails in the CPU build, so the bench command is called through its module. It
# notes its own life, from the creation of the process to its end.
BENCH = """
import json, os, sys, time
import psutil
from vllm.benchmarks import serve
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from argparse import ArgumentParser as FlexibleArgumentParser
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
asked = parser.parse_args()
result = serve.main(asked)
row = {"level": asked.max_concurrency, "wall_s": time.time() - psutil.Process().create_time()}
with open(os.environ["BENCH_NOTES"], "a") as notes:
    print(json.dumps({**row, "load_s": result["duration"]}), file=notes)
"""


def main() -> None:
    """Run both and print the time per level that is not load."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = Store(folder / "raw")
        run_experiment(ASKED, store)
        ours = pd.DataFrame(studys(store))
        most = ours.groupby("level")["requests"].max()
        theirs = pd.DataFrame(sweeps(folder, {level: int(most[level]) for level in LEVELS}))
    table = pd.concat([ours.assign(tool="study"), theirs.assign(tool="vllm bench sweep serve")])
    table["overhead_s"] = table["wall_s"] - table["load_s"]
    paths.DERIVED.mkdir(parents=True, exist_ok=True)
    table.to_csv(paths.DERIVED / "benchmark_sweep.csv", index=False)
    print(table.groupby(["tool", "level"])[["wall_s", "load_s", "overhead_s"]].mean().round(2))
    print(table.groupby("tool")["overhead_s"].describe()[["count", "mean", "max"]].round(2))


def studys(store: Store) -> list[dict[str, float]]:
    """A row per level of the study: all its loads, warm-up slices included, and its wall time."""
    rows = []
    for attempt in store.attempts():
        for folder in attempt.windows:
            content = orjson.loads((folder / "window.json").read_bytes())
            loads = [*folder.glob("warm/*"), folder / "load"]
            infos = [orjson.loads((load / "info.json").read_bytes()) for load in loads]
            requests = sum(len(pd.read_parquet(load / "requests.parquet")) for load in loads)
            rows.append(
                {
                    "level": content["plan"]["level"],
                    "requests": requests,
                    "load_s": sum(info["wall_s"] for info in infos),
                    "wall_s": content["wall_s"],
                }
            )
    return rows


def sweeps(folder: Path, requests: dict[int, int]) -> list[dict[str, float]]:
    """A row per level of `vllm bench sweep serve` for the same two servers."""
    arms, port, notes = ASKED.arms(), free_port(), folder / "notes"
    models = [str(engine.model_folder(arm.model, 0)) for arm in arms]
    command = engine.command(arms[0], sys.executable, Path(models[0]), "arm", port, seed=0)
    (folder / "serve.json").write_text(json.dumps([{"model": model} for model in models]))
    bench = [{"max_concurrency": level, "num_prompts": requests[level]} for level in LEVELS]
    (folder / "bench.json").write_text(json.dumps(bench))
    workload = ASKED.workloads[0]
    words = ["--model", "arm", "--tokenizer", models[0], "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dataset-name", "random", "--random-input-len", str(workload.input_tokens)]
    words += ["--random-output-len", str(workload.output_tokens), "--ignore-eos"]
    sweep = [sys.executable, "-m", "vllm.benchmarks.sweep.serve", "--num-runs", "1"]
    sweep += ["--serve-cmd", shlex.join(command.argv)]
    sweep += ["--bench-cmd", shlex.join([sys.executable, "-c", BENCH, *words])]
    # It resets caches only behind the console script's name; here no cache outlives a request.
    sweep += ["--after-bench-cmd", shlex.join([sys.executable, "-c", "pass"])]
    sweep += ["--serve-params", str(folder / "serve.json")]
    sweep += ["--bench-params", str(folder / "bench.json"), "--output-dir", str(folder / "out")]
    environment = {**os.environ, **command.environment, "BENCH_NOTES": str(notes)}
    answer = subprocess.run(sweep, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode or not notes.exists():
        sys.exit(f"vllm bench sweep serve failed:\n{answer.stdout[-2000:]}{answer.stderr[-3000:]}")
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    return [{**line, "requests": requests[line["level"]]} for line in lines]


if __name__ == "__main__":
    main()
