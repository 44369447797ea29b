"""A server that looks like vLLM from outside, and can be told to go wrong at a given point.

Run as a script with the engine's own flags; a token takes FAKE_TOKEN_S; what to do wrong stands in
FAKE_FAULT:
refuse, crash, exit0, hang, silent, mute or dies (when it is asked what is in force), die-after=N
(requests); compile-after=N (it says so, in every request from there on), compile-at=N (only
once), hits=N (tokens that the prefix cache had of each prompt), slowing (each request takes longer
than the last, for ever).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time

REFUSAL = "ValueError: No common block size for 1 (CPU_ATTN: [MultipleOf(32)])"
COMPILING = "WARNING [jit_monitor.py:149] Triton kernel JIT compilation during inference: _fwd."
SLOWER = 0.06  # more with each request: no slice of two or more agrees with the one before
CRASH = "RuntimeError: out of registers"


class FakeEngine:
    """Counts what it serves; one task a connection."""

    def __init__(self, name: str, token_s: float, fault: str = "", number: int = 0) -> None:
        self.name, self.token_s, self.fault, self.number = name, token_s, fault, number
        self.running = self.finished = self.made = self.read = 0
        self.ttft_s = self.e2e_s = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self.answer(head.decode(), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        path = head.split()[1]
        length = next(
            (
                int(line.split(":")[1])
                for line in head.splitlines()
                if line.lower().startswith("content-length")
            ),
            0,
        )
        body = await reader.readexactly(length)
        if path == "/v1/completions":
            request = json.loads(body)
            if request.get("stream"):
                await self.stream(request, writer)
                return
            path = "whole answer"
        if path == "/server_info" and self.fault == "mute":
            writer.close()
            return
        key = os.environ.get("VLLM_API_KEY", "")
        known = f"Bearer {key}" in head or not path.startswith("/v1")
        text = self.page(path) if known else "{}"
        status = "200 OK" if known else "401 Unauthorized"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()

    def page(self, path: str) -> str:
        if path == "whole answer":
            best = [{"token_id:5": -1.5, "token_id:7": -2}, {"token_id:6": -2.5, "token_id:4": -3}]
            logprobs = {"token_logprobs": [-1.5, -2.5], "top_logprobs": best}
            choice = {"token_ids": [5, 6], "logprobs": logprobs}
            return json.dumps({"choices": [choice]})
        if path == "/v1/models":
            return json.dumps({"data": [{"id": self.name}]}, separators=(",", ":"))
        if path == "/server_info":
            if self.fault == "dies":
                print(CRASH, flush=True)
                os._exit(1)
            return "enable_prefix_caching=False, enable_chunked_prefill=False, max_num_seqs=64"
        values = {
            "request_success_total": self.finished,
            "generation_tokens_total": self.made,
            "prompt_tokens_total": self.read,
            "time_to_first_token_seconds_sum": self.ttft_s,
            "time_to_first_token_seconds_count": self.finished + self.running,
            "e2e_request_latency_seconds_sum": self.e2e_s,
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "prefix_cache_hits_total": self.finished * self.number * (self.fault == "hits"),
            "external_prefix_cache_hits_total": 0,
        }
        lines = [f'vllm:{name}{{engine="0"}} {float(value)}' for name, value in values.items()]
        return "\n".join(lines) + "\n"

    async def stream(self, request: dict[str, object], writer: asyncio.StreamWriter) -> None:
        began = time.monotonic()
        self.running += 1
        if self.fault == "die-after" and self.finished >= self.number:
            print(CRASH, flush=True)
            os._exit(1)
        if self.fault == "compile-after" and self.finished >= self.number:
            print(COMPILING, flush=True)
        if self.fault == "compile-at" and self.finished == self.number:
            print(COMPILING, flush=True)
        if self.fault == "slowing":
            self.token_s *= 1 + SLOWER
        prompt, wanted = request["prompt"], request["max_tokens"]
        assert isinstance(prompt, list) and isinstance(wanted, int)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for index in range(wanted):
            await asyncio.sleep(self.token_s)
            if index == 0:
                self.ttft_s += time.monotonic() - began
            send(writer, {"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        usage = {"prompt_tokens": len(prompt), "completion_tokens": wanted}
        self.running -= 1
        self.finished += 1
        self.made += wanted
        self.read += len(prompt)
        self.e2e_s += time.monotonic() - began
        send(writer, {"choices": [], "usage": {**usage, "total_tokens": len(prompt) + wanted}})
        data = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
        await writer.drain()


def send(writer: asyncio.StreamWriter, event: dict[str, object]) -> None:
    data = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    options, _ = parser.parse_known_args()
    fault, _, number = os.environ.get("FAKE_FAULT", "").partition("=")
    if fault in ("refuse", "crash", "exit0"):
        said = {"refuse": REFUSAL, "crash": CRASH, "exit0": "bye"}[fault]
        # In colour, as an engine writes when a notebook's kernel has asked for it.
        print(f"\x1b[0;36m(Worker pid=7)\x1b[0;0m \x1b[31mERROR\x1b[0m [x.py:1] {said}", flush=True)
        sys.exit(0 if fault == "exit0" else 1)
    if fault in ("hang", "silent"):
        while True:
            await asyncio.sleep(0.1)
            if fault == "hang":
                print("still loading", flush=True)
    token_s = float(os.environ.get("FAKE_TOKEN_S", "0.002"))
    engine = FakeEngine(options.served_model_name, token_s, fault, int(number or 0))
    print("Resolved architecture: Qwen3ForCausalLM", flush=True)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", options.port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
