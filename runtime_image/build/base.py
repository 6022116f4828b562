"""The base of images built without a registry: Debian's Python and what it needs, nothing else.

Owns: debootstrap once per release, which of its packages and files an image keeps. Does not own:
what lies in /opt/terrace (the Dockerfile), images (``archives.py``). Two archives come of one
bootstrap: ``full.tar`` has a shell and installs wheels, ``slim.tar`` has neither shell nor package
manager and is what images run on. Everything has one date, so that pyc files are checked by nobody
and equal packages give equal bytes.
"""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from build.digests import digest_of, digest_of_file
from build.workshop import BuildError, Workshop, cache_root, cached

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Suite(NamedTuple):
    """A release of Debian by what wheels for it must fit."""

    name: str
    glibc: tuple[int, int]


SUITES = {(3, 11): Suite("bookworm", (2, 36)), (3, 13): Suite("trixie", (2, 41))}
ROOTS = ("base-files", "ca-certificates", "libstdc++6", "netbase", "python3")
LEFT_OUT = frozenset({"debconf", "dpkg", "gcc-12-base", "gcc-14-base", "openssl", "tzdata"})
"""Dependencies that only installing needs, or a locked wheel brings."""
_UNUSED = re.compile(
    r"usr/share/(doc/.*/(?!copyright$)[^/]*|man|info|locale|lintian|bug|menu|ca-certificates|python3|"
    r"applications|pixmaps|binfmts|readline|base-files)(/|$)"
    r"|usr/share/doc/[^/]+/(?!copyright$)"
    r"|usr/lib/[^/]+/gconv/|usr/lib/python3(\.\d+)?/(pydoc_data|test|lib2to3|dist-packages)(/|$)"
    r"|usr/lib/python3\.\d+/(idlelib|tkinter|turtledemo|ensurepip)(/|$)"
    r"|(usr/)?s?bin/(?!python3(\.\d+)?$)|etc/(cron|init|logrotate|update-motd|skel|ca-cert)"
)
_EXTRA = ("etc/ssl/certs/ca-certificates.crt", "etc/nsswitch.conf")
"""Files that packages make when they are set up, so that no list names them."""
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}
_USERS = {
    "etc/passwd": "root:x:0:0::/root:/sbin/nologin\nterrace:x:65532:65532::/tmp:/sbin/nologin\n",
    "etc/group": "root:x:0:\nterrace:x:65532:\n",
}
_NEEDED_BYTES = 1024**3


class Base(NamedTuple):
    """The two archives, and what stands for both in a key."""

    full: Path
    slim: Path
    key: str


def find_base() -> Base:
    """The base for wheels of this Python and machine, made unless it is cached; needs root.

    Raises BuildError.
    """
    suite = choose_suite(sys.version_info[:2], platform.libc_ver()[1])
    key = digest_of(suite.name, platform.machine(), digest_of_file(Path(__file__)))[:16]
    folder = cached(cache_root() / "base" / key, partial(_bootstrap, suite), _NEEDED_BYTES)
    return Base(folder / "full.tar", folder / "slim.tar", key)


def choose_suite(python: tuple[int, int], libc: str) -> Suite:
    """Debian's release whose python3 is ``python``. Raises BuildError with the way out."""
    advice = (
        "make the environment anew with one of them (rm -rf .venv; make init PYTHON=python3.11), "
        "or build with docker or podman on an image that has this Python: make images BASE=IMAGE"
    )
    has = ", ".join(f"{suite.name} {a}.{b}" for (a, b), suite in SUITES.items())
    if python not in SUITES:
        raise BuildError(
            f"the wheels are for Python {python[0]}.{python[1]}, and no release of Debian that we "
            f"bootstrap has it ({has}): {advice}"
        )
    suite = SUITES[python]
    if libc and tuple(int(part) for part in libc.split(".")[:2]) > suite.glibc:
        raise BuildError(
            f"llama.cpp was built against glibc {libc}, and Debian {suite.name} has "
            f"{suite.glibc[0]}.{suite.glibc[1]}: {advice}"
        )
    return suite


