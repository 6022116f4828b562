"""S3 and stores that speak its protocol: from ``s3://`` to signed requests.

Owns: hosts, regions, whom the key signs for. Does not own: the signature (``sigv4``), requests
(``web``). Keys come from the source's secret alone; without one, requests go unsigned. Cloud
identities of the node are not used: their addresses are among those never reached.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.remote import Remote, RemoteFile
from terrace_runtime.models.sigv4 import Key, signed_headers
from terrace_runtime.models.sources import S3Source, endpoint_url, origin
from terrace_runtime.models.split import part_paths
from terrace_runtime.models.web import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from terrace_runtime.contract import FetchSpec
    from terrace_runtime.models.secrets import Secrets
    from terrace_runtime.models.web import Web

_DEFAULT_REGION: Final = "us-east-1"
_REGION: Final = re.compile(r"[a-z0-9-]{1,32}")
_PLAIN_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""One DNS label: such a bucket has a host of its own; a dot would break its certificate."""


def resolve_s3(source: S3Source, spec: FetchSpec, secrets: Secrets) -> Remote:
    """The object, or all parts by their names; nothing is asked yet. Raises FetchError."""
    if spec.s3_region and not _REGION.fullmatch(spec.s3_region):
        raise FetchError(
            "DownloadFailed", f"sources.s3Region: {spec.s3_region!r} is not a region's name"
        )
    endpoint = endpoint_url(spec.s3_endpoint, "sources.s3Endpoint") if spec.s3_endpoint else ""
    access = _S3Access(source.bucket, endpoint, spec.s3_region or _DEFAULT_REGION, _key(secrets))
    files = tuple(RemoteFile(access.url(key)) for key in part_paths(source.key))
    return Remote(files, access)


class _S3Access(Access):
    """Signs for the bucket's own host, and follows the bucket to its region."""

    def __init__(
        self,
        bucket: str,
        endpoint: str,
        region: str,
        key: Key | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bucket = bucket
        self._endpoint = endpoint
        self._region = region
        self._key = key
        self._clock = clock
        self._has_moved = False

    def url(self, key: str) -> str:
        """Where the object ``key`` lies."""
        return f"{self._base()}/{quote(key, safe='/-_.~')}"

    def headers(self, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The signature, for our own host alone."""
        if self._key is None or origin(url) != origin(self._base()):
            return {}
        return signed_headers(url, headers, self._key, self._region, self._clock())

    async def again(
        self, web: Web, url: str, status: int, headers: Mapping[str, str]
    ) -> str | None:
        """Amazon names the bucket's region in answers from any other."""
        del web, status
        region = headers.get("x-amz-bucket-region", "")
        known = region == self._region or not _REGION.fullmatch(region)
        if known or self._has_moved or origin(url) != origin(self._base()):
            return None
        old = self._base()
        self._region, self._has_moved = region, True
        return self._base() + url.removeprefix(old)

    def explain(self, status: int, headers: Mapping[str, str]) -> str:
        """S3 answers 403 for what is not there, unless the key may list the bucket."""
        del headers
        if status == 403:  # noqa: PLR2004 - as named above
            if self._key is None:
                return "the object is private (set secretRef with an access key) or not there"
            return "the key may not read the object, or it is not there, or the clock is wrong"
        return ""

    def _base(self) -> str:
        if self._endpoint:
            return f"{self._endpoint}/{self._bucket}"
        host = f"s3.{self._region}.amazonaws.com"
        if self._region.startswith("cn-"):
            host += ".cn"
        if _PLAIN_BUCKET.fullmatch(self._bucket):
            return f"https://{self._bucket}.{host}"
        return f"https://{host}/{self._bucket}"


def _key(secrets: Secrets) -> Key | None:
    if not secrets.is_login:
        return None
    key = Key(
        secrets.get("AWS_ACCESS_KEY_ID"),
        secrets.get("AWS_SECRET_ACCESS_KEY"),
        secrets.get("AWS_SESSION_TOKEN"),
    )
    if not key.access_key_id or not key.secret_access_key:
        raise FetchError(
            "Unauthorized",
            "an s3:// source's secret needs the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return key
