"""Prompts of one's own: read, told apart, and turned into tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import models, prompt_files
from study.errors import StudyError
from study.experiment import Workload
from study.models import tokenizer

MODEL = models.load("gqa-dense")


def written(folder: Path, *rows: object) -> Path:
    path = folder / "my prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_texts_and_token_ids_are_read_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "Hello"}, {"prompt_token_ids": [5, 6, 7, 8, 9, 10]})
    prompts = prompt_files.read(path)
    assert prompts == ("Hello", (5, 6, 7, 8, 9, 10))
    ids = prompt_files.token_ids(prompts, MODEL)
    assert [len(one) for one in ids] == [5, 6] and ids[1] == (5, 6, 7, 8, 9, 10)
    workload = Workload.parse(f"own:@{path}/32")
    assert (workload.input_tokens, workload.output_tokens) == (6, 32)
    assert Workload.parse(str(workload)) == workload


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_a_text_has_a_token_a_byte_and_comes_back(text: str) -> None:
    (ids,) = prompt_files.token_ids((text,), MODEL)
    assert len(ids) == len(text.encode()) == prompt_files.longest((text,))
    assert tokenizer(MODEL.vocabulary).decode(list(ids)) == text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "no"}, "line 2 must be"),
        ({"prompt": ""}, "line 2 must be"),
        ({"prompt_token_ids": []}, "line 2 must be"),
        ({"prompt_token_ids": [1, -2]}, "line 2 must be"),
        ({"prompt_token_ids": [True]}, "line 2 must be"),
        ([1, 2], "line 2 must be"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        prompt_files.read(written(tmp_path, {"prompt": "fine"}, row))


def test_files_that_hold_no_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot"):
        prompt_files.read(tmp_path / "missing.jsonl")
    with pytest.raises(StudyError, match="has none"):
        prompt_files.read(written(tmp_path))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": ')
    with pytest.raises(StudyError, match="line 1 must be JSON"):
        prompt_files.read(broken)


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(StudyError, match="prompt 2 has 512"):
        prompt_files.token_ids(((1,), (512,)), MODEL)


def test_the_content_tells_files_apart_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = Workload.parse(f"own:@{written(tmp_path / 'a', {'prompt': 'x'})}/8")
    same = Workload.parse(f"own:@{written(tmp_path / 'b', {'prompt': 'x'})}/8")
    other = Workload.parse(f"own:@{written(tmp_path, {'prompt': 'y'})}/8")
    assert one.model_dump() == same.model_dump() != other.model_dump()