def _bootstrap(suite: Suite, workshop: Workshop, folder: Path) -> None:
    program = shutil.which("debootstrap") or shutil.which("debootstrap", path="/usr/sbin:/sbin")
    if not program:
        raise BuildError("there is no debootstrap. Debian, Ubuntu: apt-get install debootstrap")
    root = workshop.staging / "root"
    # In a mount namespace of its own, so that what it mounts ends with it.
    argv = ["unshare", "--mount", program, "--variant=minbase"]
    argv += [f"--include={','.join(ROOTS)}", suite.name, str(root), *_mirror(suite)]
    clean = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    clean |= {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
    workshop.run(argv, f"a base of Debian {suite.name}", clean)
    library = f"/usr/lib/python3.{sys.version_info.minor}"
    compile_all = ["python3", "-m", "compileall", "-q", "-f", "-x", "/lib2to3/tests/"]
    argv = ["chroot", str(root), *compile_all, "--invalidation-mode", "unchecked-hash", library]
    workshop.run(argv, "its standard library")
    for name in ("var/cache", "var/log", "var/lib/apt/lists"):
        shutil.rmtree(root / name, ignore_errors=True)
    write_tar(folder / "full.tar", root, _everything(root), {})
    write_tar(folder / "slim.tar", root, slim_files(root), {**_USERS, **_status(root)})


def _mirror(suite: Suite) -> list[str]:
    """Where this machine's apt gets the suite; debootstrap's own default elsewhere."""
    if not shutil.which("apt-get"):
        return []
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - our own arguments
    lines = (line.split() for line in done.stdout.splitlines())
    return next(([uri] for uri, *rest in lines if rest == [suite.name, "main"]), [])


def _everything(root: Path) -> list[str]:
    return [
        name
        for path in sorted(root.rglob("*"))
        if not (name := str(path.relative_to(root))).startswith(("dev/", "proc/", "sys/"))
    ]


def slim_files(root: Path) -> list[str]:
    """Paths that images keep of the tree ``root``, sorted, folders before what lies in them."""
    names = set(_EXTRA) | set(_LINKS)
    for package in closure(_packages(root)):
        names |= {n for n in _files_of(root, package) if not _UNUSED.search(n)}
    for name in list(names):
        path = PurePosixPath(name)
        if path.suffix == ".py":
            caches = (root / path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")
            names |= {str(cache.relative_to(root)) for cache in caches}
        if path.name.startswith(("lib", "ld-")) and (root / path).is_symlink():
            target = (root / path).parent / (root / path).readlink().name
            names |= {str(target.relative_to(root))} if target.is_file() else set()
    names |= {str(p) for name in list(names) for p in PurePosixPath(name).parents} - {"."}
    names |= {"proc", "sys", "dev", "run", "tmp", "var/tmp"}
    return sorted(name for name in names if os.path.lexists(root / name))


def closure(packages: Mapping[str, Iterable[str]], roots: Iterable[str] = ROOTS) -> list[str]:
    """``roots`` and all they depend on but LEFT_OUT, sorted; first alternatives only."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in LEFT_OUT and name in packages:
            found.add(name)
            waiting.extend(packages[name])
    return sorted(found)


def _packages(root: Path) -> dict[str, list[str]]:
    """Each installed package and what it depends on, first alternatives only."""
    found = {}
    for text in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.MULTILINE))
        wanted = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"
        if "Package" in fields:
            found[fields["Package"]] = re.findall(r"(?:^|,)\s*([a-z0-9.+-]+)", wanted)
    return found


def _files_of(root: Path, package: str) -> list[str]:
    for path in sorted((root / "var/lib/dpkg/info").glob(f"{package}*.list")):
        if path.stem.partition(":")[0] == package:
            lines = (line.lstrip("/") for line in path.read_text().splitlines())
            # With merged /usr both names are one file; it is kept under the real one.
            real = (re.sub(r"^(bin|sbin|lib|lib64)/", r"usr/\1/", line) for line in lines)
            return [name for name in real if name not in {"", "."}]
    return []


def _status(root: Path) -> dict[str, str]:
    """What dpkg lists of the packages that are kept, for scanners of images."""
    kept = set(closure(_packages(root)))
    texts = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    mine = [t for t in texts if (m := re.match(r"Package: (.*)", t)) and m[1] in kept]
    return {"var/lib/dpkg/status": "\n\n".join(mine) + "\n"}


def write_tar(target: Path, root: Path, names: Iterable[str], texts: Mapping[str, str]) -> None:
    """Write the files ``names`` of ``root``, and ``texts`` by path, all with the date 0."""
    links = {"usr/lib/ssl/certs": "/etc/ssl/certs"} if texts else {}
    links |= {"usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt"} if texts else {}
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted({*names} - {*texts} - {*links}):
            entry = archive.gettarinfo(str(root / name), arcname=name)
            entry.mtime = 0
            if texts:
                entry.mode &= 0o1777  # no file that changes who runs it, and all are root's
                entry.uid = entry.gid = 0
            if entry.isreg():
                with (root / name).open("rb") as file:
                    archive.addfile(entry, file)
            elif not entry.ischr() and not entry.isblk():
                archive.addfile(entry)
        for name, text in sorted(texts.items()):
            _add_text(archive, name, text)
        for name, link in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
