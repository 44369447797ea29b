"""A study of its own for a test: nothing it does touches what was measured."""

from __future__ import annotations

from pathlib import Path

from study import paths

KNOWN = paths.ROOT / ".cache/vllm"  # what engines found out about a model: 12 s of every start


def empty(folder: Path) -> Path:
    """Make a folder the root of an empty study, whose engines share what they know of models."""
    KNOWN.mkdir(parents=True, exist_ok=True)
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache/vllm").symlink_to(KNOWN, target_is_directory=True)
    return folder
