"""Processes that this one starts: how they find this package, and who stands under them."""

from __future__ import annotations

import os

import psutil

from study import paths


def environment() -> dict[str, str]:
    """What a Python process needs to import this package, wherever it starts."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(paths.PACKAGE.parent), inherited]))}


def family(pid: int | None) -> list[psutil.Process]:
    """All that a process has started and that still run, and itself, last; none if it is gone."""
    if pid is None:
        return []
    try:
        leader = psutil.Process(pid)
        return [*leader.children(recursive=True), leader]
    except psutil.Error:
        return []
