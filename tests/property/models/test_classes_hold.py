"""Headers say anything; a class comes of them, or a refusal that names what is wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.models.classes import Kind, Refusal, classify
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.metadata import Keys
from terrace_runtime.models.recurrent import state_bytes

_NUMBERS = st.one_of(st.integers(-5, 2**40), st.booleans(), st.text(max_size=3))
_KEYS = [
    "attention.head_count",
    "block_count",
    "embedding_length",
    "kda.head_dim",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "token_shift_count",
    "wkv.head_size",
]
_NAMES = st.sampled_from(["llama", "bert", "mamba", "rwkv7", "kimi-linear", "minimax-01", "lfm2"])


@given(
    architecture=st.text(max_size=20) | _NAMES,
    is_causal=st.booleans(),
    pooling=st.none() | st.integers(-3, 2**31),
)
def test_every_header_has_a_class_or_a_reason(
    architecture: str, *, is_causal: bool, pooling: int | None
) -> None:
    found = classify(architecture, is_causal=is_causal, pooling=pooling)
    if isinstance(found, Refusal):
        assert found.reason
    else:
        assert isinstance(found, Kind)
        assert found.pooling in {"", "mean", "cls", "last"}
        assert found.pooling or found.model_class != "encoder"


@given(
    _NAMES,
    st.dictionaries(
        st.sampled_from(_KEYS),
        _NUMBERS,
    ),
)
def test_a_state_has_a_size_or_the_header_is_refused(
    architecture: str, numbers: dict[str, int | bool | str]
) -> None:
    metadata = {f"{architecture}.{key}": value for key, value in numbers.items()}
    keys = Keys({"general.architecture": architecture, **metadata})
    try:
        size = state_bytes(keys)
    except FetchError as error:
        size, reason = 0, error.reason
    else:
        reason = "InvalidModel"
    assert reason == "InvalidModel"
    assert 0 <= size <= 2**50
    assert size % 4 == 0
