"""The one field of the body that the gateway reads."""

from __future__ import annotations

import pytest

from terrace.gateway.body import requested_model
from terrace.gateway.errors import ApiError


def test_a_long_text_is_no_reason_to_refuse() -> None:
    text = b"It was, all in all, a long [very long] text. " * 100_000
    assert requested_model(b'{"prompt": "' + text + b'", "model": "a"}') == "a"


def test_the_model_is_found_wherever_it_stands() -> None:
    assert requested_model(b'{"messages": [{"model": "no"}], "model": "yes"}') == "yes"
    assert requested_model(b'{"model": "d\\u00e9mo"}') == "démo"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b'{"model": "a"', "invalid_json", None),
        (b'\xef\xbb\xbf{"model": "a"}', "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b'{"model": "\\ud800"}', "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"model": "a", "x": [' + b"[]," * 1_000_000 + b"1]}", "too_many_values", None),
        (b'["model"]', "invalid_json", None),
        (b"{}", "missing_model", "model"),
        (b'{"model": null}', "missing_model", "model"),
        (b'{"model": ""}', "invalid_model", "model"),
        (b'{"model": 7}', "invalid_model", "model"),
        (b'{"model": ["a"]}', "invalid_model", "model"),
        (b'{"model": "' + b"x" * 257 + b'"}', "invalid_model", "model"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_broken_body_is_a_400_that_names_what_is_wrong(
    body: bytes, code: str, param: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        requested_model(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
