"""Comparison and picking of manifests."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from terrace.controller.drift import covers, digest_of, is_applied, sealed, taken_from

SCALARS = st.one_of(st.booleans(), st.integers(-5, 5), st.text("abc", max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("wxyz"), inner, max_size=3),
        st.lists(
            st.builds(lambda name, v: {"name": name, "v": v}, st.sampled_from("pqr"), inner),
            max_size=3,
            unique_by=lambda entry: entry["name"],
        ),
    ),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from("wxyz"), VALUES, max_size=4)


@given(wanted=OBJECTS, extra=OBJECTS)
def test_what_others_add_is_no_drift(wanted: dict[str, Any], extra: dict[str, Any]) -> None:
    assert covers({**extra, **wanted}, wanted)


@given(wanted=OBJECTS, key=st.sampled_from("wxyz"))
def test_a_missing_field_is_drift(wanted: dict[str, Any], key: str) -> None:
    live = {field: value for field, value in wanted.items() if field != key}
    assert covers(live, wanted) == (key not in wanted)


@given(live=OBJECTS, wanted=OBJECTS)
def test_taken_values_are_live_ones(live: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert covers(live, taken_from(live, wanted))


@given(spec=OBJECTS)
def test_a_sealed_manifest_is_applied_and_stays_so(spec: dict[str, Any]) -> None:
    wanted = sealed({"metadata": {"name": "n"}, "spec": spec})
    assert is_applied(wanted, wanted)
    assert digest_of(wanted) != digest_of({"metadata": {"name": "n"}, "spec": spec})
    other = sealed({"metadata": {"name": "n"}, "spec": {**spec, "new": 1}})
    assert not is_applied(wanted, other)


def test_quantities_compare_by_value_only_where_they_are_quantities() -> None:
    wanted = {"resources": {"limits": {"memory": "1073741824"}}}
    assert covers({"resources": {"limits": {"memory": "1Gi"}}}, wanted)
    assert not covers({"resources": {"limits": {"memory": "2Gi"}}}, wanted)
    assert not covers({"value": "1Gi"}, {"value": "1073741824"})
