"""Fixed prompts and what the engine makes of them: the evidence of `same_output`.

Each prompt has a twin that ends alike but begins otherwise. A check of outputs is worth nothing
if it could not fail: where a prompt and its twin give the same output, the output does not depend
on what the cache holds, and arms that agree prove nothing.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from study.counters import idle_counters
from study.models import Model
from study.prompts import FIRST_TOKEN_ID
from study.server import Server

PROMPTS = 6
PROMPT_TOKENS = 320  # more than two blocks of any usual size
ENDING_TOKENS = 16  # that a prompt shares with its twin
OUTPUT_TOKENS = 24
STREAM = 0x5A4E  # apart from the streams that the loads draw from


def fixed_prompts(model: Model, tokens: int) -> list[tuple[str, list[int]]]:
    """(kind, token ids): `prompt` and its `twin` in turn; the same for every launch of a model."""
    random = np.random.default_rng([STREAM, tokens])
    found: list[tuple[str, list[int]]] = []
    for _ in range(PROMPTS):
        prompt, other = random.integers(FIRST_TOKEN_ID, model.vocabulary, size=(2, tokens)).tolist()
        found += [
            ("prompt", prompt),
            ("twin", other[:-ENDING_TOKENS] + prompt[-ENDING_TOKENS:]),
        ]
    return found


def capture(server: Server, model: Model, longest: int, passes: int) -> dict[str, Any]:
    """Send the fixed prompts one by one, greedily; between passes the prefix cache is reset.

    Returns {"passes": [{"counters": {...}, "outputs": [{kind, tokens, logprobs, runners_up,
    error}]}]}: token ids, the log-probability of each, the best other token with its own, and the
    engine's counters over the pass.
    """
    tokens = min(PROMPT_TOKENS, longest - OUTPUT_TOKENS)
    if tokens <= ENDING_TOKENS:
        return {"passes": [], "why": f"a model of {longest} tokens has no room for the prompts"}
    found = []
    for number in range(passes):
        if number:
            server.require("POST", "/reset_prefix_cache")  # if it was not, the counters tell
        before = idle_counters(server)
        outputs = [_complete(server, kind, ids) for kind, ids in fixed_prompts(model, tokens)]
        after = idle_counters(server)
        change = {name: value - before.get(name, 0.0) for name, value in after.items()}
        found.append({"counters": change, "outputs": outputs})
    return {"passes": found, "prompt_tokens": tokens}


def _complete(server: Server, kind: str, prompt: list[int]) -> dict[str, Any]:
    request = {
        "model": server.name,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0.0,
        "ignore_eos": True,
        "logprobs": 2,  # the runner-up proves a tie
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    empty = {"kind": kind, "tokens": [], "logprobs": [], "runners_up": []}
    try:
        status, text = server.post("/v1/completions", request)
    except (OSError, http.client.HTTPException) as error:
        return {**empty, "error": f"no answer ({error!r})"}
    if status != 200:
        return {**empty, "error": f"HTTP {status}: {text[:200]}"}
    try:
        choice = orjson.loads(text)["choices"][0]
        return {
            "kind": kind,
            "tokens": choice["token_ids"],
            "logprobs": choice["logprobs"]["token_logprobs"],
            "runners_up": [
                _runner_up(best, token)
                for best, token in zip(
                    choice["logprobs"]["top_logprobs"], choice["token_ids"], strict=True
                )
            ],
            "error": "",
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return {**empty, "error": f"no tokens with log-probabilities in the answer ({error!r})"}


def _runner_up(best: Mapping[str, float], taken: int) -> tuple[int, float]:
    """The best token but the one that was taken, written `token_id:7` by the engine."""
    by_token = {int(name.removeprefix("token_id:")): value for name, value in best.items()}
    return max(
        ((token, value) for token, value in by_token.items() if token != taken),
        key=lambda pair: pair[1],
    )
