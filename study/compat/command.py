"""What each version of the engine allows, overrides or refuses, derived from its own source.

A row per device, family, back end asked for, block size, KV dtype and heads per rank. `allowed`
means that nothing that was read refuses it; it says nothing of speed or of compiled kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

import pandas as pd

from study.compat.devices import DEVICES, Device
from study.compat.offload import offload
from study.compat.source import Tree, open_tree
from study.compat.stages import FAMILIES, Answer, Engine, Family, Question
from study.errors import StudyError
from study.paths import PACKAGE
from study.store import write_atomically

COMPATIBILITY = PACKAGE.parent / "data" / "compatibility"
BLOCK_SIZES = (None, 1, 16, 32, 64, 128)  # None: no flag
HEADS = (4, 8, 12, 16, 32, 64, 128)
KV_DTYPES = {
    "gqa": ("auto", "fp8"),
    "mla": ("auto", "fp8"),
    "mla-sparse": ("auto", "fp8", "fp8_ds_mla"),
}
COLUMNS = (
    "version", "device", "aiter", "family", "asked_backend", "kv_dtype", "heads", "asked_block",
    "outcome", "stage", "backend", "block_size", "kernel_block", "switched", "words", "evidence",
)  # fmt: skip
OFFLOAD_COLUMNS = (
    "version", "device", "aiter", "family", "outcome", "backend", "route", "words", "evidence",
)  # fmt: skip


def derive(tree: Tree, devices: Iterable[Device] = DEVICES) -> pd.DataFrame:
    """The table of one version.

    device, heads: those that share an answer, separated by commas and blanks; asked_block: 0
    where the flag is not given; switched: the flag alone changed the back end.
    """
    table = _merged(devices, lambda device: _table(Engine(tree, device)))[list(COLUMNS)]
    return table.astype({"block_size": "Int64", "kernel_block": "Int64"})


def derive_offload(tree: Tree, devices: Iterable[Device] = DEVICES) -> pd.DataFrame:
    """Whether native KV offload starts, a row per device and family."""

    def rows(device: Device) -> pd.DataFrame:
        known = {"version": tree.version, "aiter": device.aiter}
        found = (offload(tree, device, family) for family in FAMILIES.values())
        return pd.DataFrame([known | vars(one) for one in found])

    return _merged(devices, rows)[list(OFFLOAD_COLUMNS)]


def _merged(devices: Iterable[Device], table_of: Callable[[Device], pd.DataFrame]) -> pd.DataFrame:
    """The tables of all devices; those whose rows are all the same are one."""
    alike: dict[str, tuple[list[str], pd.DataFrame]] = {}
    for device in devices:
        table = table_of(device)
        names, _ = alike.setdefault(table.to_csv(), ([], table))
        names.append(device.name)
    tables = [table.assign(device=", ".join(names)) for names, table in alike.values()]
    return pd.concat(tables, ignore_index=True)


def read(folder: Path = COMPATIBILITY, *, offloading: bool = False) -> pd.DataFrame:
    """The committed tables, of all versions in order: of block sizes, or those of offload.

    Raises StudyError when there is none.
    """
    files = [file for file in folder.glob("*.csv") if ("-offload" in file.stem) == offloading]
    if not files:
        raise StudyError(
            f"{folder} must hold tables of compatibility, and holds none: make them with "
            "`python -m study compat --wheel PATH`"
        )
    files.sort(key=lambda file: order(file.stem.removesuffix("-offload")))
    text = dict.fromkeys(("version", "heads", "asked_backend", "aiter"), str)
    frames = [pd.read_csv(file, dtype=text, keep_default_na=False) for file in files]
    table = pd.concat(frames, ignore_index=True)
    for column in {"block_size", "kernel_block"} & set(table):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("Int64")
    return table


def order(version: str) -> tuple[int, ...]:
    """A version as numbers, to sort by."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _table(engine: Engine) -> pd.DataFrame:
    return pd.DataFrame([row for family in FAMILIES.values() for row in _rows(engine, family)])


def _rows(engine: Engine, family: Family) -> Iterator[dict[str, object]]:
    backends = ("", *engine.backends(family))
    for backend, kv_dtype in product(backends, KV_DTYPES[family.name]):
        asked = Question(family, backend, None, kv_dtype, HEADS[0])
        plain = {heads: engine.answer(replace(asked, heads=heads)) for heads in HEADS}
        for block in BLOCK_SIZES:
            answers = [
                (heads, engine.answer(replace(asked, block_size=block, heads=heads)))
                for heads in HEADS
            ]
            for answer, heads in _alike(answers):
                yield {
                    "version": engine.tree.version,
                    "aiter": engine.device.aiter,
                    "family": family.name,
                    "asked_backend": backend,
                    "kv_dtype": kv_dtype,
                    "heads": " ".join(map(str, heads)),
                    "asked_block": block or 0,
                    "switched": _is_switched(backend, answer, plain[heads[0]]),
                    **vars(answer),
                }


def _is_switched(asked: str, answer: Answer, plain: Answer) -> bool:
    """Nobody named a back end, and with the flag it is another than without."""
    both = answer.backend and plain.backend
    return bool(not asked and both and answer.backend != plain.backend)


def _alike(answers: list[tuple[int, Answer]]) -> Iterator[tuple[Answer, list[int]]]:
    """Answers that differ in nothing but their words (which may name the heads), with the heads."""

    def key(one: tuple[int, Answer]) -> str:
        return str(replace(one[1], words=""))

    for _, group in groupby(sorted(answers, key=key), key=key):
        found = list(group)
        yield found[0][1], sorted(heads for heads, _ in found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m study compat`."""
    parser.add_argument(
        "--wheel",
        default="installed",
        help="a wheel file of vLLM, a folder that holds vllm/, or `installed` (the default)",
    )
    parser.add_argument("--out", type=Path, help="a folder for <version>.csv, instead of a summary")


def main(options: argparse.Namespace) -> int:
    if options.out is not None and not options.out.is_dir():
        raise StudyError(f"--out must be a folder; {options.out} is none. Make it first.")
    tree = open_tree(options.wheel)
    table = derive(tree, DEVICES)
    if options.out is None:
        print(summary(table).to_string(index=False))
        return 0
    for suffix, frame in (("", table), ("-offload", derive_offload(tree, DEVICES))):
        file = options.out / f"{tree.version}{suffix}.csv"
        write_atomically(file, frame.to_csv(index=False, lineterminator="\n").encode())
        print(f"{len(frame):,} rows: {file}")
    print(f"source read: SHA-256 {tree.digest()}")
    return 0


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many of a device's and family's answers have each outcome, and how many switch."""
    keys = ["version", "device", "aiter", "family"]
    counts = table.pivot_table(
        index=keys, columns="outcome", values="stage", aggfunc="size"
    ).fillna(0)
    switched = table.groupby(keys)["switched"].sum()
    return counts.astype(int).join(switched.astype(int)).reset_index()
