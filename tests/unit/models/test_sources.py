"""Which source URIs are taken, and why others are not."""

from __future__ import annotations

import pytest

from terrace_runtime.contract import FetchSpec
from terrace_runtime.models.addresses import AddressRule
from terrace_runtime.models.content import check_magic
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.sources import (
    ClaimSource,
    DemoSource,
    HttpSource,
    HubSource,
    ImageSource,
    OciSource,
    S3Source,
    parse_source,
    shown,
)

SHA = "b" * 64


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("demo://chat", DemoSource("chat")),
        ("pvc://claim/a/b.gguf", ClaimSource("claim", "a/b.gguf")),
        ("pvc://claim/q/m%20x%23%25.gguf", ClaimSource("claim", "q/m x#%.gguf")),
        ("https://host/a.gguf?x=1#part", HttpSource("https://host/a.gguf?x=1")),
        ("HTTPS://host:8443/a", HttpSource("https://host:8443/a")),
        ("http://host/a", HttpSource("http://host/a")),
        ("https://huggingface.co/o/r/resolve/main/m.gguf", None),
        ("hf://o/r", HubSource("o/r")),
        ("hf://o/r.v1/q/m%20x.gguf", HubSource("o/r.v1", file="q/m x.gguf")),
        ("hf://o/r:Q4_K_M", HubSource("o/r", quant="Q4_K_M")),
        ("hf://o/r@v1:UD-Q2_K_XL", HubSource("o/r", "v1", quant="UD-Q2_K_XL")),
        ("hf://o/r@refs%2Fpr%2F1/m.gguf", HubSource("o/r", "refs/pr/1", "m.gguf")),
        ("hf://o/r/a@b:c.gguf", HubSource("o/r", file="a@b:c.gguf")),
        ("s3://my.bucket/a/b%2Bc+d.gguf", S3Source("my.bucket", "a/b+c+d.gguf")),
        ("oci://docker.io/ai/x", OciSource("docker.io", "ai/x")),
        ("oci://host:5000/x:V1", OciSource("host:5000", "x", "V1")),
        ("oci://host:5000/x:V1#a/m.gguf", ImageSource("host:5000/x:V1", "a/m.gguf")),
        ("oci://host:5000/x:V1#m%20x.gguf", ImageSource("host:5000/x:V1", "m x.gguf")),
        (f"oci://host/x:v1@sha256:{SHA}", OciSource("host", "x", f"sha256:{SHA}")),
    ],
)
def test_good_sources_are_parsed(uri: str, source: object) -> None:
    assert parse_source(FetchSpec(uri=uri, sha256=SHA)) == (source or HttpSource(uri))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "chat",
        "ftp://host/a",
        "file:///etc/passwd",
        "demo://../../etc/passwd",
        "demo://Chat",
        "pvc://claim",
        "pvc://claim/",
        "pvc://claim/../x",
        "pvc://claim/a/./b",
        "pvc://claim//a",
        "pvc://claim/%2e%2e/x",
        "pvc://claim/a%0ab",
        "pvc://claim/a\\..\\b",
        "pvc://../a",
        "pvc://claim/" + "é" * 400,
        "https://",
        "https:///path",
        "https://user:secret@host/a",
        "https://host\\@evil/a",
        "https://host:99999/a",
        "https://ho st/a",
        "https://host/a\r\nX: y",
        "https://[::1/a",
        "https://a..b/m.gguf",
        "https://.host/m.gguf",
        "https://" + "a" * 64 + ".example/m.gguf",
        "https://huggingface.co/owner/repo/blob/main/m.gguf",
        "https://hf.co/owner/repo",
        "hf://owner",
        "hf://owner/repo/",
        "hf://owner/repo/../x.gguf",
        "hf://owner/repo/%2e%2e/x.gguf",
        "hf://owner/repo@/x.gguf",
        "hf://owner/repo@%2e%2e/x.gguf",
        "hf://owner/repo:Q8 0",
        "hf://owner/repo:Q8_0/x.gguf",
        "hf://../repo/x.gguf",
        "s3://bucket",
        "s3://bucket/",
        "s3://b/key",
        "s3://bucket/a/../b",
        "s3://bucket/%2e%2e/b",
        "s3://bucket/a%0ab",
        "s3://bucket/" + "k" * 1025,
        "oci://registry",
        "oci://registry/",
        "oci://registry/Name:tag",
        "oci://registry/name:tag#",
        "oci://registry/name:tag#../m.gguf",
        "oci://registry/Name:tag#m.gguf",
        "oci://registry/name@sha256:abc",
        "oci://user@registry/name",
        "oci://registry/name/../other:tag",
    ],
)
def test_bad_sources_are_refused_for_good(uri: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_source(FetchSpec(uri=uri))
    assert caught.value.permanent
    assert "secret" not in str(caught.value)


def test_plain_http_needs_a_checksum() -> None:
    with pytest.raises(FetchError, match="sha256"):
        parse_source(FetchSpec(uri="http://host/a"))


def test_a_query_is_never_shown() -> None:
    assert shown("https://host/a?token=secret#x") == "https://host/a"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff02::1",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "192.0.0.192",
        "fec0::1",
        "::127.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b:1::a00:1",
        "not an address",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not AddressRule(()).permits(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_permitted(address: str) -> None:
    assert AddressRule(()).permits(address)


def test_a_pool_can_allow_a_network() -> None:
    rule = AddressRule(["10.0.0.0/8", "fd00::/8"])
    assert rule.permits("10.1.2.3")
    assert rule.permits("::ffff:10.1.2.3")
    assert rule.permits("fd00::5")
    assert not rule.permits("192.168.0.1")
    with pytest.raises(FetchError, match="CIDR"):
        AddressRule(["10.0.0.0/99"])


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n <html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"__meta', "safetensors"),
        (b"PK\x03\x04....", "PyTorch"),
        (b"\x80\x02}q", "pickle"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"error": 1}', "JSON"),
        (b"tjgg....", "GGML"),
        (b"\x00\x01\x02\x03\x04", "unknown format"),
    ],
)
def test_other_formats_are_named(head: bytes, words: str) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        check_magic(head)
    assert caught.value.reason == "UnsupportedFormat"


def test_a_gguf_in_small_pieces_is_no_other_format() -> None:
    for head in (b"", b"G", b"GG", b"GGUF", b"GGUF\x03"):
        check_magic(head)
