"""Whatever a URI, a repository, a secret or a registry says: an answer or our error, in bounds."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st

from terrace_runtime.contract import FetchSpec
from terrace_runtime.models.cache import read_entry
from terrace_runtime.models.choice import choose
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.secrets import Secrets
from terrace_runtime.models.sigv4 import Key, signed_headers
from terrace_runtime.models.sources import HubSource, OciSource, S3Source, origin, parse_source
from terrace_runtime.models.split import MAX_PARTS, part_paths, split_name

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
SCHEMES = st.sampled_from(("hf", "s3", "oci", "https", "http", "pvc", "demo", "HF", "ftp", ""))
PIECES = st.sampled_from(
    ("a", "B-1", "@", ":", "/", "..", ".", "%2e", "%2F", "%00", "é", "\\", "#", "?", "sha256:", "[")
)
TAGS = ("Q4_K_M", "Q8_0", "IQ4_XS", "UD-Q4_K_M", "F16")
NAMES = st.builds(
    "{}{}-{}{}".format,
    st.sampled_from(("", "q/", "Q8_0/")),
    st.sampled_from(("model", "mmproj", "x")),
    st.sampled_from(TAGS),
    st.sampled_from((".gguf", "-00001-of-00002.gguf", "-00002-of-00002.gguf", ".safetensors")),
)
PLAIN = st.from_regex(r"[A-Za-z0-9_+= -]{1,12}(/[A-Za-z0-9é._+-]{1,9}x){0,3}", fullmatch=True)


def answer(ask: Callable[[], T]) -> T | FetchError:
    """What comes of it; any other exception is a failed test."""
    try:
        return ask()
    except FetchError as error:
        return error


@given(SCHEMES, st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=60))
@example("hf", "a/b@refs%2Fpr%2F1:Q8_0")
def test_a_uri_is_parsed_or_refused_for_good(scheme: str, rest: str) -> None:
    spec = FetchSpec(uri=f"{scheme}://{rest}", sha256="0" * 64)
    source = answer(lambda: parse_source(spec))
    if isinstance(source, FetchError):
        assert source.permanent
        return
    names = [value for value in vars(source).values() if isinstance(value, str)]
    if isinstance(source, (HubSource, S3Source, OciSource)):
        assert all(".." not in name.split("/") for name in names)
        assert all(ord(c) >= 32 for name in names for c in name)


@given(PLAIN)
def test_a_key_survives_its_quoting(key: str) -> None:
    assert parse_source(FetchSpec(uri=f"s3://bucket/{quote(key)}")) == S3Source("bucket", key)


@given(st.text(max_size=20), st.integers(0, 99_999), st.integers(0, 99_999))
def test_part_names_lead_to_all_parts_or_are_refused(prefix: str, number: int, count: int) -> None:
    path = f"{prefix}-{number:05d}-of-{count:05d}.gguf"
    paths = answer(lambda: part_paths(path))
    if isinstance(paths, FetchError):
        assert paths.permanent
        assert number != 1 or count == 0 or count > MAX_PARTS
        return
    assert paths[0] == path
    assert len(paths) == count
    assert [name.number for name in map(split_name, paths) if name] == list(range(1, count + 1))


@given(st.lists(NAMES, unique=True, max_size=8), st.sampled_from(("", *TAGS)))
def test_a_choice_is_one_whole_model_of_the_repository(names: list[str], tag: str) -> None:
    chosen = answer(lambda: choose(HubSource("o/r", quant=tag), names, "model"))
    if isinstance(chosen, FetchError):
        assert chosen.permanent
        assert chosen.reason in {"NotFound", "UnsupportedFormat"}
        return
    assert set(chosen) <= set(names)
    assert chosen == part_paths(chosen[0])
    assert all(name.endswith(".gguf") and "mmproj" not in name for name in chosen)
    assert tag.removeprefix("UD-") in chosen[0]


@given(st.permutations(("a-Q4_K_M.gguf", "a-Q8_0.gguf", "a-F16.gguf", "a-UD-Q4_K_M.gguf")))
def test_the_default_is_the_same_in_any_order(names: list[str]) -> None:
    assert choose(HubSource("o/r"), names, "model") == ("a-Q4_K_M.gguf",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("auths", "auth", "h", "username")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON.map(json.dumps) | st.text(max_size=40))
def test_a_docker_login_is_read_or_refused(raw: str) -> None:
    secrets = Secrets({".dockerconfigjson": raw})
    login = answer(lambda: secrets.login("h"))
    if isinstance(login, FetchError):
        assert login.reason == "Unauthorized"
    else:
        assert login is None or len(login) == 2


@given(st.text(min_size=4, max_size=30).filter(str.isprintable), st.text(max_size=30))
def test_no_text_keeps_a_secret(value: str, around: str) -> None:
    assert value not in Secrets({"token": value}).hide(f"{around}{value}{around}").replace(
        "***", ""
    )


@given(st.dictionaries(PLAIN, PLAIN, min_size=2, max_size=4))
def test_a_signature_is_the_same_in_any_order_of_the_query(query: dict[str, str]) -> None:
    pairs = [f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in query.items()]
    time, key = datetime(2026, 1, 1, tzinfo=UTC), Key("id", "secret")
    first, second = (
        signed_headers(f"https://h/k?{'&'.join(order)}", {}, key, "r", time)
        for order in (pairs, pairs[::-1])
    )
    assert first == second


@given(st.sampled_from(("http", "https")), st.sampled_from(("h", "h:80", "h:443", "h:8443")))
def test_an_origin_is_scheme_host_and_port(scheme: str, host: str) -> None:
    port = int(host.partition(":")[2] or (443 if scheme == "https" else 80))
    assert origin(f"{scheme}://{host}/path?query") == (scheme, "h", port)


@given(st.binary(max_size=60) | JSON.map(json.dumps).map(str.encode))
def test_an_index_file_is_read_or_says_nothing(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(raw)
        assert read_entry(Path(file.name)) is None
