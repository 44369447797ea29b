"""What the installed engine's back ends say when they are imported, beside what reading gives.

Import and reading are two ways to the same answer; where they differ, one of them is wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd

from study.compat.devices import DEVICES
from study.compat.source import Tree
from study.compat.stages import Engine
from study.compat.steps import NotDerived, Refused, call
from study.errors import StudyError

TIMEOUT_S = 300
# Runs in a process of its own: importing the engine takes long and changes the process.
_ASK = """
import json
from vllm.v1.attention.backends.registry import AttentionBackendEnum
said = {}
for one in AttentionBackendEnum:
    try:
        found = one.get_class()
        sizes = [str(size) for size in found.get_supported_kernel_block_sizes()]
        said[one.name] = [sizes, list(map(str, found.supported_kv_cache_dtypes))]
    except Exception as error:
        said[one.name] = f"{type(error).__name__}: {error}"
print("SAID" + json.dumps(said))
"""


def imported() -> dict[str, list[list[str]] | str]:
    """Back end -> [block sizes, KV dtypes] by import, or why it could not be imported."""
    answer = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    for line in answer.stdout.splitlines():
        if line.startswith("SAID"):
            said: dict[str, list[list[str]] | str] = json.loads(line.removeprefix("SAID"))
            return said
    raise StudyError(f"the engine could not be imported: {answer.stderr[-500:]}")


def read(tree: Tree, kind: str = "cpu") -> dict[str, list[list[str]] | str]:
    """The same by reading, on the first planted device of that kind."""
    engine = Engine(tree, next(device for device in DEVICES if device.kind == kind))
    engine.plain()
    said: dict[str, list[list[str]] | str] = {}
    for name, one in engine.registry.__members__.items():
        try:
            found = call(engine.loader, one.get_class)
            sizes = call(engine.loader, found.get_supported_kernel_block_sizes)
            dtypes = call(engine.loader, list, found.supported_kv_cache_dtypes)
            said[name] = [list(map(str, sizes)), list(map(str, dtypes))]
        except (NotDerived, Refused) as error:
            said[name] = str(error)
    return said


def beside(tree: Tree, kind: str = "cpu") -> pd.DataFrame:
    """A row per back end that both ways answer for: what each says, and whether they agree."""
    by_import, by_reading = imported(), read(tree, kind)
    rows = [
        {
            "backend": name,
            "imported": " ".join(answer[0]),
            "read": " ".join(by_reading[name][0]),
            "agree": answer == by_reading[name],
        }
        for name, answer in by_import.items()
        if not isinstance(answer, str) and not isinstance(by_reading[name], str)
    ]
    return pd.DataFrame(rows, columns=["backend", "imported", "read", "agree"])
