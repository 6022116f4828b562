"""What a source URI means: the seven kinds of places a model file comes from. Pure.

Owns: parsing and refusing URIs. Does not own: reaching them (``resolve``, ``fetch``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.contract import FetchSpec

MAX_PATH_BYTES: Final = 768
"""The path travels in a termination message, beside the facts."""
MAX_KEY_BYTES: Final = 1024
"""Of an object in S3."""
_REPO_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB: Final = re.compile(
    rf"(?P<repo>{_REPO_NAME}/{_REPO_NAME})(@(?P<revision>[^/:@]{{1,512}}))?"
    r"(:(?P<quant>[A-Za-z0-9][A-Za-z0-9._-]{0,63})|/(?P<file>.+))?"
)
_HUB_PAGE: Final = re.compile(r"https?://(www\.)?(huggingface\.co|hf\.co)/[^/]+/[^/]+(/blob/|$)")
_OCI_PIECE = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_OCI: Final = re.compile(
    r"(?P<registry>[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?)/"
    rf"(?P<name>{_OCI_PIECE}(/{_OCI_PIECE}){{0,31}})"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MAX_OCI_NAME: Final = 255


@dataclass(frozen=True)
class DemoSource:
    """``demo://NAME``: a model that ships with the runtime."""

    name: str


@dataclass(frozen=True)
class ClaimSource:
    """``pvc://CLAIM/PATH``: a file in the user's own claim, used in place."""

    claim: str
    path: str

    @property
    def place(self) -> str:
        """As messages call it."""
        return f"the claim {self.claim}"


@dataclass(frozen=True)
class ImageSource:
    """``oci://REGISTRY/NAME:TAG#PATH``: a file in an image that the pod mounts, used in place."""

    reference: str
    path: str

    @property
    def place(self) -> str:
        """As messages call it."""
        return f"the image {self.reference}"


@dataclass(frozen=True)
class HttpSource:
    """``https://...``, or ``http://...`` with a checksum."""

    url: str


@dataclass(frozen=True)
class HubSource:
    """``hf://OWNER/REPO[@REVISION]`` and then ``/FILE``, ``:QUANT`` or nothing."""

    repo: str
    revision: str = "main"
    file: str = ""
    quant: str = ""


@dataclass(frozen=True)
class S3Source:
    """``s3://BUCKET/KEY``."""

    bucket: str
    key: str


@dataclass(frozen=True)
class OciSource:
    """``oci://REGISTRY/NAME:TAG`` or ``@sha256:...``; the digest counts where both are there."""

    registry: str
    name: str
    reference: str = "latest"


RemoteSource = HttpSource | HubSource | S3Source | OciSource
MountedSource = ClaimSource | ImageSource
Source = DemoSource | MountedSource | RemoteSource


def parse_source(spec: FetchSpec) -> Source:
    """The place that ``spec.uri`` names; raises FetchError for one that cannot be used."""
    scheme, _, rest = spec.uri.partition("://")
    if any(ord(c) <= ord(" ") or ord(c) == 127 for c in spec.uri):  # noqa: PLR2004 - DEL
        _refuse("the source holds a space or a control character; write %20 for a space")
    scheme = scheme.lower()
    if scheme == "http" and spec.sha256 is None:
        _refuse("an http:// source needs source.sha256, or use https://")
    if scheme in {"http", "https"}:
        url = http_url(spec.uri)
        if _HUB_PAGE.match(url):
            _refuse("this is the hub's page about the file; write hf://OWNER/REPO/FILE")
        return HttpSource(url)
    parsers: dict[str, Callable[[str], Source]] = {
        "demo": _demo,
        "pvc": _claim,
        "hf": _hub,
        "s3": _s3,
        "oci": _oci,
    }
    if scheme not in parsers:
        _refuse(f"the scheme {scheme[:32]!r} is not supported; use hf, https, s3, oci, pvc or demo")
    return parsers[scheme](rest)


