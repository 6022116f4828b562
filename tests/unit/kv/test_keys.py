"""Keys name a block by all that shapes its bytes."""

from __future__ import annotations

import struct
from hashlib import sha256
from itertools import combinations

import pytest

from terrace_runtime.kv.keys import KEY_BYTES, block_keys, root_key

_DIGEST = "a" * 64
_ROOT = root_key(_DIGEST, ("f16", "f16"), "build", 4)


def test_a_key_is_the_hash_of_its_parent_and_its_tokens() -> None:
    first = sha256(_ROOT + struct.pack("<4i", 1, 2, 3, -4)).digest()
    second = sha256(first + struct.pack("<4i", 5, 6, 7, 8)).digest()
    assert block_keys(_ROOT, [1, 2, 3, -4, 5, 6, 7, 8, 9], 4) == [first, second]


def test_roots_of_different_models_types_builds_adapters_and_tenants_differ() -> None:
    roots = [
        _ROOT,
        root_key("b" * 64, ("f16", "f16"), "build", 4),
        root_key(_DIGEST, ("q8_0", "f16"), "build", 4),
        root_key(_DIGEST, ("f16", "q8_0"), "build", 4),
        root_key(_DIGEST, ("f16", "f16"), "other", 4),
        root_key(_DIGEST, ("f16", "f16"), "build", 8),
        root_key(_DIGEST, ("f16", "f16"), "build", 4, adapter="x"),
        root_key(_DIGEST, ("f16", "f16"), "build", 4, salt="x"),
        root_key(_DIGEST, ("f16", "f16"), "build", 4, adapter="x", salt="x"),
    ]
    assert all(len(root) == KEY_BYTES for root in roots)
    assert all(one != other for one, other in combinations(roots, 2))


def test_text_cannot_move_from_one_field_to_the_next() -> None:
    assert root_key(_DIGEST, ("f16", "f16"), "b", 4, adapter="a", salt="bc") != root_key(
        _DIGEST, ("f16", "f16"), "b", 4, adapter="ab", salt="c"
    )


def test_a_tenant_named_in_any_text_has_a_root() -> None:
    assert root_key(_DIGEST, ("f16", "f16"), "b", 4, salt="\ud800 雪\0")


def test_known_keys_are_taken_and_the_rest_is_computed() -> None:
    tokens = list(range(22))
    keys = block_keys(_ROOT, tokens, 4)
    for count in range(6):
        assert block_keys(_ROOT, tokens, 4, keys[:count]) == keys
    assert block_keys(_ROOT, tokens[:9], 4, keys) == keys[:2]


def test_fewer_tokens_than_a_block_have_no_key() -> None:
    assert block_keys(_ROOT, [1, 2, 3], 4) == []


def test_a_token_beyond_32_bits_is_an_error_and_not_another_token() -> None:
    with pytest.raises(OverflowError):
        block_keys(_ROOT, [1 << 32, 0, 0, 0], 4)
