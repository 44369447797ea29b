"""What a load may ask: every field that cannot be is refused by its name."""

from __future__ import annotations

import pytest
from test_client import load

from study.errors import StudyError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1"),
        ({"concurrency": "many"}, "concurrency must be a whole number"),
        ({"concurrency": True}, "concurrency must be a whole number"),
        ({"rate_per_s": 0.0}, "rate_per_s must be a finite number above 0"),
        ({"rate_per_s": float("inf")}, "rate_per_s must be a finite number"),
        ({"rate_per_s": 1.0, "concurrency": 2}, "Exactly one of concurrency and rate_per_s"),
        ({"concurrency": None}, "Exactly one of concurrency and rate_per_s"),
        ({"rate_per_s": 1.0, "ramp_s": 1.0}, "ramp_s must be 0 in an open loop"),
        ({"requests": 0}, "requests must be"),
        ({"requests": None}, "Exactly one of requests and min_s"),
        ({"min_s": 1.0}, "min_latencies must be"),
        ({"min_s": 1.0, "min_latencies": 1}, "max_s must be given with min_s"),
        ({"min_s": 2.0, "min_latencies": 1, "max_s": 1.0}, "max_s must be"),
        ({"ramp_s": -1.0}, "ramp_s must be"),
        ({"request_timeout_s": 0}, "request_timeout_s must be a finite number above 0"),
        ({"vocabulary": 4}, "vocabulary must be a whole number of at least 5"),
        ({"input_tokens": 0}, "input_tokens must be"),
        ({"input_tokens": 4}, "input_tokens must be at least 5 with a vocabulary of 1000"),
        ({"output_tokens": 1.5}, "output_tokens must be"),
        ({"salt": 1 << 20}, "salt must be"),
        ({"seed": -1}, "seed must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"base_url": "127.0.0.1:8000"}, "base_url must be http"),
        ({"prompts": ()}, "prompts must be"),
        ({"prompts": ((),)}, "prompts must be"),
        ({"prompts": ((1000,),)}, "prompts must be a whole number"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        load(**({"base_url": "http://127.0.0.1:1"} | changes))  # type: ignore[arg-type]
