"""Two builds share a cache entry exactly when everything that decides their bytes is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from build.source import Sdist
from build.toolchain import Toolchain, cache_key, ggml_flags, missing_cpu_features

if TYPE_CHECKING:
    from random import Random

_WORD = st.text("abcdef=-0123", max_size=4)
_FLAGS = st.lists(_WORD, max_size=3, unique=True)
_BUILDS = st.tuples(
    st.builds(Sdist, st.just("p"), st.just("1"), _WORD, st.just("f")),
    _FLAGS,
    st.builds(Toolchain, _WORD, _WORD, _WORD, st.lists(_WORD, max_size=2).map(tuple)),
)


@given(_BUILDS, _BUILDS)
def test_keys_are_equal_exactly_when_the_inputs_are(
    one: tuple[Sdist, list[str], Toolchain], other: tuple[Sdist, list[str], Toolchain]
) -> None:
    is_same = (one[0], sorted(one[1]), one[2]) == (other[0], sorted(other[1]), other[2])
    assert (cache_key(*one) == cache_key(*other)) is is_same


@given(_BUILDS, st.randoms(use_true_random=False))
def test_the_order_of_flags_does_not_matter(
    build: tuple[Sdist, list[str], Toolchain], random: Random
) -> None:
    sdist, flags, toolchain = build
    shuffled = random.sample(flags, len(flags))
    assert cache_key(sdist, flags, toolchain) == cache_key(sdist, shuffled, toolchain)


@given(st.text())
def test_no_flag_ever_depends_on_the_cpu_that_builds(machine: str) -> None:
    assert "GGML_NATIVE=OFF" in ggml_flags(machine)


@given(st.sampled_from(["x86_64", "aarch64", "riscv64"]), st.text())
def test_whatever_cpuinfo_says_is_read(machine: str, cpuinfo: str) -> None:
    assert isinstance(missing_cpu_features(machine, f"flags : {cpuinfo}"), tuple)
