"""Let the engine look at its model classes beforehand: `python -m study.acquaint CLASS ...`.

About each class that it meets for the first time vLLM asks a process of its own, 12 s on two
cores, and keeps the answer; a start that waits for that is not like the others. So one process
looks at all of them, while notebooks run that measure nothing. Nothing rests on it: what it could
not look at, the first server will.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from study import engine, models, paths
from study.plan import Launch

LIMIT_S = 90.0  # after that the servers have to do it


@contextmanager
def acquainted(launches: Iterable[Launch]) -> Iterator[Callable[[], None]]:
    """Begin to look at the classes of these launches that the engine has not met yet.

    Gives what waits for the end, to be called before anything is measured.
    """
    kept = paths.CACHE / "vllm" / "modelinfos"
    classes = sorted({models.class_name(launch.arm.model) for launch in launches})
    unknown = [name for name in classes if not any(kept.glob(f"*-{name}.json"))]
    if not unknown:
        yield lambda: None
        return
    looking = subprocess.Popen(
        [sys.executable, "-m", "study.acquaint", *unknown],
        env={**os.environ, **engine.environment()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield lambda: _finish(looking)
    finally:
        looking.kill()
        looking.wait()


def _finish(looking: subprocess.Popen[bytes]) -> None:
    try:
        looking.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        looking.kill()


def main(classes: Sequence[str]) -> None:
    """Look at these classes of the engine, in this process."""
    from vllm.model_executor.models import registry
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # type: ignore[no-untyped-call]
    # The engine would start a process for each, to keep itself clear of CUDA: so is this one.
    registry._run_in_subprocess = lambda fn: fn()
    for name in classes:
        registry.ModelRegistry.models[name].inspect_model_cls()


if __name__ == "__main__":
    main(sys.argv[1:])
