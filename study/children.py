"""Processes that this one starts: how they find this package, and who stands under them."""

from __future__ import annotations

import contextlib
import os

import psutil

from study import paths


def environment() -> dict[str, str]:
    """What a Python process needs to import this package, wherever it starts."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(paths.PACKAGE.parent), inherited]))}


def family(pid: int | None) -> list[psutil.Process]:
    """All that a process has started and that still run, and itself, last; none if it is gone."""
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid) if pid is not None else None
        return [*leader.children(recursive=True), leader] if leader else []
    return []
