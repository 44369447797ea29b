"""Decoding: any way of cutting the bytes into reads gives the same tokens at the right times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study import wire
from study.client import Load
from study.prompts import requests_of

HEAD = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nTransfer-Encoding: chunked\r\n\r\n"


def token(text: str, **more: object) -> bytes:
    return orjson.dumps({"choices": [{"index": 0, "text": text, **more}]})


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return orjson.dumps({"choices": [], "usage": counts})


def event(payload: bytes, line_end: bytes = b"\n") -> bytes:
    return b"data: " + payload + line_end * 2


def chunked(pieces: Sequence[bytes]) -> bytes:
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return HEAD + b"".join(framed) + b"0\r\n\r\n"


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def timed(parts: Sequence[bytes]) -> list[tuple[float, bytes]]:
    return [(float(index), part) for index, part in enumerate(parts)]


def good_stream(texts: Sequence[str]) -> bytes:
    events = [event(token(text)) for text in texts]
    return chunked([*events, event(usage(9, len(texts))), event(b"[DONE]")])


class Reference:
    """The same decoding, one byte at a time, with nothing shared with study.wire.

    States: head, size (of a chunk), data, after (the CR LF behind a chunk), end.
    """

    def __init__(self) -> None:
        self.state, self.left = "head", 0
        self.seen = b""
        self.line = b""
        self.after_cr = False
        self.data: list[bytes] = []
        self.events: list[tuple[bytes, float]] = []
        self.open_blank = False

    def feed(self, byte: bytes, time: float) -> None:
        if self.state == "data":
            self.body(byte, time)
            self.left -= 1
            if not self.left:
                self.state, self.seen = "after", b""
            return
        self.seen += byte
        if self.state == "head" and self.seen.endswith(b"\r\n\r\n"):
            self.state, self.seen = "size", b""
        elif self.state == "size" and self.seen.endswith(b"\r\n"):
            self.left = int(self.seen[:-2], 16)
            self.state, self.seen = ("data" if self.left else "end"), b""
        elif self.state == "after" and self.seen == b"\r\n":
            self.state, self.seen = "size", b""

    def body(self, byte: bytes, time: float) -> None:
        if byte == b"\n" and self.after_cr:
            self.after_cr = False
            if self.open_blank:  # a blank line ends with its LF where there is one
                self.events[-1] = (self.events[-1][0], time)
                self.open_blank = False
            return
        self.after_cr, self.open_blank = byte == b"\r", False
        if byte not in b"\r\n":
            self.line += byte
            return
        if self.line.startswith(b"data:"):
            self.data.append(self.line[5:].removeprefix(b" "))
        elif not self.line and self.data:
            self.events.append((b"\n".join(self.data), time))
            self.data, self.open_blank = [], byte == b"\r"
        self.line = b""

    def answer(self, reads: wire.Reads) -> tuple[list[float], list[str], tuple[object, object]]:
        for time, data in reads:
            for index in range(len(data)):
                self.feed(data[index : index + 1], time)
        times: list[float] = []
        texts: list[str] = []
        counts: tuple[object, object] = (None, None)
        for payload, time in self.events:
            if payload == b"[DONE]":
                continue
            found = orjson.loads(payload)
            if found["choices"]:
                times.append(time)
                texts.append(found["choices"][0]["text"])
            if found.get("usage"):
                counts = (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"])
        return times, texts, counts


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[float, bytes]]:
    """Valid answers of every sort: line ends, comments, other fields, chunk and read borders."""
    texts = draw(st.lists(st.text(max_size=6), min_size=1, max_size=8))
    # One kind of line end in a stream; LF alone, without comments, takes the quick path.
    line_end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]))
    noise = st.sampled_from([b"", b"", b": ping" + line_end * 2, b"event: message" + line_end])
    if draw(st.booleans()):
        noise = st.just(b"")
    body = b"".join(draw(noise) + event(token(text), line_end) for text in texts)
    body += event(usage(draw(st.integers(1, 99)), len(texts)), line_end)
    body += event(b"[DONE]", line_end)
    places = st.lists(st.integers(0, 10**6), max_size=12)
    answer = chunked(cut(body, draw(places)))
    return timed(cut(answer, draw(places)))


@given(streams())
@settings(max_examples=300, deadline=None)
def test_decoding_equals_the_byte_by_byte_reference(reads: list[tuple[float, bytes]]) -> None:
    times, texts, counts = Reference().answer(reads)
    answer = wire.decode(reads, keep_text=True)
    assert answer.error == ""
    assert answer.token_s.tolist() == times
    assert answer.text == "".join(texts)
    assert (answer.input_tokens, answer.output_tokens) == counts


@given(st.lists(st.integers(0, 10**6), max_size=20))
@settings(max_examples=100, deadline=None)
def test_vllm_stream_in_any_reads_gives_each_token_the_read_that_completed_it(
    places: list[int],
) -> None:
    data = good_stream(["a", 'b"\\', "", "\n\n"])
    parts = cut(data, places)
    answer = wire.decode(timed(parts))
    read_ends = np.cumsum([len(part) for part in parts])
    blank_ends = [index + 1 for index in range(len(data)) if data[index - 1 : index + 1] == b"\n\n"]
    expected = [int(np.searchsorted(read_ends, end - 1, side="right")) for end in blank_ends[:4]]
    assert answer.token_s.tolist() == expected
    assert not answer.error


@given(st.integers(1, 600))
@settings(max_examples=100, deadline=None)
def test_a_stream_cut_anywhere_is_incomplete_and_keeps_its_tokens(length: int) -> None:
    data = good_stream(["a", "b", "c"])
    part = data[: min(length, len(data) - 1)]
    answer = wire.decode([(1.0, part)])
    assert answer.error == "incomplete"
    assert len(answer.token_s) == min(part.count(b"\n\n"), 3)


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nwhy?", "http_5xx", "HTTP 500: why?"),
        (b"HTTP/1.1 429 No\r\ncontent-length: 0\r\n\r\n", "http_4xx", "HTTP 429"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "sse", "not an HTTP"),
        (HEAD + b"zz\r\nhello\r\n", "sse", "not a chunk size"),
        (HEAD + b"2\r\nhello\r\n", "sse", "does not end where"),
        (chunked([event(b"{half")]), "sse", "not a completion event"),
        (chunked([event(b"[]")]), "sse", "not a completion event"),
        (chunked([event(b'{"choices":[{}]}')]), "sse", "not a completion event"),
        (chunked([event(token("a")), event(b'{"error":{"code":5}}')]), "engine_error", "code"),
        (chunked([event(b'{"object":"error","message":"old"}')]), "engine_error", "old"),
        (chunked([event(token("a")), event(usage(1, 1))]), "incomplete", "[DONE]"),
        (chunked([event(token("a")), event(b"[DONE]")]), "incomplete", "usage"),
        (chunked([event(usage(1, 0)), event(b"[DONE]")]), "incomplete", "without a token"),
        (good_stream(["a"])[:-5], "incomplete", "middle"),
        (HEAD[:20], "incomplete", "head"),
    ],
)
def test_what_is_wrong_is_said_by_kind(raw: bytes, kind: str, words: str) -> None:
    answer = wire.decode([(1.0, raw)])
    assert answer.error == kind
    assert words.lower() in answer.error_text.lower()


def test_an_answer_without_chunks_ends_by_its_length_or_with_the_connection() -> None:
    body = event(token("a")) + event(usage(3, 1)) + event(b"[DONE]")
    by_length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    until_close = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
    for raw in (by_length, until_close):
        assert wire.decode([(2.0, raw)]).error == ""
    assert wire.decode([(2.0, by_length[:-1])]).error == "incomplete"


@given(st.integers(1, 300), st.integers(0, 900))
def test_spread_tokens_sum_to_the_total_and_differ_by_at_most_one(chunks: int, total: int) -> None:
    spread = wire.tokens_per_chunk(chunks, float(total))
    assert spread.sum() == total
    assert len(spread) == chunks
    assert spread.max() - spread.min() <= 1


def test_tokens_per_chunk_is_exact_at_one_each_and_one_each_without_usage() -> None:
    assert wire.tokens_per_chunk(4, 4.0).tolist() == [1, 1, 1, 1]
    assert wire.tokens_per_chunk(3, math.nan).tolist() == [1, 1, 1]
    assert wire.tokens_per_chunk(4, 3.0).tolist() == [1, 1, 1, 0]  # a last event that only ends
    assert wire.tokens_per_chunk(0, 3.0).tolist() == []


def load(**changes: object) -> Load:
    fields: dict[str, object] = {
        "base_url": "http://127.0.0.1:1", "model": "m", "input_tokens": 24, "output_tokens": 8,
        "vocabulary": 300, "concurrency": 1, "requests": 1,
    }  # fmt: skip
    return Load(**(fields | changes))  # type: ignore[arg-type]


def prompts(asked: Load, count: int) -> list[tuple[int, ...]]:
    requests = requests_of(asked, "h:1", "")
    found = []
    for number in range(count):
        head, body = requests(number).split(b"\r\n\r\n")
        assert int(head.rpartition(b" ")[2]) == len(body)
        found.append(tuple(orjson.loads(body)["prompt"]))
    return found


@given(st.integers(0, 2**64), st.integers(0, 2**20 - 2), st.sampled_from([5, 16, 300, 128_256]))
@settings(max_examples=40, deadline=None)
def test_no_two_prompts_begin_alike_in_this_window_or_the_next(
    seed: int, salt: int, vocabulary: int
) -> None:
    here, there = (
        prompts(load(seed=seed, salt=s, vocabulary=vocabulary, input_tokens=50), 100)
        for s in (salt, salt + 1)
    )
    assert len({prompt[:44] for prompt in here + there}) == 200
    assert all(len(prompt) == 50 for prompt in here)
    assert all(3 <= token_id < vocabulary for prompt in here for token_id in prompt)


def test_a_request_is_what_the_endpoint_expects_and_the_same_again_for_the_same_seed() -> None:
    raw = requests_of(load(api_key="secret"), "h:1", "/v1")(0)
    head, body = raw.split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: h:1\r\n")
    assert b"Authorization: Bearer secret\r\n" in head
    sent = orjson.loads(body)
    assert len(sent.pop("prompt")) == 24
    assert sent == {
        "model": "m", "max_tokens": 8, "ignore_eos": True, "temperature": 0.0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert raw == requests_of(load(api_key="secret"), "h:1", "/v1")(0)
    assert raw != requests_of(load(api_key="secret", seed=1), "h:1", "/v1")(0)


def test_own_prompts_are_used_in_turn() -> None:
    own = ((5, 6, 7), (8,))
    assert prompts(load(prompts=own), 5) == [own[0], own[1], own[0], own[1], own[0]]
