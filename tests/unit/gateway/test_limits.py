"""Admission."""

from __future__ import annotations

from dataclasses import replace

import pytest

from terrace.gateway.errors import ApiError
from terrace.gateway.limits import Admission, Limits


def test_one_request_too_many_gets_429_with_a_time_to_come_back() -> None:
    admission = Admission(replace(Limits(), max_requests=1))
    with admission.request():
        with pytest.raises(ApiError) as caught, admission.request():
            pass
        assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
    with admission.request():
        assert admission.requests == 1


def test_the_bytes_of_all_bodies_together_are_bounded() -> None:
    admission = Admission(replace(Limits(), max_held_bytes=100))
    with admission.request() as one, admission.request() as two:
        one.grow(60)
        with pytest.raises(ApiError) as caught:
            two.grow(60)
        assert caught.value.status == 429
        one.release()
        two.grow(60)


def test_nothing_is_counted_after_a_request_that_failed() -> None:
    admission = Admission(Limits())

    def fail_with_ten_bytes_held() -> None:
        with admission.request() as hold:
            hold.grow(10)
            hold.grow(Limits().max_held_bytes)

    with pytest.raises(ApiError):
        fail_with_ten_bytes_held()
    assert (admission.requests, admission.held_bytes) == (0, 0)


def test_releasing_twice_counts_once() -> None:
    admission = Admission(Limits())
    with admission.request() as hold:
        hold.grow(10)
        hold.release()
        hold.release()
        assert admission.held_bytes == 0
