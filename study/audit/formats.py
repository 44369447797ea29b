"""Results of others, read into one shape. A format is recognised by what it must hold, or refused.

| format | recognised by |
|---|---|
| `vllm bench serve` | the keys that every version writes, summaries `..._ms` in milliseconds |
| `vllm bench serve, detailed` | the same with the arrays of `--save-detailed`, in seconds |
| `vllm bench serve, in seconds` | the same keys, summaries without `_ms`, in seconds |
| `table of levels` | CSV whose columns are all among `COLUMNS`, one row a level |

Everything is held in SI units.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from study.audit.arithmetic import MOST, half_unit, possible, ratio
from study.audit.detail import Detail, read_detail
from study.audit.json_reader import Members, objects
from study.errors import StudyError, unknown_name

VLLM = "vllm bench serve"
VLLM_DETAILED = "vllm bench serve, detailed"
VLLM_SECONDS = "vllm bench serve, in seconds"
TABLE = "table of levels"
UNKNOWN = "unknown"

# Every version of `vllm bench serve`, and of benchmark_serving.py before it, writes these.
VLLM_KEYS = ("model_id", "num_prompts", "duration", "completed", "request_throughput")
UNLIMITED = ("request_rate", "max_concurrency")  # which may be infinite
SUMMARY = re.compile(r"(mean|median|std|p\d+(?:\.\d+)?)_(ttft|tpot|itl|e2el)(_ms)?")
RATES = {
    "request_throughput": "request_s",
    "request_goodput": "goodput_request_s",
    "request_goodput:": "goodput_request_s",  # the spelling of 2024
    "input_throughput": "input_tok_s",
    "output_throughput": "output_tok_s",
    "total_token_throughput": "total_tok_s",
}
# What tells other tools' files apart, so that the refusal can name them.
OTHERS = {
    "a GuideLLM report": {"benchmarks", "metadata"},
    "an AIPerf export": {"input_config", "error_summary"},
    "an InferenceX row (rates per GPU, no counts)": {"hw", "conc", "tput_per_gpu"},
    "an inference-perf report": {"load_summary", "successes"},
    "an llm-d benchmark report": {"run", "scenario", "results"},
}

METRICS = ("ttft", "tpot", "itl", "e2e")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
COLUMNS: Mapping[str, str] = {
    "level": "requests in flight that were asked for (the one column a table must have)",
    "requests": "how many were sent at the level",
    "completed": "how many of them completed",
    "duration_s": "from the first request to the end of the last",
    "request_s": "completed requests per second",
    "input_tok_s": "input tokens per second",
    "output_tok_s": "output tokens per second",
    "total_tok_s": "input and output tokens per second",
    "tokens_per_request": "input and output tokens of a request, as delivered",
    "input_tokens": "input tokens of a request, as asked",
    "output_tokens": "output tokens of a request, as asked",
    **{
        f"{metric}_{statistic}_s": f"{statistic} of {metric.upper()}, seconds"
        for metric in METRICS
        for statistic in STATISTICS
    },
}
EXACT, ROUNDED = 0.001, 0.01  # relative: what a program writes, what a person types into a table


@dataclass(frozen=True)
class Window:
    """One level as somebody reported it; NaN, or nothing, where they did not say.

    `level`: requests in flight asked for (closed loop). `rate_s`: requests per second asked for
    (open loop). `rates` by name as in `COLUMNS`; `times_s` by metric and statistic, in seconds.
    `tokens_per_request` and `asked_tokens` count input and output. `rounding`: the relative
    error that writing the numbers down may have made; `halves`: by name as in `COLUMNS`, what
    the digits that were written leave open beside it.
    """

    name: str
    model: str = ""
    level: float = math.nan
    rate_s: float = math.nan
    steady_rate: bool = True
    requests: float = math.nan
    completed: float = math.nan
    failed: float = math.nan
    duration_s: float = math.nan
    input_tokens: float = math.nan
    output_tokens: float = math.nan
    tokens_per_request: float = math.nan
    asked_tokens: float = math.nan
    rates: Mapping[str, float] = field(default_factory=dict)
    times_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    detail: Detail | None = None
    rounding: float = EXACT
    halves: Mapping[str, float] = field(default_factory=dict)

    def slack(self, *names: str) -> float:
        """How far, relatively, honest numbers may miss what follows from those of these names."""
        return self.rounding + sum(self.halves.get(name, 0.0) for name in names)

    def rate(self, name: str) -> float:
        return self.rates.get(name, math.nan)

    def time_s(self, metric: str, statistic: str) -> float:
        return self.times_s.get(metric, {}).get(statistic, math.nan)

    @property
    def request_s(self) -> float:
        """Completed requests per second, as stated or as counts and lengths give it."""
        if self.duration_s > 0 and self.completed >= 0:
            return self.completed / self.duration_s
        if not math.isnan(self.rate("request_s")):
            return self.rate("request_s")
        return ratio(self.rate("total_tok_s"), self.tokens_per_request)


@dataclass(frozen=True)
class Source:
    """A file that was read: its format and its windows, in the order of the file. `listed`: it is
    one list of results, as a sweep sums its runs up."""

    path: Path
    format: str
    windows: tuple[Window, ...]
    listed: bool = False


def read(path: Path) -> Source:
    """Read a result file. StudyError with the reason where it cannot be, or is not known."""
    try:
        with path.open("rb") as file:
            begin = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not begin:
            raise StudyError("the file is empty.")
        if begin[:1] in (b"{", b"["):
            return _read_json(path, listed=begin[:1] == b"[")
        return _read_table(path)
    except OSError as error:
        raise StudyError(f"cannot be opened: {error.strerror or error}.") from None


# --------------------------------------------------------------------------------------- JSON


def _read_json(path: Path, listed: bool) -> Source:
    found = [_read_vllm(members) for members in objects(path)]
    if not found:
        raise StudyError("there is no result in it.")
    formats = {form for form, _ in found}
    if len(formats) > 1:
        raise StudyError(f"several formats in one file: {', '.join(sorted(formats))}.")
    windows = [window for _, window in found]
    if len(windows) > 1:
        windows = [_renamed(window, f"result {i}") for i, window in enumerate(windows, 1)]
    return Source(path, formats.pop(), tuple(windows), listed)


def is_summary(path: Path) -> bool:
    """Whether it is the table, a row a run, that `vllm bench sweep` writes beside its runs."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return set(VLLM_KEYS) <= set(next(csv.reader(file), ()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _renamed(window: Window, name: str) -> Window:
    level = "" if math.isnan(window.level) else f", level {window.level:g}"
    return replace(window, name=f"{name}{level}")


