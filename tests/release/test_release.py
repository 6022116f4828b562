"""What `make release` makes: the same bytes for one commit, and all of it usable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from typing import TYPE_CHECKING

import pytest
import yaml

from support.releases import uv
from terrace import __version__
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from pathlib import Path

    from support.releases import Releases, Repository

WHEEL = f"terrace-{__version__}-py3-none-any.whl"
SDIST = f"terrace-{__version__}.tar.gz"
CHART = f"terrace-{__version__}.tgz"
CRDS = f"terrace-crds-{__version__}.yaml"
SBOM = f"terrace-{__version__}.cdx.json"
SUMS = "SHA256SUMS"
ALL = {WHEEL, SDIST, CHART, CRDS, SBOM, SUMS, "LICENSE"}


def run(*argv: object, **environment: str) -> str:
    done = subprocess.run(
        [str(each) for each in argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def test_a_release_holds_what_the_page_promises(releases: Releases, repository: Repository) -> None:
    assert {path.name for path in releases.first.iterdir()} == ALL
    page = (repository.folder / "docs/releasing.md").read_text()
    for name in ALL:
        assert name.replace(__version__, "VERSION") in page


@pytest.mark.parametrize("name", sorted(ALL))
def test_another_folder_user_umask_and_time_give_the_same_bytes(
    releases: Releases, name: str
) -> None:
    assert (releases.first / name).read_bytes() == (releases.second / name).read_bytes()


def test_files_can_be_read_by_all_whatever_the_umask(releases: Releases) -> None:
    assert {path.stat().st_mode & 0o777 for path in releases.second.iterdir()} == {0o644}


def test_the_checksums_are_those_of_all_other_files(releases: Releases) -> None:
    lines = (releases.first / SUMS).read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == ALL - {SUMS}
    run("sh", "-c", f"cd '{releases.first}' && sha256sum --check --strict {SUMS}")


def test_what_is_left_out_is_said(releases: Releases) -> None:
    assert "left out: the images and their lists of parts: IMAGES=no\n" in releases.said


def test_the_source_distribution_holds_what_git_holds(
    releases: Releases, repository: Repository
) -> None:
    with tarfile.open(releases.first / SDIST) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert names - {"PKG-INFO"} == set(repository.git("ls-files").splitlines())
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}


def test_the_source_distribution_builds_the_same_wheel_and_passes_its_tests(
    releases: Releases, repository: Repository, tmp_path: Path
) -> None:
    root = unpacked(releases.first / SDIST, tmp_path / "source")
    epoch = repository.git("log", "-1", "--format=%ct").strip()
    pins = root / "runtime_image/build/release/tools.txt"
    build = [uv(), "build", "--wheel", "--build-constraints", pins, "--require-hashes"]
    build += ["--offline", "--python", sys.executable, "--out-dir", tmp_path, root]
    run(*build, SOURCE_DATE_EPOCH=epoch)
    assert (tmp_path / WHEEL).read_bytes() == (releases.first / WHEEL).read_bytes()

    path = f"{root}/operator:{root}/runtime_image"
    tests = [root / "tests/unit/api", root / "tests/unit/build/test_toolchain.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", root]
    said = run(*command, "-c", root / "pyproject.toml", *tests, PYTHONPATH=path)
    assert " passed" in said
    code = "import terrace, terrace_runtime as r; print(terrace.__file__, r.__path__[0])"
    assert run(sys.executable, "-c", code, PYTHONPATH=path).count(str(root)) == 2


def test_the_wheel_runs_in_an_environment_of_its_own(releases: Releases, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin/python"
    run(uv(), "venv", "--quiet", "--offline", "--python", sys.executable, environment)
    install = [uv(), "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    run(*install, releases.first / WHEEL)
    # Dependencies come from the environment of the tests; its link to this tree is not followed.
    site = environment / f"lib/python{sysconfig.get_python_version()}/site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import terrace, terrace_runtime as r; print(terrace.__file__, r.__path__[0])"
    assert run(python, "-c", where).count(str(site)) == 2
    assert run(environment / "bin/terrace", "--version").strip() == f"terrace {__version__}"
    for program in (
        [environment / "bin/terrace"],
        [python, "-m", "terrace_runtime"],
        [python, "-m", "terrace.controller"],
        [python, "-m", "terrace.gateway"],
    ):
        assert "usage: " in run(*program, "--help").lower()


def test_the_chart_package_renders_as_the_chart_does(
    releases: Releases, repository: Repository
) -> None:
    helm = find_binaries(["helm"], None, print)["helm"]
    template = [helm, "template", "terrace", "--namespace", "terrace-system"]
    packaged = run(*template, releases.first / CHART)
    assert packaged == run(*template, repository.folder / "charts/terrace")
    assert f":{__version__}" in packaged


def test_the_crd_bundle_holds_both_kinds_as_they_are_in_the_repository(
    releases: Releases, repository: Repository
) -> None:
    bundled = list(yaml.safe_load_all((releases.first / CRDS).read_text()))
    files = sorted((repository.folder / "crds").glob("*.yaml"))
    assert bundled == [yaml.safe_load(file.read_text()) for file in files]
    assert len(bundled) == 2


def test_the_list_of_parts_has_every_dependency_and_no_tool_of_ours(releases: Releases) -> None:
    document = json.loads((releases.first / SBOM).read_text())
    scopes = {part["name"]: part["scope"] for part in document["components"]}
    assert scopes["pydantic-core"] == "required"
    assert scopes["kopf"] == scopes["llama-cpp-python"] == "optional"
    assert not scopes.keys() & {"pytest", "mypy", "terrace", "matplotlib"}
    root = document["metadata"]["component"]
    known = {part["bom-ref"] for part in [root, *document["components"]]}
    assert known == {each["ref"] for each in document["dependencies"]}
    assert known >= {ref for each in document["dependencies"] for ref in each["dependsOn"]}
    sums = (releases.first / SUMS).read_text()
    for each in root["externalReferences"]:
        assert f"{each['hashes'][0]['content']}  {each['url']}\n" in sums
