"""`same_output` on planted outputs: what it must find, forgive, count, and refuse to judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
import stub
from hypothesis import given
from hypothesis import strategies as st

from study import same_output
from study.same_output import COLUMNS, HITS, LOGPROB_TOLERANCE, Agreement, compare
from study.store import Store

LENGTH = 24
OTHER = 1000  # between a token and the one that nearly was taken in its place
FAR, NEAR = 10 * LOGPROB_TOLERANCE, LOGPROB_TOLERANCE / 2


def outputs(
    arms: tuple[str, ...] = ("a", "b"), blocks: int = 2, prompts: int = 3, passes: int = 1
) -> pd.DataFrame:
    """The same output of every arm and pass; prompts and twins have nothing in common."""
    rows: list[dict[str, Any]] = []
    for block in range(blocks):
        for prompt in range(prompts):
            for kind in ("prompt", "twin"):
                random = np.random.default_rng([block, prompt, kind == "twin"])
                tokens = random.integers(0, 512, LENGTH).tolist()
                logprobs = (-3.5 + random.normal(0, 0.4, LENGTH)).tolist()
                said = {
                    "block": block,
                    "prompt": prompt,
                    "kind": kind,
                    "tokens": tokens,
                    "logprobs": logprobs,
                    "runners_up": [
                        (token + OTHER, value - NEAR)
                        for token, value in zip(tokens, logprobs, strict=True)
                    ],
                    "error": "",
                    **dict.fromkeys(HITS, 0.0),
                }
                rows += [
                    {**said, "launch": f"{arm}-{block}", "arm": arm, "number": number}
                    for arm in arms
                    for number in range(passes)
                ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *HITS])


def changed(
    frame: pd.DataFrame, *, token: bool, by: float, at: int = 5, arm: str = "b", prompt: int = 0
) -> pd.DataFrame:
    """One output of `arm` in its first block with another token or log-probability at `at`."""
    rows = frame.to_dict("records")
    for row in rows:
        if (row["arm"], row["block"], row["prompt"], row["kind"]) == (arm, 0, prompt, "prompt"):
            row["tokens"], row["logprobs"] = list(row["tokens"]), list(row["logprobs"])
            taken = row["tokens"][at]
            row["tokens"][at] += OTHER if token else 0
            row["logprobs"][at] += by
            row["runners_up"] = list(row["runners_up"])
            row["runners_up"][at] = (taken if token else taken + OTHER, row["logprobs"][at] - NEAR)
    return pd.DataFrame(rows)


def verdict(agreed: Agreement) -> str:
    judged = agreed.judgement
    assert (judged.gate, judged.scope) == ("same_output", "claim")
    assert agreed.treatment in judged.text and agreed.baseline in judged.text
    return judged.verdict


# --- what it finds and forgives -------------------------------------------------------------------


def test_the_same_output_passes_and_is_counted() -> None:
    agreed = compare(outputs(), "b", "a")
    assert verdict(agreed) == "pass"
    assert (agreed.blocks, agreed.prompts, agreed.unanswered) == (2, 6, 0)
    assert agreed.tokens == 6 * LENGTH
    assert (agreed.differing, agreed.ties, agreed.logprob_change) == (0, 0, 0.0)


def test_another_token_far_from_a_tie_fails() -> None:
    agreed = compare(changed(outputs(), token=True, by=FAR), "b", "a")
    assert verdict(agreed) == "fail"
    assert (agreed.differing, agreed.ties) == (1, 0)
    assert agreed.logprob_change == pytest.approx(FAR)
    assert agreed.tokens == 5 * LENGTH + 6  # nothing is compared after the first difference


def test_another_token_at_a_near_tie_passes_and_is_counted() -> None:
    agreed = compare(changed(outputs(), token=True, by=NEAR), "b", "a")
    assert verdict(agreed) == "pass"
    assert (agreed.differing, agreed.ties) == (1, 1)
    assert "1 of 6 prompts give other tokens (1 at a tie)" in agreed.judgement.text


@pytest.mark.parametrize(
    "runner_up",
    [(7, -3.5), None],
    ids=["a third token is the runner-up", "the runner-up is far behind"],
)
def test_tokens_as_likely_that_are_no_tie_fail(runner_up: tuple[int, float] | None) -> None:
    """Two unrelated tokens may have the same log-probability: that alone proves nothing."""
    rows = changed(outputs(), token=True, by=0.0).to_dict("records")
    for row in rows:
        token, value = row["tokens"][5], row["logprobs"][5]
        if row["arm"] == "a":
            row["runners_up"] = list(row["runners_up"])
            row["runners_up"][5] = runner_up or (token + OTHER, value - FAR)
    agreed = compare(pd.DataFrame(rows), "b", "a")
    assert (verdict(agreed), agreed.differing, agreed.ties) == ("fail", 1, 0)


def test_without_runners_up_no_tie_is_proven() -> None:
    frame = changed(outputs(), token=True, by=NEAR)
    assert verdict(compare(frame.drop(columns="runners_up"), "b", "a")) == "fail"


def test_the_same_tokens_with_a_moved_log_probability_fail() -> None:
    agreed = compare(changed(outputs(), token=False, by=FAR), "b", "a")
    assert verdict(agreed) == "fail"
    assert agreed.differing == 0 and agreed.logprob_change == pytest.approx(FAR)
    assert verdict(compare(changed(outputs(), token=False, by=NEAR), "b", "a")) == "pass"


def test_what_comes_after_a_tie_is_another_context_and_not_compared() -> None:
    tie = changed(outputs(), token=True, by=NEAR, at=5)
    assert verdict(compare(changed(tie, token=True, by=FAR, at=9), "b", "a")) == "pass"
    assert verdict(compare(changed(tie, token=True, by=FAR, at=2), "b", "a")) == "fail"


def test_an_answer_that_stops_early_differs() -> None:
    rows = outputs().to_dict("records")
    one = next(row for row in rows if row["arm"] == "b" and row["kind"] == "prompt")
    one.update(tokens=one["tokens"][:10], logprobs=one["logprobs"][:10])
    agreed = compare(pd.DataFrame(rows), "b", "a")
    assert (verdict(agreed), agreed.differing, agreed.ties) == ("fail", 1, 0)


# --- what it cannot judge -------------------------------------------------------------------------


def test_twins_that_do_not_differ_make_the_check_worthless() -> None:
    frame = outputs()
    twins = frame["kind"] == "twin"
    prompts = frame[~twins].set_index(["arm", "block", "prompt"])[["tokens", "logprobs"]]
    same = frame[["arm", "block", "prompt"]].join(prompts, on=["arm", "block", "prompt"])
    agreed = compare(frame.assign(tokens=same["tokens"], logprobs=same["logprobs"]), "b", "a")
    assert verdict(agreed) == "cannot judge"
    assert agreed.control == 0 and "hardly depends on the prompt" in agreed.judgement.text
    assert verdict(compare(frame[~twins], "b", "a")) == "cannot judge"  # without twins neither


@pytest.mark.parametrize("frame", [outputs()[:0], outputs(("a",)), outputs(("b",))])
def test_nothing_to_compare_is_said(frame: pd.DataFrame) -> None:
    agreed = compare(frame, "b", "a")
    assert verdict(agreed) == "cannot judge" and agreed.prompts == agreed.blocks == 0
    assert agreed.judgement.text == "b against a: no block has outputs of both."


def test_outputs_of_other_blocks_are_never_compared() -> None:
    frame = outputs()
    kept = (frame["arm"] == "a") == (frame["block"] == 0)
    assert verdict(compare(frame[kept], "b", "a")) == "cannot judge"


@pytest.mark.parametrize(
    "broken",
    [
        {"error": "HTTP 500: no", "tokens": [], "logprobs": []},
        {"tokens": [], "logprobs": []},
        {"logprobs": [-1.0] * (LENGTH - 1)},
        {"logprobs": [None] + [-1.0] * (LENGTH - 1)},
    ],
)
def test_a_prompt_without_a_whole_answer_is_no_agreement(broken: dict[str, Any]) -> None:
    rows = outputs().to_dict("records")
    one = next(row for row in rows if row["arm"] == "b" and row["kind"] == "prompt")
    one.update(broken)
    agreed = compare(pd.DataFrame(rows), "b", "a")
    assert (agreed.prompts, agreed.unanswered) == (5, 1)
    assert verdict(agreed) == "cannot judge"
    for row in rows:
        row.update(broken if row["arm"] == "b" else {})
    agreed = compare(pd.DataFrame(rows), "b", "a")
    assert (agreed.prompts, agreed.unanswered, verdict(agreed)) == (0, 6, "cannot judge")
    assert "of 6 prompts none was answered by both" in agreed.judgement.text


def test_a_difference_fails_even_where_other_prompts_were_not_answered() -> None:
    rows = changed(outputs(), token=True, by=FAR).to_dict("records")
    next(row for row in rows if row["prompt"] == 2)["error"] = "no answer"
    assert verdict(compare(pd.DataFrame(rows), "b", "a")) == "fail"


# --- what the check is worth ----------------------------------------------------------------------


def test_control_comes_from_prompts_and_twins_of_the_baseline() -> None:
    frame = outputs()
    base = frame[frame["arm"] == "a"].set_index(["block", "prompt", "kind"])["logprobs"]
    moved = [
        np.abs(np.subtract(base[block, prompt, "prompt"], base[block, prompt, "twin"]))
        for block, prompt in {key[:2] for key in base.index}
    ]
    agreed = compare(frame, "b", "a")
    assert agreed.control == pytest.approx(np.median([np.median(one) for one in moved]))


def test_passes_of_one_arm_can_be_compared() -> None:
    frame = outputs(("a",), passes=2)
    agreed = compare(frame, "a", "a", (1, 0))
    assert (agreed.treatment, agreed.baseline) == ("a, pass 2", "a, pass 1")
    assert verdict(agreed) == "pass" and agreed.prompts == 6
    rows = frame.to_dict("records")
    for row in rows:
        row["logprobs"] = [one + FAR * row["number"] for one in row["logprobs"]]
    assert verdict(compare(pd.DataFrame(rows), "a", "a", (1, 0))) == "fail"


# --- properties -----------------------------------------------------------------------------------

answers = st.lists(st.tuples(st.integers(0, 9), st.floats(-20, 0)), min_size=1, max_size=8).map(
    lambda pairs: {
        "tokens": [t for t, _ in pairs],
        "logprobs": [p for _, p in pairs],
        "runners_up": [(t + OTHER, p - NEAR) for t, p in pairs],
    }
)
sides = st.lists(answers, min_size=2, max_size=2 * 4).map(
    lambda found: found[: len(found) // 2 * 2]
)


def side(arm: str, found: list[dict[str, Any]]) -> pd.DataFrame:
    """Outputs in turn a prompt and its twin, as they are captured."""
    rows = [
        {"launch": arm, "block": 0, "arm": arm, "number": 0, "prompt": place // 2, "error": ""}
        | {"kind": ("prompt", "twin")[place % 2], **said, **dict.fromkeys(HITS, 0.0)}
        for place, said in enumerate(found)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *HITS])


@given(sides)
def test_an_arm_against_itself_never_differs(found: list[dict[str, Any]]) -> None:
    agreed = compare(pd.concat([side("a", found), side("b", found)]), "b", "a")
    assert (agreed.differing, agreed.ties, agreed.logprob_change) == (0, 0, 0.0)
    assert verdict(agreed) in ("pass", "cannot judge")


@given(sides, sides)
def test_who_is_the_baseline_changes_no_difference(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    frame = pd.concat([side("a", one), side("b", other)])
    forth, back = compare(frame, "b", "a"), compare(frame, "a", "b")
    for name in ("blocks", "prompts", "tokens", "differing", "ties", "logprob_change"):
        assert getattr(forth, name) == getattr(back, name)
    assert 0 <= forth.ties <= forth.differing <= forth.prompts
    assert (verdict(forth) == "fail") == (verdict(back) == "fail")


@given(sides, st.integers(0, 7), st.floats(2 * LOGPROB_TOLERANCE, 5), st.booleans())
def test_a_planted_difference_is_always_found(
    found: list[dict[str, Any]], at: int, by: float, token: bool
) -> None:
    frame = pd.concat([side("a", found), side("b", found)], ignore_index=True)
    at = min(at, len(found[0]["tokens"]) - 1)
    assert verdict(compare(changed(frame, token=token, by=by, at=at), "b", "a")) == "fail"


# --- reading and showing --------------------------------------------------------------------------


def test_what_is_on_disk_is_read_whole(tmp_path: Any) -> None:
    launch = stub.launches(stub.experiment())[0]
    store = Store(tmp_path)
    writer = store.begin(launch)
    said = {"tokens": [1, 2], "logprobs": [-1.0, -2.0], "error": ""}
    prompts = [{"kind": kind, **said} for kind in ("prompt", "twin")] * 2
    passes = [{"counters": {HITS[0]: 32.0 * number}, "outputs": prompts} for number in range(2)]
    (writer.folder / "outputs.json").write_bytes(orjson.dumps({"passes": passes}))
    assert same_output.read([launch], store).empty  # it has not ended
    writer.end("measured", "")
    found = same_output.read([launch], store)
    assert list(found.columns) == [*COLUMNS, *HITS]
    assert list(found["prompt"]) == [0, 0, 1, 1] * 2
    assert list(found["number"]) == [0] * 4 + [1] * 4
    assert list(found[HITS[0]]) == [0.0] * 4 + [32.0] * 4 and found[HITS[1]].isna().all()
    assert set(found["launch"]) == {launch.id} and set(found["arm"]) == {launch.arm.name}


def test_the_table_shows_every_comparison_with_its_verdict() -> None:
    frame = outputs(("a", "b", "c"))
    agreed = [
        compare(changed(frame, token=True, by=by, arm=arm), arm, "a")
        for arm, by in (("b", NEAR), ("c", FAR), ("absent", 0.0))
    ]
    table = same_output.table(agreed)
    assert list(table.shown["verdict"]) == ["pass", "fail", "cannot judge"]
    assert list(table.shown["compared"]) == [f"{arm} against a" for arm in ("b", "c", "absent")]
    assert list(table.data["ties"]) == [1, 0, 0] and f"{LOGPROB_TOLERANCE:g}" in table.caption
    assert (table.shown != "").to_numpy().all()
    empty = same_output.table([])
    assert empty.shown.empty and "not compared" in empty.caption
