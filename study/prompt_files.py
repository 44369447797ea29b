"""The user's own prompts: a JSONL file, a prompt a line, instead of synthetic ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

from study.errors import StudyError
from study.models import Model, tokenizer

Prompt = str | tuple[int, ...]
FORM = '{"prompt": "some text"} or {"prompt_token_ids": [5, 6, 7]}'


def read(path: Path) -> tuple[Prompt, ...]:
    """Every prompt of the file, in order; a StudyError names the line that is not one."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StudyError(
            f"the prompts must be a JSONL file that can be read; {path} cannot ({error.strerror})"
        ) from error
    found = tuple(
        _prompt(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not found:
        raise StudyError(f"the prompts must be at least one line of {FORM}; {path} has none")
    return found


def digest(path: Path) -> str:
    """What tells this file from another: the prompts count, not the name."""
    return hashlib.sha256(repr(read(path)).encode()).hexdigest()[:16]


def _prompt(line: bytes, where: str) -> Prompt:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise StudyError(f"{where} must be JSON such as {FORM}; {error}") from error
    text = row.get("prompt") if isinstance(row, dict) else None
    ids = row.get("prompt_token_ids") if isinstance(row, dict) else None
    if isinstance(text, str) and text:
        return text
    if isinstance(ids, list) and ids and all(type(one) is int and one >= 0 for one in ids):
        return tuple(ids)
    raise StudyError(f"{where} must be {FORM}; it was {line[:80].decode('utf-8', 'replace')}")


def token_ids(prompts: tuple[Prompt, ...], model: Model) -> tuple[tuple[int, ...], ...]:
    """The prompts as the model reads them; a StudyError where an id is outside its vocabulary."""
    coder = tokenizer(model.vocabulary)
    found = []
    for number, prompt in enumerate(prompts, start=1):
        ids = tuple(coder.encode(prompt).ids) if isinstance(prompt, str) else prompt
        if max(ids) >= model.vocabulary:
            raise StudyError(
                f"token ids must be below the vocabulary of {model.name} ({model.vocabulary}); "
                f"prompt {number} has {max(ids)}. Give text, or ids of this vocabulary."
            )
        found.append(ids)
    return tuple(found)


def longest(prompts: tuple[Prompt, ...]) -> int:
    """Tokens of the longest prompt; text has at most one token a byte."""
    return max(len(one.encode() if isinstance(one, str) else one) for one in prompts)