def _read_vllm(members: Members) -> tuple[str, Window]:
    """One result of `vllm bench serve`: any version, detailed or not, in either unit."""
    missing = [key for key in VLLM_KEYS if key not in members]
    if missing:
        raise _refused(members, missing)
    summaries = {key: found for key in members.spans if (found := SUMMARY.fullmatch(key))}
    units = {bool(found[3]) for found in summaries.values()}
    if len(units) != 1:
        why = "in milliseconds and in seconds" if units else "missing"
        raise StudyError(f"latency summaries must be in one unit; they are {why}.")
    scale = 1e-3 if units.pop() else 1.0
    times_s: dict[str, dict[str, float]] = {}
    for key, found in summaries.items():
        metric = "e2e" if found[2] == "e2el" else found[2]
        statistic = "p50" if found[1] == "median" else found[1]
        times_s.setdefault(metric, {})[statistic] = _number(members, key) * scale
    duration_s = _number(members, "duration")
    detail = read_detail(members, duration_s)
    detailed = detail is not None and "ttfts" in members
    form = VLLM_SECONDS if scale == 1.0 else VLLM_DETAILED if detailed else VLLM
    rate_s, level = _number(members, "request_rate"), _number(members, "max_concurrency")
    if level < 0:
        raise StudyError(f"max_concurrency must be positive, or null; it was {level:g}.")
    named = {key: name for key, name in RATES.items() if key in members}
    rates = {name: _number(members, key) for key, name in named.items()}
    halves = {name: half_unit(members.written(key)) for key, name in named.items()}
    halves["duration_s"] = half_unit(members.written("duration"))
    window = Window(
        name="",
        model=str(members.value("model_id")),
        level=level if 0 < level < math.inf else math.nan,
        rate_s=rate_s if 0 < rate_s < math.inf else math.nan,
        steady_rate="ramp_up_strategy" not in members,
        requests=_positive(_number(members, "num_prompts")),
        completed=_number(members, "completed"),
        failed=_number(members, "failed"),
        duration_s=duration_s,
        input_tokens=_number(members, "total_input_tokens"),
        output_tokens=_number(members, "total_output_tokens"),
        rates=rates,
        times_s=times_s,
        detail=detail,
        halves=halves,
    )
    return form, window


