"""The study from the shell: `python -m study --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.errors import StudyError

if TYPE_CHECKING:
    from study.profiles import Choice

RETRY = "try anew what failed before"
GO_ON = "What was measured is kept; run the same command to go on."


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something the user can mend, 2 a wrong call, 130 interrupted."""
    options = _parser().parse_args(arguments)
    if getattr(options, "retry", False):
        from study import store

        os.environ[store.FORGIVEN] = store.now()  # notebooks run in processes of their own
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstudy: stopped, and its servers with it. {GO_ON}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from study import fit, load
    from study.audit import command as audit
    from study.compat import command as compat

    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, command, text in (
        ("reproduce", _reproduce, "run the whole study and write the report"),
        ("plan", _plan, "say what `reproduce` would measure, and how long that takes"),
        ("report", _report, "compile the report from what is on disk"),
    ):
        one = commands.add_parser(name, help=text, description=text)
        _add_choice(one)
        if name != "report":
            one.add_argument("--budget", help="stop in time, as in 2h or 90min")
            one.add_argument("--retry", action="store_true", help=RETRY)
        one.set_defaults(command=command)

    run = commands.add_parser("run", help="run one notebook with parameters of your own")
    run.add_argument("notebook", help="its name, as in 20_architecture")
    run.add_argument("parameter", nargs="*", help="name=value, as in levels=[1,16]")
    run.add_argument("--retry", action="store_true", help=RETRY)
    run.set_defaults(command=_run)

    doctor = commands.add_parser("doctor", help="say what this machine and this engine are")
    doctor.set_defaults(command=_doctor)

    loads = commands.add_parser("load", help="drive any OpenAI-compatible server, save the detail")
    load.add_arguments(loads)
    loads.set_defaults(command=load.main)

    audits = commands.add_parser("audit", help="may these results be believed? a verdict per file")
    audit.add_arguments(audits)
    audits.set_defaults(command=audit.main)

    fits = commands.add_parser(
        "fit", help="how many devices does a model need, how fast can it be?"
    )
    fit.add_arguments(fits)
    fits.set_defaults(command=fit.main)

    text = "what a version of the engine allows, overrides or refuses, read from its source"
    compats = commands.add_parser("compat", help=text, description=text)
    compat.add_arguments(compats)
    compats.set_defaults(command=compat.main)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="auto", help="auto, smoke, cpu, gpu")
    parser.add_argument("--only", default="", help="notebooks, as in block_size,offload")
    parser.add_argument("--models", default="", help="models, as in gqa-dense,mla-dense")
    parser.add_argument("--launches", type=int, help="launches of every arm")
    parser.add_argument("--prompts", default="", help="a JSONL file of prompts of your own")


def _choice(options: argparse.Namespace) -> Choice:
    from study.profiles import Choice

    def split(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.replace(",", " ").split() if part)

    if options.launches is not None and options.launches < 1:
        raise StudyError(f"launches must be at least 1; it was {options.launches}")
    prompts = str(Path(options.prompts).expanduser().resolve()) if options.prompts else ""
    only, models = split(options.only), split(options.models)
    return Choice(options.profile, only, models, options.launches or 0, prompts)


def _budget_s(options: argparse.Namespace) -> float | None:
    from study import budget

    return budget.parse(options.budget) if options.budget else None


def _reproduce(options: argparse.Namespace) -> int:
    from study.reproduce import reproduce

    reproduce(_choice(options), _budget_s(options))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from study import profiles
    from study.reproduce import describe
    from study.store import Store

    print(describe(profiles.load(_choice(options)), Store(), _budget_s(options)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from study.reproduce import report

    print(f"the report: {report(_choice(options))}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from study import notebooks

    executed = notebooks.execute(options.notebook, notebooks.parse(options.parameter))
    print(f"the executed notebook: {executed}")
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    from study import cores, platform

    machine, engine = platform.machine(), platform.engine()
    rows = {
        "engine": f"{engine.package} {engine.version} for {engine.kind}",
        "GPUs": ", ".join(machine.gpus) or "none",
        "CPU": f"{machine.cpu}, {machine.cores} cores",
        "with": ", ".join(machine.instructions) or "no instructions that matter",
        "memory": f"{machine.memory_gib} GiB",
        "system": machine.system,
        "client on": f"core {', '.join(map(str, cores.client()))}",
        **platform.packages(),
    }
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
