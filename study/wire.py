"""What an answer means: decoded after the window from the timed reads of its bytes.

While a load runs, the client only notes (time, bytes) of each socket read. HTTP framing,
server-sent events, JSON and usage are found out here, afterwards. The time of an event is the time
of the read that brought the last byte of the blank line which ends it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Reads = Sequence[tuple[float, bytes]]

HEAD_END = b"\r\n\r\n"
BODY_END = b"\r\n0\r\n\r\n"  # the end of the last chunk but one, and the empty last chunk

_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)")
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close")
_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r)")


class WireError(Exception):
    """Bytes that are not what HTTP or server-sent events allow."""


# ----------------------------------------------------------------------------------- framing


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an HTTP answer; `size` counts its bytes, the blank line included."""

    status: int
    chunked: bool
    length: int | None
    closes: bool
    size: int


def read_head(raw: bytes) -> Head | None:
    """The head that `raw` begins with, or None while it is not whole."""
    size = raw.find(HEAD_END) + len(HEAD_END)
    if size < len(HEAD_END):
        return None
    head = raw[:size].lower()
    if not head.startswith(b"http/1.") or not head[9:12].isdigit():
        raise WireError(f"not an HTTP/1 answer: {raw[:40]!r}")
    length = _LENGTH.search(head)
    return Head(
        status=int(head[9:12]),
        chunked=_CHUNKED.search(head) is not None,
        length=int(length[1]) if length else None,
        closes=_CLOSES.search(head) is not None,
        size=size,
    )


def body_spans(raw: bytes, head: Head) -> tuple[list[int], list[int], bool]:
    """Starts and ends of the pieces of the body inside `raw`, and whether the body is whole."""
    if not head.chunked:
        # Without a length the body ends with the connection, so whatever came is all of it.
        end = len(raw) if head.length is None else head.size + head.length
        return [head.size], [min(end, len(raw))], len(raw) >= end
    starts: list[int] = []
    ends: list[int] = []
    at, total, find = head.size, len(raw), raw.find
    while (line_end := find(b"\r\n", at)) >= 0:
        try:
            size = int(raw[at:line_end].partition(b";")[0], 16)
        except ValueError:
            raise WireError(f"not a chunk size: {raw[at : at + 20]!r}") from None
        if size == 0:
            return starts, ends, raw.find(HEAD_END, line_end) >= 0
        start, at = line_end + 2, line_end + 4 + size
        starts.append(start)
        ends.append(min(at - 2, total))
        if at > total:
            break
        if raw[at - 2 : at] != b"\r\n":
            raise WireError(f"a chunk does not end where its size says: {raw[at - 2 : at + 18]!r}")
    return starts, ends, False


def split_events(body: bytes) -> tuple[list[bytes], list[int]]:
    """Data of every finished server-sent event, and the offset of the last byte of each."""
    blocks = body.split(b"\n\n")
    blocks.pop()  # unfinished, or empty
    plain = b"\r" not in body and body.count(b"\n") == 2 * len(blocks)
    if plain and all(block.startswith(b"data: ") for block in blocks):  # what vLLM sends
        ends = np.cumsum([len(block) + 2 for block in blocks]) - 1
        return [block[6:] for block in blocks], ends.tolist()
    return _split_any_events(body)


def _split_any_events(body: bytes) -> tuple[list[bytes], list[int]]:
    """Like split_events, for any line ending, field, comment and multi-line data."""
    payloads: list[bytes] = []
    ends: list[int] = []
    data: list[bytes] = []
    for line in _LINE.finditer(body):
        name, _, value = line[1].partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line[1] and data:
            payloads.append(b"\n".join(data))
            ends.append(line.end() - 1)
            data = []
    return payloads, ends


# ------------------------------------------------------------------------------------ answers


@dataclass(slots=True)
class Answer:
    """What one answer said.

    `token_s`: the time of every event that carries tokens. `input_tokens`, `output_tokens`: the
    engine's usage, NaN when not reported. `error` is '' or a kind: http_4xx, http_5xx, sse
    (cannot be parsed), engine_error (an error object in the stream), incomplete (no end, no
    usage or no token).
    """

    token_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    input_tokens: float = math.nan
    output_tokens: float = math.nan
    error: str = ""
    error_text: str = ""
    text: str = ""
    done: bool = False


def decode(reads: Reads, keep_text: bool = False) -> Answer:
    """Decode one answer from its timed reads; what came before an error is kept."""
    answer = Answer()
    raw = b"".join([data for _, data in reads])
    try:
        head = read_head(raw)
        if head is None:
            raise _Ended("the answer ended inside its HTTP head")
        starts, ends, whole = body_spans(raw, head)
        body = b"".join([raw[a:b] for a, b in zip(starts, ends, strict=True)])
        if head.status != 200:
            answer.error = f"http_{head.status // 100}xx"
            answer.error_text = f"HTTP {head.status}: {body[:500].decode(errors='replace')}"
            return answer
        payloads, event_ends = split_events(body)
        tokens = _interpret(payloads, answer, keep_text)
        offsets = np.array(event_ends, dtype=np.int64)[tokens]
        answer.token_s = _times(reads, offsets, np.array(starts), np.array(ends))
        if not answer.error:
            _require_end(answer, whole)
    except _Ended as ended:
        answer.error, answer.error_text = "incomplete", str(ended)
    except WireError as error:
        answer.error, answer.error_text = "sse", str(error)
    return answer


class _Ended(Exception):
    """An answer that stopped before its end."""


