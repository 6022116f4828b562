"""What the README and the how-tos tell to type works: run here, or checked and the reason said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from support.doc_commands import Checker
from support.pages import ROOT, Command, page, pages
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.chain import Chain

RUN: Final = (
    "README.md",
    "docs/troubleshooting.md",
    "docs/runtime-config.md",
    "docs/gpu.md",
    "docs/npu.md",
    "docs/disk-spill.md",
    "docs/air-gapped.md",
    "docs/quickstart.md",
)
"""Pages whose commands are run, from top to bottom, each with the minimal example up."""
NOT_RUN: Final = {
    r"make demo": "tests/e2e does its steps; here they would start a cluster within a cluster",
    r"make test-all": "it is what runs this test",
    r"make images": "needs docker, podman or buildah; tests/images builds what it builds",
    r"make image-archives": "takes minutes; tests/images",
    r"docker push": "there is no registry",
    r"ls dist": "of images that are not made here",
    r"helm install": "the chart is installed by then; tests/chart and tests/cluster install it",
    r"helm uninstall": "other pages need it; tests/chart takes it away",
    r"kubectl port-forward": "the host node has none; the gateway's own address takes its place",
    r"kubectl cp": "the host node has no exec",
    r"kubectl delete pod loader": "its pod is of an image that is not here",
    r"kubectl wait .*im/on-nvidia": "there is no GPU; test_examples.py has a node with one",
    r"kubectl get im on-nvidia -o jsonpath": "as above",
    r".*hf://OWNER/REPO": "there is no internet; tests/unit/cli plans from a hub of its own",
    r"kubectl apply -f model.yaml": "the file is made by the command above",
}
"""Pattern of a command -> why it is not run; it is checked nevertheless."""
NOT_READY: Final = "terrace explain im/on-"
"""Ends with 1, for what it tells of is not Ready: these nodes have no devices."""
LIMIT_S = 330
REASONS: Final = "docs/troubleshooting.md"
SUBSTITUTES: Final = {
    "NAME": "demo",
    "NAMESPACE": "default",
    "POOL": "default",
    "URI": "demo://chat",
}


def not_run(command: Command) -> str | None:
    found = [why for pattern, why in NOT_RUN.items() if re.match(pattern, command.text)]
    return found[0] if found else None


@pytest.fixture(scope="session")
def programs() -> Mapping[str, Path]:
    return find_binaries(["helm", "kubectl"], None, print)


def typed(
    chain: Chain, programs: Mapping[str, Path], command: Command
) -> subprocess.CompletedProcess[str]:
    """The command as a reader types it; only the gateway's address is another."""
    address = chain.url.removesuffix("/v1")
    folders = [Path(sys.executable).parent, *(each.parent for each in programs.values())]
    environ = os.environ | {
        "KUBECONFIG": str(chain.cluster.kubeconfig),
        "OPENAI_BASE_URL": f"{address}/v1",
        "PATH": ":".join([*map(str, folders), os.environ["PATH"]]),
    }
    text = command.text.replace("http://localhost:8080", address)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip


def pattern_of(line: str) -> str:
    """A line that is shown, as a pattern: any number for a number, anything for ``...``."""
    kinds = re.split(r"(\.\.\.|\d+|\s+)", line.strip())
    forms = {"...": ".*"}
    return "".join(
        forms.get(each)
        or (r"\d+" if each.isdigit() else r"\s+" if each.isspace() else re.escape(each))
        for each in kinds
    )


def assert_shown(command: Command, output: str) -> None:
    """Every line below the command is in its output, in this order."""
    at = 0
    for line in command.shown:
        found = re.compile(pattern_of(line)).search(output, at)
        assert found, f"{command}\nshows {line!r}, which is not in its output:\n{output}"
        at = found.end()


def with_minimal_example(chain: Chain) -> None:
    chain.cluster.kubectl("apply", "-f", str(ROOT / "examples/01-minimal"))
    ready = ("wait", "--for=condition=Ready", "im/demo", "--timeout=180s")
    chain.cluster.kubectl(*ready, timeout_s=200)
    chain.ask({"model": "demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUN)
def test_commands_of_the_page_do_what_it_says(
    name: str, chain: Chain, programs: Mapping[str, Path]
) -> None:
    with_minimal_example(chain)
    ran = 0
    for command in page(name).commands:
        if not_run(command):
            continue
        done = typed(chain, programs, command)
        wanted = 1 if command.text.startswith(NOT_READY) else 0
        said = f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == wanted, said
        assert_shown(command, done.stdout + done.stderr)
        ran += 1
    assert ran


@pytest.mark.timeout(900)
def test_what_sections_of_reasons_say_to_look_at_is_there(
    chain: Chain, programs: Mapping[str, Path]
) -> None:
    with_minimal_example(chain)
    bullets = re.findall(r"^- \*\*See:\*\* (.+(?:\n  .+)*)", page(REASONS).text, re.MULTILINE)
    codes = {code for bullet in bullets for code in re.findall(r"`([^`]+)`", bullet)}
    looked = sorted(code for code in codes if re.match(r"(kubectl|terrace|python) ", code))
    assert len(looked) > 12
    for code in looked:
        if "--watch" in code or "--previous" in code:
            continue  # The first does not end, and nothing ended before for the second.
        text = code
        for word, meant in SUBSTITUTES.items():
            text = re.sub(rf"\b{word}\b(?!:)", meant, text)
        done = typed(chain, programs, Command(REASONS, 0, text))
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_programs_options_targets_and_files_of_every_command_exist(
    programs: Mapping[str, Path],
) -> None:
    checker = Checker(programs)
    commands = [command for each in pages() for command in each.commands]
    assert len(commands) > 50
    wrong = {str(command): checker.problems(command.text) for command in commands}
    assert not {where: what for where, what in wrong.items() if what}


def test_commands_in_the_text_exist_as_well(programs: Mapping[str, Path]) -> None:
    checker = Checker(programs)
    wrong = {
        f"{each.name}: {code}": checker.problems(code)
        for each in pages()
        for code in each.inline_code
        if re.match(r"(kubectl|helm|terrace|make|docker build|python -m) [a-z]", code)
    }
    assert len(wrong) > 30
    assert not {where: what for where, what in wrong.items() if what}


def test_no_reason_is_given_for_a_command_that_is_nowhere() -> None:
    commands = [command for name in RUN for command in page(name).commands]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command.text) for command in commands), pattern


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("make nothing", "make has no target nothing"),
        ("terrace plan x --nowhere 1", "terrace plan has no --nowhere"),
        ("terrace fly", "terrace has no command fly"),
        ("kubectl gat pods", "there is no kubectl gat"),
        ("kubectl get pods --sideways", "kubectl get has no --sideways"),
        ("helm install a b --upside-down", "helm install has no --upside-down"),
        ("kubectl apply -f examples/99-none/", "examples/99-none/ is not there"),
        ("docker build --target nobody .", "the Dockerfile has no stage nobody"),
        ("A=1 python -m terrace_runtime2 | cat", "there is no module terrace_runtime2"),
    ],
)
def test_a_wrong_command_is_found(text: str, problem: str, programs: Mapping[str, Path]) -> None:
    assert Checker(programs).problems(text) == [problem]
