"""The second instrument: the engine's own `vllm bench serve`, on the load of a window of ours.

    python -m study.second 1,2 warm --base-url URL ...   the same by hand, on these cores

Its console script fails in the CPU build, so its module is called. It takes ten seconds to start,
in which an idle engine grows cold, and it counts its first requests like all others: so it is run
twice in one process (`warm`), and the first run is our warm-up. The file of the second one is
kept as it is, beside our recording.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from study import children, engine
from study.counters import counters, idle_counters
from study.experiment import WindowPlan
from study.plan import Launch
from study.server import Server

TOOL = "vllm bench serve"
RESULT, LOG = "second.json", "second.log"
LIMIT_S = 300.0
OTHER_SEED = 500  # of the warm-up
BEFORE, CPU = "ENGINE_BEFORE", "CPU_S"  # what its process says of the run that counts
MISSING = ("ImportError", "ModuleNotFoundError")


def measure(
    launch: Launch,
    number: int,
    window: WindowPlan,
    server: Server,
    requests: int,
    cpus: Sequence[int],
    folder: Path,
) -> dict[str, Any]:
    """Send the load of the launch's `number`-th window once more, so many requests of other
    prompts, and keep the tool's file in `folder`.

    Returns what goes into window.json: tool, outcome (`measured`, `not applicable` where the
    tool is not installed whole, `failed`), reason in its own words, the engine's counters
    before and after the run that counts, its cpu_s, and wall_s of everything.
    """
    began = time.monotonic()
    words = arguments(launch, number, window, server, requests, folder)
    outcome, reason, said = _run(words, cpus, server.api_key)
    (folder / LOG).write_text(said)
    return {
        "tool": TOOL,
        "outcome": outcome,
        "reason": reason,
        "before": orjson.loads(_marked(said, BEFORE) or "{}"),
        "after": idle_counters(server),
        "cpu_s": cpu_s(said),
        "wall_s": time.monotonic() - began,
    }


def arguments(
    launch: Launch, number: int, window: WindowPlan, server: Server, requests: int, folder: Path
) -> dict[str, object]:
    """The tool's options for this window: same model, level and lengths, another seed."""
    return {
        "backend": "openai",
        "base-url": server.base_url,
        "model": server.name,
        "tokenizer": engine.folder_of(launch.arm.model),
        "dataset-name": "random",
        "random-input-len": window.workload.input_tokens,
        "random-output-len": window.workload.output_tokens,
        "num-prompts": requests,
        "max-concurrency": window.level,
        "temperature": 0,
        "seed": 1000 * (launch.seed + launch.block) + number,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "result-dir": folder,
        "result-filename": RESULT,
    }


def command(options: Mapping[str, object], cpus: Sequence[int], warm: bool) -> list[str]:
    """How the tool is called, on these cores, after a warm-up or not, with all its detail kept."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    flags = ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
    cores, state = ",".join(map(str, cpus)), "warm" if warm else "cold"
    return [sys.executable, "-m", "study.second", cores, state, *words, *flags]


def environment(api_key: str = "") -> dict[str, str]:
    """What the tool needs to find this package, and the server to know it."""
    own = {**children.environment(), "no_proxy": "*"}  # the server is on this machine
    key = {"OPENAI_API_KEY": api_key} if api_key else {}
    return {**os.environ, **engine.environment(), **own, **key}


def cpu_s(said: str) -> float:
    """CPU time of the run that counts, from what the process said; NaN if it did not."""
    return float(_marked(said, CPU) or "nan")


def _marked(said: str, mark: str) -> str:
    """The rest of the last line that begins with the mark; empty without one."""
    found = [line for line in said.splitlines() if line.startswith(mark)]
    return found[-1].removeprefix(mark) if found else ""


def _run(options: Mapping[str, object], cpus: Sequence[int], api_key: str) -> tuple[str, str, str]:
    """Outcome, reason, and all that the tool said."""
    try:
        done = subprocess.run(
            command(options, cpus, warm=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(api_key),
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        return "failed", f"it was not done after {LIMIT_S:.0f} s", said
    if done.returncode == 0:
        return "measured", "", done.stdout
    reason = engine.reason(done.stdout).text
    lacks = reason.startswith(MISSING)
    return ("not applicable" if lacks else "failed"), reason, done.stdout


def main(words: Sequence[str]) -> None:
    """The tool itself, in this process."""
    os.sched_setaffinity(0, map(int, words[0].split(",")))
    from vllm.benchmarks import serve

    parser = _parser()
    serve.add_cli_args(parser)
    asked = parser.parse_args(list(words[2:]))
    if words[1] == "warm":
        first = copy.copy(asked)
        first.save_result, first.seed = False, asked.seed + OTHER_SEED
        serve.main(first)
    print(BEFORE, orjson.dumps(_counters(asked.base_url)).decode())
    began_s = time.process_time()
    serve.main(asked)
    print(CPU, time.process_time() - began_s)


def _parser() -> Any:
    """The engine's own parser; before 0.12 it had none here."""
    try:
        return importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    except ImportError:
        return argparse.ArgumentParser()


def _counters(base_url: str) -> dict[str, float]:
    """What the engine counts between the two runs; nothing where the server is not one."""
    page = urllib.request.Request(f"{base_url}/metrics")
    try:
        with urllib.request.urlopen(page, timeout=10) as answer:
            return counters(answer.read().decode())
    except OSError:
        return {}


if __name__ == "__main__":
    main(sys.argv[1:])
