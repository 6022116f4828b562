"""Our signatures against those that AWS publishes."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from yarl import URL

from terrace_runtime.models.sigv4 import Key, signed_headers

SUITE_KEY = Key("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
S3_KEY = Key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
S3_TIME = datetime(2013, 5, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "signature"),
    [
        (  # get-vanilla of the Signature Version 4 test suite
            "https://example.amazonaws.com/",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (  # get-vanilla-query-order-key-case
            "https://example.amazonaws.com/?Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ],
)
def test_the_test_suite_of_aws_is_met(url: str, signature: str) -> None:
    headers = signed_headers(url, {}, SUITE_KEY, "us-east-1", SUITE_TIME, "service")
    assert headers["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}"
    )


@pytest.mark.parametrize(
    ("path", "headers", "names", "signature"),
    [
        (  # "GET Object" of the S3 API's "Authenticating Requests: Using the Authorization Header"
            "test.txt",
            {"Range": "bytes=0-9"},
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (  # "GET Bucket (List Objects)" there
            "?max-keys=2&prefix=J",
            {},
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
        (  # "GET Bucket Lifecycle" there
            "?lifecycle",
            {},
            "host;x-amz-content-sha256;x-amz-date",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
    ],
)
def test_the_examples_of_s3_are_met(
    path: str, headers: dict[str, str], names: str, signature: str
) -> None:
    url = f"https://examplebucket.s3.amazonaws.com/{path}"
    signed = signed_headers(url, headers, S3_KEY, "us-east-1", S3_TIME)
    assert signed["Authorization"].endswith(f"SignedHeaders={names}, Signature={signature}")


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("http://rgw.store.svc:80/k", "http://rgw.store.svc/k"),
        ("https://s3.example:443/k", "https://s3.example/k"),
        ("https://[2001:db8::5]:443/k", "https://[2001:db8::5]/k"),
        ("https://[2001:db8::5]/k", "https://[2001:db8::5]/k"),
    ],
)
def test_the_host_is_signed_as_it_is_sent(written: str, sent: str) -> None:
    assert URL(written, encoded=True).host_port_subcomponent == urlsplit(sent).netloc
    assert signed_headers(written, {}, S3_KEY, "us-east-1", S3_TIME) == signed_headers(
        sent, {}, S3_KEY, "us-east-1", S3_TIME
    )


def test_a_port_of_its_own_is_signed() -> None:
    one, other = (
        signed_headers(f"https://h:{port}/k", {}, S3_KEY, "us-east-1", S3_TIME)
        for port in (80, 9000)
    )
    assert one["Authorization"] != other["Authorization"]


def test_a_session_token_is_sent_and_signed() -> None:
    key = Key("id", "secret", "session")
    signed = signed_headers("https://h/k", {}, key, "eu-west-1", S3_TIME)
    assert signed["x-amz-security-token"] == "session"
    assert "x-amz-date;x-amz-security-token," in signed["Authorization"]


def test_a_key_prints_no_secret() -> None:
    assert "secret" not in repr(Key("id", "secret", "session-secret"))