def _interpret(payloads: list[bytes], answer: Answer, keep_text: bool) -> list[int]:
    """Fill `answer` from the events; return which of them carry tokens."""
    tokens: list[int] = []
    texts: list[str] = []
    usage: dict[str, Any] | None = None
    loads = orjson.loads
    for index, payload in enumerate(payloads):
        if payload == b"[DONE]":
            answer.done = True
            continue
        try:
            event = loads(payload)
            if "error" in event or event.get("object") == "error":
                answer.error = "engine_error"
                answer.error_text = payload[:500].decode(errors="replace")
                break
            # An empty text is a token too: a detokenizer holds back unfinished characters.
            if (choices := event["choices"]) and (text := choices[0]["text"]) is not None:
                tokens.append(index)
                if keep_text:
                    texts.append(str(text))
            usage = event.get("usage") or usage
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError):
            answer.error = "sse"
            answer.error_text = f"not a completion event: {payload[:200]!r}"
            break
    if isinstance(usage, dict):
        answer.input_tokens = float(usage.get("prompt_tokens", math.nan))
        answer.output_tokens = float(usage.get("completion_tokens", math.nan))
    answer.text = "".join(texts)
    return tokens


def _require_end(answer: Answer, whole: bool) -> None:
    if not whole:
        raise _Ended("the connection ended in the middle of the answer")
    if not answer.done:
        raise _Ended("the stream ended without [DONE]")
    if math.isnan(answer.output_tokens):
        raise _Ended("the stream ended without a usage event")
    if not len(answer.token_s):
        raise _Ended("the stream ended without a token")


def _times(
    reads: Reads, offsets: NDArray[np.int64], starts: NDArray[Any], ends: NDArray[Any]
) -> NDArray[np.float64]:
    """Times of the reads that hold the bytes at these offsets of the body."""
    if not len(offsets):
        return np.empty(0)
    body_ends = np.cumsum(ends - starts)
    piece = np.searchsorted(body_ends, offsets, side="right")
    raw_offsets = ends[piece] - (body_ends[piece] - offsets)
    read_ends = np.cumsum([len(data) for _, data in reads])
    at = np.searchsorted(read_ends, raw_offsets, side="right")
    return np.array([time for time, _ in reads])[at]


# ------------------------------------------------------------------------------------- tables


class Exchange:
    """One request as it happened: when it was due, sent and over, and what was read when."""

    __slots__ = ("due_s", "ended_s", "error", "error_text", "number", "reads", "sent_s", "slot")

    def __init__(self, number: int, slot: int, due_s: float) -> None:
        self.number, self.slot, self.due_s = number, slot, due_s
        self.sent_s = self.ended_s = math.nan
        self.reads: list[tuple[float, bytes]] = []
        self.error = self.error_text = ""


def tokens_per_chunk(chunks: int, tokens: float) -> NDArray[np.int32]:
    """Tokens of each of `chunks` chunks.

    One each when the engine sends a token a chunk (exact) or reports no usage; otherwise the
    total spread as evenly as whole numbers allow, so that the sum is right (an approximation).
    """
    if math.isnan(tokens) or tokens == chunks:
        return np.ones(chunks, dtype=np.int32)
    edges = -(-np.arange(chunks + 1) * int(tokens) // max(chunks, 1))
    return np.diff(edges).astype(np.int32)


def tables(exchanges: Sequence[Exchange], keep_text: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames `requests` and `chunks` of a Recording (see study.client.Recording)."""
    import pandas as pd  # a heavy import, kept out of the time before the first window

    rows: list[dict[str, Any]] = []
    times: list[NDArray[np.float64]] = [np.empty(0)]
    tokens: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
    for exchange in exchanges:
        answer = decode(exchange.reads, keep_text) if exchange.reads else Answer()
        times.append(answer.token_s)
        tokens.append(tokens_per_chunk(len(answer.token_s), answer.output_tokens))
        rows.append(_row(exchange, answer, keep_text))
    numbers = np.array([exchange.number for exchange in exchanges], dtype=np.int32)
    chunks = pd.DataFrame(
        {
            "request": np.repeat(numbers, [len(part) for part in times[1:]]),
            "time_s": np.concatenate(times),
            "tokens": np.concatenate(tokens),
        }
    )
    requests = pd.DataFrame(rows, columns=[*_COLUMNS, "text"] if keep_text else list(_COLUMNS))
    return requests.astype(_COLUMNS), chunks


_COLUMNS = {
    "request": "int64", "slot": "int64", "due_s": "float64", "sent_s": "float64",
    "first_s": "float64", "last_s": "float64", "ended_s": "float64", "input_tokens": "float64",
    "output_tokens": "float64", "chunks": "int64", "error": "str", "error_text": "str",
}  # fmt: skip


def _row(exchange: Exchange, answer: Answer, keep_text: bool) -> dict[str, Any]:
    count = len(answer.token_s)
    row = {
        "request": exchange.number,
        "slot": exchange.slot,
        "due_s": exchange.due_s,
        "sent_s": exchange.sent_s,
        "first_s": answer.token_s[0] if count else math.nan,
        "last_s": answer.token_s[-1] if count else math.nan,
        "ended_s": exchange.ended_s,
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "chunks": count,
        # What broke the connection explains what is missing in the answer, so it comes first.
        "error": exchange.error or answer.error,
        "error_text": exchange.error_text or answer.error_text,
    }
    return {**row, "text": answer.text} if keep_text else row