def http_url(url: str) -> str:
    """``url`` without fragment; raises FetchError when it is no plain http(s) URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise FetchError("DownloadFailed", f"not a URL: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        _refuse("not an http:// or https:// URL with a host")
    if parts.username is not None or parts.password is not None or "\\" in url:
        _refuse("credentials and backslashes in a URL are not supported")
    return urlunsplit(parts._replace(fragment=""))


def endpoint_url(url: str, field: str) -> str:
    """A base URL from the pool, without a slash at its end."""
    try:
        base = http_url(url)
    except FetchError as error:
        _refuse(f"{field}: {error}")
    if urlsplit(base).query:
        _refuse(f"{field}: a base URL has no query")
    return base.rstrip("/")


def shown(url: str) -> str:
    """``url`` as it may be logged: without its query, which can hold a secret."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="", fragment=""))


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what a secret may be sent to is exactly one of these."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port


def _demo(name: str) -> DemoSource:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
        _refuse(f"{name[:64]!r} is not the name of a demo model")
    return DemoSource(name)


def _claim(rest: str) -> ClaimSource:
    claim, _, path = rest.partition("/")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", claim):
        _refuse(f"{claim[:64]!r} is not the name of a claim")
    return ClaimSource(claim, _mounted_path(path, "pvc://CLAIM/PATH"))


def _mounted_path(path: str, form: str) -> str:
    path = unquote(path)
    if len(path.encode()) > MAX_PATH_BYTES:
        _refuse(f"the path is longer than {MAX_PATH_BYTES} bytes")
    if not _is_plain(path):
        _refuse(f"{form} needs a plain path: no '..', '.', empty piece or backslash")
    return path


def _hub(rest: str) -> HubSource:
    match = _HUB.fullmatch(rest)
    if match is None:
        _refuse(
            "write hf://OWNER/REPO/FILE, hf://OWNER/REPO:QUANT or hf://OWNER/REPO@REVISION/FILE"
        )
    file, revision = unquote(match["file"] or ""), unquote(match["revision"] or "main")
    if (file and not _is_plain(file)) or not _is_plain(revision):
        _refuse("the file and the revision of an hf:// source are plain paths: no '..' or '.'")
    if len(file.encode()) > MAX_PATH_BYTES:
        _refuse(f"the path in the repository is longer than {MAX_PATH_BYTES} bytes")
    return HubSource(match["repo"], revision, file, match["quant"] or "")


def _s3(rest: str) -> S3Source:
    bucket, _, key = rest.partition("/")
    key = unquote(key)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
        _refuse(f"{bucket[:64]!r} is not the name of a bucket")
    if len(key.encode()) > MAX_KEY_BYTES or not _is_plain(key):
        _refuse("s3://BUCKET/KEY needs a plain key: no '..', '.', empty piece or backslash")
    return S3Source(bucket, key)


def _oci(rest: str) -> OciSource | ImageSource:
    whole, hash_sign, path = rest.partition("#")
    match = _OCI.fullmatch(whole)
    if match is None or len(match["name"]) > _MAX_OCI_NAME:
        _refuse("write oci://REGISTRY/NAME:TAG or oci://REGISTRY/NAME@sha256:DIGEST")
    if hash_sign:
        return ImageSource(whole, _mounted_path(path, "oci://REGISTRY/NAME:TAG#PATH"))
    return OciSource(match["registry"], match["name"], match["digest"] or match["tag"] or "latest")


def _is_plain(path: str) -> bool:
    """Whether a path says the same to every server and stays below its root."""
    has_control = any(ord(c) < ord(" ") or ord(c) == 127 for c in path)  # noqa: PLR2004 - DEL
    is_text = "\\" not in path and "\ufffd" not in path and not has_control
    return is_text and all(piece not in {"", ".", ".."} for piece in path.split("/"))


def _refuse(why: str) -> NoReturn:
    raise FetchError("DownloadFailed", why)
