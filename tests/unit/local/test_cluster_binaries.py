"""Where programs come from: the order of the sources, downloads and builds that leave no rest."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import re
import signal
import stat
import subprocess
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.waiting import wait_for
from terrace.local import versions
from terrace.local.binaries import cache_folder, find_binaries
from terrace.local.build import build, find_go, go_version, patiently
from terrace.local.errors import LocalClusterError
from terrace.local.releases import Release, ReleaseError, UnreachableError, fetch, release_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE_GO = """#!/bin/sh
echo "$@" >> "{calls}"
if [ "$1" = env ]; then echo go{version}; exit 0; fi
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
echo half > "$out"
{then}
printf '#!/bin/sh\\n' > "$out"; chmod +x "$out"
"""


FAKE_UV = """#!/bin/sh
echo uv >> "{calls}"
while [ $# -gt 0 ]; do [ "$1" = --target ] && out=$2; shift; done
mkdir -p "$out/go/bin"
{held}
printf '#!/bin/sh\\n' > "$out/go/bin/go"; chmod +x "$out/go/bin/go"
"""


class Machine:
    """A machine of our own making: empty cache, no network, and a Go that only pretends."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.lines: list[str] = []
        self.calls = root / "calls"
        self.go = root / "path" / "go"
        self.go.parent.mkdir()
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setenv("PATH", f"{self.go.parent}:/usr/bin:/bin")
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        patch.setenv("no_proxy", "")
        patch.delenv("TERRACE_K8S_BIN", raising=False)

    def install_go(self, then: str = "", version: str = "1.26.8") -> None:
        script = FAKE_GO.format(calls=self.calls, then=then, version=version)
        self.go.write_text(script)
        self.go.chmod(0o755)

    def find(self, *names: str, bin_dir: Path | None = None) -> dict[str, Path]:
        return dict(find_binaries(names, bin_dir, self.lines.append))

    @property
    def held(self) -> str:
        """A line of shell that waits until another process waits for us."""
        return f"while [ ! -e {self.root}/go-on ]; do sleep 0.01; done"

    def at_once(self, call: Callable[[], object]) -> None:
        """Two calls, of which one has to wait for the other."""
        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        waiting = "waiting for another process"
        try:
            wait_for("one of them waits", lambda: any(waiting in line for line in self.lines))
        finally:
            (self.root / "go-on").touch()
            for thread in threads:
                thread.join()

    @property
    def builds(self) -> int:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return sum(line.startswith("build") for line in calls)

    @property
    def cached(self) -> set[str]:
        return {path.name for path in cache_folder().iterdir()} - {"lock"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@contextmanager
def serving(body: bytes, length: int | None = None, status: int = 200) -> Iterator[str]:
    """A server that sends ``body`` and claims ``length`` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/file"
        finally:
            server.shutdown()
            thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def archive(member: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_the_given_folder_comes_before_the_cache(machine: Machine) -> None:
    program(cache_folder(), "etcd")
    given = program(machine.root / "given", "etcd")
    assert machine.find("etcd", bin_dir=given.parent) == {"etcd": given}


def test_the_environment_names_a_folder(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given = program(machine.root / "given", "etcd")
    monkeypatch.setenv("TERRACE_K8S_BIN", str(given.parent))
    assert machine.find("etcd") == {"etcd": given}


def test_what_the_given_folder_lacks_comes_from_the_cache(machine: Machine) -> None:
    given = program(machine.root / "given", "etcd")
    cached = program(cache_folder(), "helm")
    found = machine.find("etcd", "helm", bin_dir=given.parent)
    assert found == {"etcd": given, "helm": cached}


def test_a_given_folder_that_is_none_is_an_error(machine: Machine) -> None:
    with pytest.raises(LocalClusterError, match=r"--bin names .*, which is no folder"):
        machine.find("etcd", bin_dir=machine.root / "nowhere")


def test_without_network_programs_are_built_once_and_one_line_says_why(machine: Machine) -> None:
    machine.install_go()
    names = ("kube-apiserver", "kube-scheduler")
    found = machine.find(*names)
    assert all(os.access(found[name], os.X_OK) for name in names)
    assert machine.find(*names) == found
    assert machine.builds == 2
    assert len([line for line in machine.lines if "dl.k8s.io is not reachable" in line]) == 1
    assert [line for line in machine.lines if "kube-scheduler (2 of 2): built in" in line]


def test_what_has_no_checksum_is_built_without_asking_any_host(machine: Machine) -> None:
    machine.install_go()
    machine.find("kwok")
    assert not [line for line in machine.lines if "release" in line]


def test_two_at_once_build_once(machine: Machine) -> None:
    machine.install_go(then=machine.held)
    machine.at_once(lambda: machine.find("etcd"))
    assert machine.builds == 1


def test_two_at_once_bring_one_go(machine: Machine) -> None:
    machine.install_go(version="1.20.0")
    uv = program(machine.go.parent, "uv")
    uv.write_text(FAKE_UV.format(calls=machine.calls, held=machine.held))
    found: list[Path] = []
    machine.at_once(lambda: found.append(find_go(cache_folder().parent, machine.lines.append)))
    assert found[0] == found[1]
    assert os.access(found[0], os.X_OK)
    assert machine.calls.read_text().splitlines().count("uv") == 1
    assert [path.name for path in cache_folder().parent.glob(".*")] == []


def test_each_build_writes_where_no_other_does(machine: Machine, tmp_path: Path) -> None:
    """A killed one leaves its compiler behind, which writes on while the next one builds."""
    machine.install_go()
    for _ in range(2):
        build("etcd", tmp_path / "etcd", machine.go, machine.lines.append)
    outputs = re.findall(r" -o (\S+)", machine.calls.read_text())
    assert len(set(outputs)) == 2
    assert {Path(output).parent for output in outputs} == {tmp_path}
    assert [path.name for path in tmp_path.glob("*etcd*")] == ["etcd"]


@pytest.mark.parametrize(
    ("said", "tries"),
    [
        ("reading go.mod: 502 Bad Gateway", 3),
        ("dial tcp 127.0.0.1:9: connect: connection refused", 3),
        ("main.go:5: undefined: foo", 1),
    ],
)
def test_only_a_passing_fault_of_the_network_is_tried_again(
    machine: Machine, said: str, tries: int
) -> None:
    def attempt() -> None:
        nonlocal tries
        tries -= 1
        raise LocalClusterError(f"building etcd failed:\n{said}")

    with pytest.raises(LocalClusterError, match="building etcd failed"):
        patiently(attempt, machine.lines.append, pauses_s=(0, 0))
    assert tries == 0
    assert all(said in line for line in machine.lines)


def test_a_failed_build_leaves_nothing_and_says_what_the_compiler_said(machine: Machine) -> None:
    machine.install_go(then="echo 'undefined: foo' >&2; exit 1")
    with pytest.raises(LocalClusterError, match=r"building etcd failed .*\nundefined: foo"):
        machine.find("etcd")
    assert machine.cached == set()


def test_the_rest_of_a_killed_build_is_swept_by_the_next(machine: Machine) -> None:
    machine.install_go()
    program(cache_folder(), ".etcd.part")
    machine.find("etcd")
    assert machine.cached == {"etcd"}


def test_an_interrupted_build_leaves_nothing_and_no_compiler(
    machine: Machine, tmp_path: Path
) -> None:
    machine.install_go(then=f"echo $$ > {tmp_path}/pid; kill -INT $PPID; exec sleep 60")
    # A shell starts what it puts into the background, such as a CI run, with interrupts ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build("etcd", tmp_path / "etcd", machine.go, machine.lines.append)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert not list(tmp_path.glob("*etcd*"))
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_interruption_before_popen_returns_leaves_no_compiler(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install_go(then=f"echo $$ > {tmp_path}/pid; kill -INT $PPID; exec sleep 60")

    class SlowToReturn(subprocess.Popen[bytes]):
        """As on a busy machine: the child is far before we know its number."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            deadline = time.monotonic() + 60
            while Path(f"/proc/{self.pid}/comm").read_text() != "sleep\n":
                assert time.monotonic() < deadline

    monkeypatch.setattr(subprocess, "Popen", SlowToReturn)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build("etcd", tmp_path / "etcd", machine.go, machine.lines.append)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_go_is_asked_for_its_version(machine: Machine) -> None:
    machine.install_go(version="1.27rc1")
    assert go_version(machine.go) == (1, 27)
    machine.install_go(version="1.24.2")
    assert go_version(machine.go) == (1, 24, 2)
    assert go_version(machine.root / "none") == (0,)


def test_a_download_that_fits_its_checksum_becomes_a_program(tmp_path: Path) -> None:
    with serving(b"program") as url:
        fetch(Release(url, sha256(b"program")), tmp_path / "kubectl", print)
    assert (tmp_path / "kubectl").read_bytes() == b"program"
    assert stat.S_IMODE((tmp_path / "kubectl").stat().st_mode) == 0o755
    assert list(tmp_path.iterdir()) == [tmp_path / "kubectl"]


def test_a_program_is_taken_out_of_its_archive(tmp_path: Path) -> None:
    data = archive("etcd-v3/etcd", b"program")
    with serving(data) as url:
        fetch(Release(url, sha256(data), "etcd-v3/etcd"), tmp_path / "etcd", print)
    assert (tmp_path / "etcd").read_bytes() == b"program"
    assert list(tmp_path.iterdir()) == [tmp_path / "etcd"]


def test_an_archive_without_the_program_is_refused(tmp_path: Path) -> None:
    data = archive("README", b"hello")
    with serving(data) as url, pytest.raises(ReleaseError, match="holds no file etcd-v3/etcd"):
        fetch(Release(url, sha256(data), "etcd-v3/etcd"), tmp_path / "etcd", print)
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_another_checksum_is_refused_and_removed(tmp_path: Path) -> None:
    with serving(b"changed") as url, pytest.raises(ReleaseError, match=r"has SHA-256 .* not used"):
        fetch(Release(url, sha256(b"program")), tmp_path / "kubectl", print)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with serving(b"prog", length=1000) as url, pytest.raises(ReleaseError):
        fetch(Release(url, sha256(b"program")), tmp_path / "kubectl", print)
    assert list(tmp_path.iterdir()) == []


def test_a_release_that_is_not_there_does_not_make_its_host_unreachable(tmp_path: Path) -> None:
    with serving(b"", status=404) as url, pytest.raises(ReleaseError, match="answered 404") as seen:
        fetch(Release(url, sha256(b"")), tmp_path / "kubectl", print)
    assert not isinstance(seen.value, UnreachableError)


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9 is not reachable"):
        fetch(Release("http://127.0.0.1:9/x", sha256(b"")), tmp_path / "kubectl", print)


def test_every_pinned_release_is_https_with_a_whole_checksum_and_a_version() -> None:
    pinned = [
        release_of(name, arch) for name in versions.GO_PACKAGES for arch in ("amd64", "arm64")
    ]
    releases = [release for release in pinned if release]
    assert len(releases) == 16
    assert len({release.sha256 for release in releases}) == 16
    for release in releases:
        assert release.url.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{64}", release.sha256)


def test_nothing_is_guessed_for_another_processor() -> None:
    assert release_of("etcd", "riscv64") is None
    assert release_of("kwok", "amd64") is None


def test_the_go_module_pins_the_same_versions() -> None:
    module = (versions.MODULE_DIR / "go.mod").read_text()
    for path, version in (
        ("k8s.io/kubernetes", versions.KUBERNETES_VERSION),
        ("go.etcd.io/etcd/server/v3", versions.ETCD_VERSION),
        ("helm.sh/helm/v4", versions.HELM_VERSION),
        ("sigs.k8s.io/kwok", versions.KWOK_VERSION),
    ):
        assert f"\t{path} {version}\n" in module
    dns = (versions.DNS_MODULE_DIR / "go.mod").read_text()
    assert f"github.com/coredns/coredns {versions.COREDNS_VERSION}\n" in dns


def test_the_tools_file_keeps_every_program_in_the_module_graph() -> None:
    tools = (versions.MODULE_DIR / "tools.go").read_text()
    for package in versions.GO_PACKAGES.values():
        if not package.startswith("terrace.dev/"):  # those lie beside it
            assert f'_ "{package}"' in tools


def test_the_cache_key_names_the_version_and_is_stable() -> None:
    assert versions.cache_key() == versions.cache_key()
    assert re.fullmatch(r"v1\.36\.3-[0-9a-f]{12}", versions.cache_key())
