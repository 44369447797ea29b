"""Members of a JSON file are what a JSON parser finds, however the file is laid out."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.audit import json_reader as audit_json
from study.audit.formats import read
from study.audit.json_reader import objects
from study.errors import StudyError

TEXTS = st.text(st.sampled_from(list('ab[]{}",:\\ \n]é')), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-5, 5)
VALUES = st.recursive(
    NUMBERS | TEXTS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS.filter(lambda key: key != "itls"), VALUES, max_size=5)


def written(text: str) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(text, encoding="utf-8")
        return [{key: found.value(key) for key in found.spans} for found in objects(path)]


@given(st.lists(OBJECTS, min_size=1, max_size=3), st.sampled_from([None, 0, 3]), st.booleans())
def test_every_layout_gives_what_json_gives(
    wanted: list[dict[str, Any]], indent: int | None, plain: bool
) -> None:
    lines = [json.dumps(one, indent=indent, ensure_ascii=plain) for one in wanted]
    assert written("\n".join(lines)) == wanted
    assert written(json.dumps(wanted, indent=indent)) == wanted
    assert written(json.dumps(wanted[0], separators=(",", ":"))) == [wanted[0]]


@given(
    st.lists(st.lists(st.floats(0, 1), max_size=4), max_size=8),
    st.sampled_from([None, 0, 4]),
    st.integers(1, 64),
)
def test_rows_come_in_pieces_and_none_is_lost(
    rows: list[list[float]], indent: int | None, piece: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_json, "PIECE_BYTES", piece)
        path = Path(folder) / "a.json"
        path.write_text(json.dumps({"itls": rows, "after": [1, 2]}, indent=indent))
        (found,) = objects(path)
        pieces = list(found.rows("itls"))
        assert found.floats("after").tolist() == [1, 2]
    lengths = [int(length) for some, _ in pieces for length in some]
    values = [float(value) for _, some in pieces for value in some]
    assert lengths == [len(row) for row in rows]
    assert values == list(chain.from_iterable(rows))


def test_a_number_is_known_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 0.420, "b" : [1, 2 ], "c": "inf"}')
    (found,) = objects(path)
    assert [found.written(key) for key in "abcd"] == ["0.420", "[1, 2 ]", '"inf"', ""]


def test_a_block_may_end_between_the_two_brackets(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"itls": [[0.5]] * 5000, "b": 1}, indent=1))
    for block in (8192, 8193, 8199):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audit_json, "BLOCK_BYTES", block)
            (found,) = objects(path)
            assert found.value("b") == 1
            assert sum(some.size for some, _ in found.rows("itls")) == 5000


@given(st.binary(max_size=60))
def test_whatever_is_not_json_is_refused(junk: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_bytes(b"{" + junk)
        try:
            wanted = [json.loads(b"{" + junk)]
        except ValueError:
            wanted = []
        try:
            found = [{key: one.value(key) for key in one.spans} for one in objects(path)]
        except StudyError:
            assert not wanted
        else:
            assert not wanted or found == wanted


@pytest.mark.parametrize("cut", [1, 8, 20, 31, 45])
def test_a_file_cut_short_says_so(tmp_path: Path, cut: int) -> None:
    whole = json.dumps({"a": 12, "itls": [[1.0, 2.0], [3.0]], "text": "x"})
    path = tmp_path / "a.json"
    path.write_text(whole[:cut])
    with pytest.raises(StudyError, match=r"not whole|not JSON"):
        list(objects(path))


def test_nan_as_python_writes_it_is_read_and_words_are_not_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, NaN, 2, null], "b": ["x"], "c": [[1]], "itls": [[1], ["x"]]}')
    (found,) = objects(path)
    np.testing.assert_array_equal(found.floats("a"), [1, np.nan, 2, np.nan])
    for key in ("b", "c"):
        with pytest.raises(StudyError, match=f"{key} must be an array of numbers"):
            found.floats(key)
    with pytest.raises(StudyError, match="array of arrays"):
        list(found.rows("itls"))


@pytest.mark.parametrize("text", ['{"a": [0.1, "0.2"]}', '{"a": ["0.1"]}', '{"a": "0.1"}'])
def test_numbers_in_quotes_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(StudyError, match="a must be an array of numbers"):
        next(objects(path)).floats("a")


@pytest.mark.parametrize("text", ['{"a": [[0.1, "0.2"]]}', '{"a": null}', '{"a": 7}'])
def test_rows_that_are_none_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(StudyError, match="a must be an array of arrays of numbers"):
        list(next(objects(path)).rows("a"))


@pytest.mark.parametrize("rest", ["[{}]", "garbage", ", {}"])
def test_what_follows_an_array_is_not_dropped(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(f'[{{"a": 1}}]\n{rest}')
    with pytest.raises(StudyError, match="may hold one array; this one goes on at byte 10"):
        list(objects(path))


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("\n")
    with pytest.raises(StudyError, match="the file is empty"):
        read(path)
