"""Two blocks have one key only if everything that shapes them is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.kv.keys import block_keys, root_key

_TOKENS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=60)
_ROOTS = st.tuples(
    st.text("ab", max_size=3),
    st.sampled_from(["f16", "q8_0"]),
    st.sampled_from(["f16", "q8_0"]),
    st.text("ab", max_size=3),
    st.sampled_from([8, 16]),
    st.text("ab", max_size=3),
    st.text("ab", max_size=3),
)


def _root(parts: tuple[str, str, str, str, int, str, str]) -> bytes:
    model, key_type, value_type, build, block_tokens, adapter, salt = parts
    types = (key_type, value_type)
    return root_key(model, types, build, block_tokens, adapter=adapter, salt=salt)


@given(_ROOTS, _ROOTS, _TOKENS, st.integers(1, 8))
def test_keys_of_other_models_adapters_and_tenants_never_meet(
    one: tuple[str, str, str, str, int, str, str],
    other: tuple[str, str, str, str, int, str, str],
    tokens: list[int],
    block_tokens: int,
) -> None:
    keys = [set(block_keys(_root(parts), tokens, block_tokens)) for parts in (one, other)]
    assert (keys[0] == keys[1]) if one == other else keys[0].isdisjoint(keys[1])


@given(_TOKENS, _TOKENS, st.integers(1, 8))
def test_prompts_share_the_keys_of_their_common_blocks_and_no_others(
    one: list[int], other: list[int], block_tokens: int
) -> None:
    root = _root(("", "f16", "f16", "", 8, "", ""))
    keys = [block_keys(root, tokens, block_tokens) for tokens in (one, other)]
    common = 0
    while common < min(map(len, keys)) and (
        one[: (common + 1) * block_tokens] == other[: (common + 1) * block_tokens]
    ):
        common += 1
    assert keys[0][:common] == keys[1][:common]
    assert set(keys[0][common:]).isdisjoint(keys[1])
    assert len(set(keys[0])) == len(keys[0]) == len(one) // block_tokens


@given(_TOKENS, st.integers(1, 8), st.integers(0, 60))
def test_known_keys_change_nothing(tokens: list[int], block_tokens: int, num_known: int) -> None:
    root = _root(("m", "f16", "f16", "b", 8, "", ""))
    keys = block_keys(root, tokens, block_tokens)
    assert block_keys(root, tokens, block_tokens, keys[:num_known]) == keys


@given(st.integers().filter(lambda token: not -(2**31) <= token < 2**31))
def test_no_token_wraps_around(token: int) -> None:
    with pytest.raises(OverflowError):
        block_keys(b"", [token], 1)
