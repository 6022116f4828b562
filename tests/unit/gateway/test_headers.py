"""What passes through, what is dropped, what is made."""

from __future__ import annotations

import pytest

from terrace.gateway import headers
from terrace.gateway.errors import ApiError


def passed(*given: tuple[bytes, bytes]) -> dict[str, str]:
    return dict(headers.to_replica(given, "id", "token"))


@pytest.mark.parametrize(
    "name",
    [
        b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"proxy-authorization", b"host", b"content-length", b"expect", b"authorization",
        b"x-api-key", b"cookie", b"x-terrace-priority", b"x-terrace-anything",
    ],
)  # fmt: skip
def test_this_header_of_a_client_does_not_reach_a_replica(name: bytes) -> None:
    assert set(passed((name, b"x"))) == {"x-request-id", "x-terrace-identity"}


def test_other_headers_of_a_client_do() -> None:
    found = passed((b"content-type", b"application/json"), (b"traceparent", b"00-1"))
    assert found["content-type"] == "application/json"
    assert found["traceparent"] == "00-1"


def test_a_client_cannot_bring_its_own_identity() -> None:
    pairs = headers.to_replica([(b"x-terrace-identity", b"forged")], "id", "token")
    assert [value for name, value in pairs if name == "x-terrace-identity"] == ["token"]


def test_headers_named_by_connection_stop_here_both_ways() -> None:
    assert "x-hop" not in passed((b"connection", b"close, X-Hop"), (b"x-hop", b"1"))
    back = headers.to_client([(b"Connection", b"x-hop"), (b"X-Hop", b"1"), (b"X-Stay", b"1")])
    assert back == [(b"x-stay", b"1")]


def test_a_short_plain_request_id_is_kept() -> None:
    assert headers.request_id([(b"x-request-id", b"job-7_a.b:c")]) == "job-7_a.b:c"


@pytest.mark.parametrize("given", [b"", b"a b", b"a\nb", b"\x1b[31m", b"x" * 129, b"\xc3\xa4"])
def test_any_other_request_id_is_replaced(given: bytes) -> None:
    made = headers.request_id([(b"x-request-id", given)])
    assert len(made) == 32
    assert made != headers.request_id([])


def test_priority_is_interactive_unless_the_client_says_batch() -> None:
    assert headers.priority([]) == "interactive"
    assert headers.priority([(b"x-terrace-priority", b"batch")]) == "batch"
    with pytest.raises(ApiError, match="interactive or batch") as caught:
        headers.priority([(b"x-terrace-priority", b"urgent")])
    assert (caught.value.status, caught.value.param) == (400, "x-terrace-priority")
