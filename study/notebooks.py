"""Notebooks, executed by papermill with checked parameters and their progress on the terminal."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from study import paths
from study.errors import StudyError, unknown_name
from study.experiments import EXPERIMENTS, by_notebook

REPORT = "90_report"


def names() -> list[str]:
    """Every notebook of the study, in reading order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))


def analyses() -> list[str]:
    """Notebooks that start no server and reason about what is known: each takes seconds."""
    return [name for name in names() if name not in EXPERIMENTS and name != REPORT]


def parse(words: list[str]) -> dict[str, object]:
    """Parameters as written on a command line: `levels=[1,16] launches=5`."""
    found: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise StudyError(
                f"a parameter must be written name=value, as in launches=5; it was {word!r}"
            )
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise StudyError(
                f"the value of {name} must be YAML or JSON; it was {value!r}"
            ) from error
    return found


def execute(notebook: str, parameters: Mapping[str, object]) -> Path:
    """Run a notebook from `notebooks/`; return the executed copy in `build/`.

    Raises: StudyError for an unknown notebook or parameter, before anything is started, and when
        a cell fails (the executed copy shows which). KeyboardInterrupt once the kernel has stopped
        what it was measuring.
    """
    if notebook not in names():
        raise unknown_name("a notebook", notebook, names())
    if notebook in EXPERIMENTS:
        by_notebook(notebook).of(parameters)
    import papermill  # three seconds; only who executes needs it

    # Its own warning knows the tagged cell only; the check above knows every parameter.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    paths.BUILD.mkdir(parents=True, exist_ok=True)
    executed = paths.BUILD / f"{notebook}.ipynb"
    with _interruptible() as interrupted:
        try:
            papermill.execute_notebook(
                str(paths.NOTEBOOKS / f"{notebook}.ipynb"),
                str(executed),
                parameters=_plain(parameters),
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                # It warns of its loopback and of its end; errors of cells come as messages.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except papermill.exceptions.PapermillExecutionError as error:
            if interrupted.is_set() or error.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt from error
            raise StudyError(
                f"{notebook} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                f"  the executed copy shows where: {executed}"
            ) from error
        except Exception as error:
            if interrupted.is_set():
                raise KeyboardInterrupt from error
            if isinstance(error, RuntimeError):  # the kernel died, for want of memory say
                raise StudyError(f"{notebook} did not run to its end: {error}") from error
            raise
    return executed


def _plain(parameters: Mapping[str, object]) -> dict[str, Any]:
    return {
        name: [str(item) if not isinstance(item, int | float | str) else item for item in value]
        if isinstance(value, tuple | list)
        else value
        for name, value in parameters.items()
    }


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Remember that Ctrl-C was pressed, whatever the notebook client makes of it."""
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
