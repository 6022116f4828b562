"""What lies in the images, and what does not."""

from __future__ import annotations

import email.parser
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.images import Image

USER = 65532
LARGEST_MB = {"operator": 60, "gateway": 65, "runtime": 85}
"""Compressed. Measured 54, 59 and 82: more than a few MB on top is a mistake."""
PROGRAMS = {"usr/bin/python3", r"usr/bin/python3\.\d+", r"opt/terrace/bin/python[\d.]*"}
DOCS = Path(__file__).parents[2] / "docs/images.md"


def paths(image: Image, pattern: str) -> list[str]:
    return [path for path in image.entries if re.search(pattern, path)]


def distributions(image: Image) -> dict[str, str]:
    """Name -> version of all that is installed."""
    found = {}
    for path, text in image.texts.items():
        if path.endswith(".dist-info/METADATA"):
            about = email.parser.BytesParser().parsebytes(text, headersonly=True)
            found[normal(about["Name"])] = about["Version"]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_starts_its_program_as_a_user_without_rights(image: Image) -> None:
    settings = image.config["config"]
    module = {"operator": "terrace.controller", "gateway": "terrace.gateway"}
    program = module.get(image.name, "terrace_runtime")
    assert settings["Entrypoint"] == ["/opt/terrace/bin/python", "-m", program]
    assert settings["User"] == f"{USER}:{USER}"
    assert f":{USER}:{USER}:" in image.texts["etc/passwd"].decode()


def test_it_has_no_program_but_python(image: Image) -> None:
    folders = r"(^|/)s?bin/[^/]+$"
    programs = [path for path in paths(image, folders) if not image.entries[path].isdir()]
    strangers = [p for p in programs if not any(re.fullmatch(one, p) for one in PROGRAMS)]
    assert "usr/bin/python3" in programs
    assert strangers == []


def test_no_file_changes_who_runs_it(image: Image) -> None:
    special = [path for path, entry in image.files().items() if entry.mode & 0o6000]
    able = [p for p, e in image.entries.items() if any("capability" in k for k in e.pax_headers)]
    assert special == able == []


def test_its_user_can_write_nothing_but_temporary_folders(image: Image) -> None:
    writable = {
        path
        for path, entry in image.entries.items()
        if not entry.issym() and (entry.mode & 0o002 or (entry.uid, entry.gid) != (0, 0))
    }
    assert writable <= {"tmp", "var/tmp"}


def test_pip_compilers_headers_and_tests_stay_outside(image: Image) -> None:
    assert not {"pip", "setuptools", "wheel"} & set(distributions(image))
    assert paths(image, r"(^|/)(pip|setuptools|ensurepip)/|/python-wheels/|\.whl$") == []
    assert paths(image, r"\.(a|h|hpp|pyx|pxd|o)$") == []
    assert paths(image, r"(^|/)(tests?|idlelib|lib2to3)/[^/]*\.pyc?$") == []
    assert paths(image, r"^(usr/share/(man|info|locale)|var/(cache|log|lib/apt))/") == []


def test_the_list_of_parts_is_what_is_installed(image: Image) -> None:
    document = json.loads(image.texts["opt/terrace/sbom.cdx.json"])
    listed = {normal(part["name"]): part["version"] for part in document["components"]}
    assert listed == distributions(image)
    assert {"terrace", "pydantic"} <= set(listed)
    assert ("llama-cpp-python" in listed) == (image.name == "runtime")


def test_python_reads_compiled_code_without_asking_for_dates(image: Image) -> None:
    files = set(image.files())
    sources = [p for p in files if p.startswith("opt/terrace/lib") and p.endswith(".py")]
    uncompiled = [path for path in sources if not compiled(files, path)]
    assert len(sources) > 100
    assert uncompiled == []


def compiled(files: set[str], path: str) -> bool:
    folder, _, name = path.rpartition("/")
    version = "".join(map(str, sys.version_info[:2]))
    return f"{folder}/__pycache__/{name[:-3]}.cpython-{version}.pyc" in files


def test_it_is_small(image: Image) -> None:
    megabytes = sum(len(layer) for layer in image.layers) / 1e6
    assert megabytes <= LARGEST_MB[image.name]


def test_an_edit_of_ours_touches_the_last_layer_alone(images: dict[str, Image]) -> None:
    lowest = {image.layers[0] for image in images.values()}
    assert len(lowest) == 1, "all share one base"
    assert [len(image.layers) for image in images.values()] == [3, 3, 3]
    assert all(len(image.layers[2]) < 8_000_000 for image in images.values())


@pytest.mark.parametrize(("name", "bound"), LARGEST_MB.items())
def test_the_page_about_images_tells_the_bound(name: str, bound: int) -> None:
    row = next(r for r in DOCS.read_text().splitlines() if r.startswith(f"| `{name}` |"))
    assert f"| {bound} MB |" in row
