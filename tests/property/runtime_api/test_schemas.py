"""Whatever JSON comes, parsing gives a bounded body or a 400 that names a field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.generation import max_tokens
from terrace_runtime.api.schemas import ChatBody, CompletionBody, parse
from terrace_runtime.contract import RuntimeConfig

if TYPE_CHECKING:
    from terrace_runtime.api.content_parts import Turn

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = [*CompletionBody.model_fields, *ChatBody.model_fields, "tools", "best_of"]
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6)
CONFIG = RuntimeConfig(
    model="m",
    served_names=("m",),
    model_path="/m",
    model_digest="0" * 64,
    context_tokens=256,
    max_tokens=100,
)


@given(bodies)
def test_a_chat_body_is_bounded_or_refused(body: dict[str, Any]) -> None:
    base = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    try:
        found = parse(ChatBody, orjson.dumps(base | body))
        turns = found.conversation().turns
    except ApiError as error:
        refusal = error
    else:
        check_bounds(found, turns)
        return
    assert refusal.status == 400
    assert str(refusal)


def check_bounds(found: ChatBody, turns: list[Turn]) -> None:
    assert 1 <= len(turns) <= 4096
    assert all(isinstance(one, str) for turn in turns for one in turn.content)
    assert 1 <= (found.n or 1) <= 8
    assert len(found.stops) <= 16
    assert 1 <= (max_tokens(found.max_tokens, CONFIG) or 1) <= 100
    params = found.sampling(CONFIG)
    assert 0 <= params.temperature <= 5
    assert 0 < params.top_p <= 1
    assert params.top_k >= 0
    assert params.seed is None or 0 <= params.seed < 2**32 - 1


@given(values)
def test_a_prompt_is_bounded_or_refused(prompt: Any) -> None:
    try:
        found = parse(CompletionBody, orjson.dumps({"model": "m", "prompt": prompt})).prompts()
    except ApiError as error:
        refusal = error
    else:
        assert 1 <= len(found) <= 16
        for item in found:
            assert isinstance(item, str) or all(0 <= token < 2**31 for token in item)
        return
    assert (refusal.status, (refusal.param or "")[:6]) == (400, "prompt")


@given(st.binary(max_size=60))
def test_noise_is_a_400(noise: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatBody, noise)
    assert caught.value.status == 400
