"""The bytes of every request, made before the window so that sending one costs next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from study.client import Load

FIRST_TOKEN_ID = 3  # below it lie the special tokens (padding, begin, end) of most vocabularies

_NUMBER_BITS, _SALT_BITS = 24, 20
_SCATTER = 0x9E3779B97F5 | 1  # odd, so multiplying is a permutation of the 44-bit numbers
_POOL_REQUESTS, _POOL_TOKENS = 64, 4_000_000


def requests_of(load: Load, host: str, path: str) -> Requests:
    """The requests of a load, for a Host header and the path of its base URL."""
    path = path.rstrip("/")
    return Requests(
        host=host,
        path=f"{path if path.endswith('/v1') else path + '/v1'}/completions",
        api_key=load.api_key,
        options={
            "model": load.model,
            "max_tokens": load.output_tokens,
            "ignore_eos": True,
            "temperature": load.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        input_tokens=load.input_tokens,
        vocabulary=load.vocabulary,
        seed=load.seed,
        salt=load.salt,
        prompts=load.prompts,
    )


def unique_tokens(vocabulary: int) -> int:
    """How many leading tokens tell 2^24 requests in each of 2^20 windows apart."""
    base, tokens = vocabulary - FIRST_TOKEN_ID, 1
    while base**tokens < 1 << (_NUMBER_BITS + _SALT_BITS):
        tokens += 1
    return tokens


class Requests:
    """Request bytes by request number; all that is costly is done in the constructor.

    A synthetic prompt is a few leading tokens that no other request of any other salt has (so
    that no prefix cache can hit), then one of a pool of random bodies. The leading ids are padded
    with blanks to one width, which keeps Content-Length, and so the whole head, constant.
    """

    def __init__(
        self,
        *,
        host: str,
        path: str,
        api_key: str | None,
        options: dict[str, Any],
        input_tokens: int,
        vocabulary: int,
        seed: int,
        salt: int,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{key}Accept: text/event-stream\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._tail = b"]," + orjson.dumps(options)[1:]
        self._base = vocabulary - FIRST_TOKEN_ID
        self._digits = unique_tokens(vocabulary)
        self._salt, self._seed = salt, seed
        self._fixed: list[bytes] = []
        self._pool: list[tuple[bytes, bytes]] = []
        self._lead = ",".join([f"%{len(str(vocabulary))}d"] * self._digits).encode()
        if prompts is not None:
            self._fixed = [b"".join(self._frame(0, _ids(prompt))) for prompt in prompts]
        else:
            self._fill_pool(input_tokens - self._digits, vocabulary)

    def __call__(self, number: int) -> bytes:
        """The bytes of request `number`."""
        if self._fixed:
            return self._fixed[number % len(self._fixed)]
        before, after = self._pool[number % len(self._pool)]
        return before + self._lead % self._leading_ids(number) + after

    def _fill_pool(self, tokens: int, vocabulary: int) -> None:
        random = np.random.default_rng([self._seed, self._salt])
        bodies = max(1, min(_POOL_REQUESTS, _POOL_TOKENS // max(tokens, 1)))
        width = len(self._lead % ((0,) * self._digits))
        for ids in random.integers(FIRST_TOKEN_ID, vocabulary, size=(bodies, tokens)):
            self._pool.append(self._frame(width, b"," + _ids(ids.tolist()) if tokens else b""))

    def _leading_ids(self, number: int) -> tuple[int, ...]:
        mixed = (self._salt << _NUMBER_BITS | number) * _SCATTER + self._seed * 0x5DEECE66D
        mixed &= (1 << (_NUMBER_BITS + _SALT_BITS)) - 1
        ids = []
        for _ in range(self._digits):
            mixed, digit = divmod(mixed, self._base)
            ids.append(FIRST_TOKEN_ID + digit)
        return tuple(ids)

    def _frame(self, lead_bytes: int, ids: bytes) -> tuple[bytes, bytes]:
        opening, closing = b'{"prompt":[', ids + self._tail
        length = len(opening) + lead_bytes + len(closing)
        return b"%b%d\r\n\r\n%b" % (self._head, length, opening), closing


def _ids(tokens: Sequence[int]) -> bytes:
    return ",".join(map(str, tokens)).encode()
