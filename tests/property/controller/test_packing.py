"""What is packed comes back as it was, alike gives alike, and much alike takes little."""

from __future__ import annotations

import json

import orjson
from hypothesis import given
from hypothesis import strategies as st

from terrace.controller.packing import Packer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
MANIFESTS = st.dictionaries(st.text(), VALUES, max_size=6)


@given(st.lists(MANIFESTS, min_size=1, max_size=8))
def test_every_object_comes_back_whatever_was_packed_before_it(
    manifests: list[dict[str, object]],
) -> None:
    packer = Packer()
    packed = [packer.pack(each) for each in manifests]
    assert [packer.unpack(data) for data in packed] == manifests


@given(MANIFESTS, st.lists(MANIFESTS, max_size=4))
def test_the_same_object_gives_the_same_bytes_in_whatever_order_its_keys_are(
    manifest: dict[str, object], others: list[dict[str, object]]
) -> None:
    packer = Packer()
    first = packer.pack(manifest)
    for other in others:
        packer.pack(other)
    assert packer.pack(dict(reversed(manifest.items()))) == first


def test_a_text_longer_than_the_window_comes_back() -> None:
    packer = Packer()
    for scale in (1, 20_000, 40_000):
        manifest = {"text": "".join(map(str, range(scale))), "scale": scale}
        assert packer.unpack(packer.pack(manifest)) == manifest


def test_objects_that_are_much_alike_take_a_tenth_of_their_text() -> None:
    packer = Packer()
    made = [
        {"metadata": {"name": f"model-{n}"}, "env": [f"VARIABLE_{k}={k * k}" for k in range(99)]}
        for n in range(50)
    ]
    packer.pack(made[0])
    packed = sum(len(packer.pack(each)) for each in made[1:])
    assert packed < sum(len(orjson.dumps(each)) for each in made[1:]) / 10
    assert json.loads(json.dumps(made[7])) == packer.unpack(packer.pack(made[7]))