def _positive(requests: float) -> float:
    """How many were asked for; vLLM's client takes -1 for all that there are, so NaN."""
    return requests if requests > 0 else math.nan


def _number(members: Members, key: str) -> float:
    """A number, NaN where the key is missing or null. 'inf' is a rate without limit."""
    value: Any = members.value(key)
    if value is None:
        return math.nan
    if value in ("inf", math.inf) and key in UNLIMITED:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StudyError(f"{key} must be a number; it was {value!r:.40}.")
    if not possible(value):
        raise StudyError(f"{key} must be a number of a measurement, up to {MOST:g}; it was not.")
    return float(value)


def _refused(members: Members, missing: Sequence[str]) -> StudyError:
    keys = set(members.spans)
    known = [name for name, needs in OTHERS.items() if needs <= keys]
    seems = f" It looks like {known[0]}, which is not read." if known else ""
    held = ", ".join(list(members.spans)[:6]) or "nothing"
    return StudyError(
        f"no format that is known: a result of vllm bench serve has {', '.join(missing)}; "
        f"this one holds {held}.{seems}"
    )


# -------------------------------------------------------------------------------------- table


def _read_table(path: Path) -> Source:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"neither JSON nor CSV: {error}.") from None
    return Source(path, TABLE, table_windows(rows))


def table_windows(rows: Sequence[Sequence[str]]) -> tuple[Window, ...]:
    """The levels of a table: a header with names of `COLUMNS`, then a row a level."""
    header = [name.strip() for name in rows[0]] if rows else []
    if "level" not in header:
        raise StudyError("no format that is known: neither JSON nor a CSV with a column 'level'.")
    for name in header:
        if name not in COLUMNS:
            raise unknown_name("a column", name, COLUMNS)
    if len(set(header)) < len(header):
        raise StudyError("a column may be there only once.")
    windows = []
    for line, row in enumerate(rows[1:], 2):
        if any(cell.strip() for cell in row):
            windows.append(_table_window(header, row, line))
    if not windows:
        raise StudyError("the table has no level.")
    return tuple(windows)


def _table_window(header: Sequence[str], row: Sequence[str], line: int) -> Window:
    if len(row) != len(header):
        raise StudyError(f"line {line} must have {len(header)} fields; it has {len(row)}.")
    cells = {name: _cell(name, text, line) for name, text in zip(header, row, strict=True)}
    given = {name: value for name, value in cells.items() if not math.isnan(value)}
    level = given.get("level", math.nan)
    if not 0 < level < math.inf:
        raise StudyError(f"line {line}: a level must be positive; it was {level:g}.")
    times_s = {
        metric: {
            statistic: given[name]
            for statistic in STATISTICS
            if (name := f"{metric}_{statistic}_s") in given
        }
        for metric in METRICS
    }

    def of(name: str) -> float:
        return given.get(name, math.nan)

    return Window(
        name=f"level {level:g}",
        level=level,
        requests=_positive(of("requests")),
        completed=of("completed"),
        duration_s=of("duration_s"),
        tokens_per_request=of("tokens_per_request"),
        asked_tokens=of("input_tokens") + of("output_tokens"),
        rates={name: given[name] for name in given if name.endswith(("tok_s", "request_s"))},
        times_s={metric: times for metric, times in times_s.items() if times},
        rounding=ROUNDED,
        halves={name: half_unit(text) for name, text in zip(header, row, strict=True)},
    )


def _cell(name: str, text: str, line: int) -> float:
    """A number of a table; blank is not stated. No thousands separators: 1,000 is two fields."""
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise StudyError(f"line {line}: {name} must be a number; it was {text!r}.")
    if not possible(value):
        raise StudyError(f"line {line}: {name} must be at most {MOST:g}; it was {value:g}.")
    return value
