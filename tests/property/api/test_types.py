from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from support.planning import model, pool
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.api.quantity import parse_bytes, parse_millis, parse_quantity

if TYPE_CHECKING:
    from decimal import Decimal

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Gi": 2**30, "Ti": 2**40}
numbers = st.decimals(min_value=0, max_value=10**9, places=3, allow_nan=False)


@given(numbers, st.sampled_from(sorted(SUFFIXES)))
def test_a_quantity_is_its_number_times_its_suffix(number: Decimal, suffix: str) -> None:
    assert parse_quantity(f"{number:f}{suffix}") == number * SUFFIXES[suffix]


@given(numbers, st.sampled_from(sorted(SUFFIXES)))
def test_rounding_is_up_and_by_less_than_one(number: Decimal, suffix: str) -> None:
    text = f"{number:f}{suffix}"
    assert 0 <= parse_bytes(text) - parse_quantity(text) < 1
    assert 0 <= parse_millis(text) - 1000 * parse_quantity(text) < 1


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    try:
        assert parse_quantity(text) >= 0
    except ValueError:
        return


models = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(0, 1000),
        "context": st.fixed_dictionaries(
            {}, optional={"length": st.integers(64, 16777216), "parallel": st.integers(1, 255)}
        ),
        "offload": st.fixed_dictionaries(
            {},
            optional={
                "profile": st.sampled_from(["Auto", "DiskHeavy"]),
                "spillThreshold": st.sampled_from([0, "512Mi", "1.5Gi"]),
                "kvBlockTokens": st.integers(8, 1024),
                "checkpointTokens": st.integers(16, 1_048_576),
                "checkpointCount": st.integers(0, 4096),
                "disk": st.sampled_from([{}, {"ephemeral": True}, {"claimName": "a.b"}]),
            },
        ),
        "speculation": st.fixed_dictionaries({}, optional={"mode": st.just("NGram")}),
        "sampling": st.fixed_dictionaries({}, optional={"temperature": st.floats(0, 5)}),
        "servedNames": st.lists(
            st.from_regex(r"[A-Za-z0-9][a-z._:/-]{0,9}", fullmatch=True), max_size=16
        ),
    },
)


@given(models)
def test_a_model_survives_the_wire(spec: dict[str, object]) -> None:
    value = model(**spec)
    wire = value.model_dump_json(by_alias=True, exclude_none=True)
    assert ModelSpec.model_validate_json(wire) == value


@given(
    st.lists(st.from_regex(r"[a-z0-9]{1,11}", fullmatch=True), min_size=1, max_size=8, unique=True)
)
def test_a_pool_survives_the_wire(names: list[str]) -> None:
    value = pool(*({"name": name} for name in names))
    assert PoolSpec.model_validate_json(value.model_dump_json(by_alias=True)) == value
