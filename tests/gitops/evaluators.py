"""The evaluators of GitOps tools: one Go program, built once for each content of its sources.

Owns: building it into the user's cache, asking it, and the rules that examples/gitops ships. Does not
own: what is right (``test_health.py``). ``python -m gitops.evaluators`` builds it and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from terrace.local.binaries import cache_folder
from terrace.local.build import find_go

if TYPE_CHECKING:
    from collections.abc import Sequence

Manifest = dict[str, Any]

MODULE = Path(__file__).parent / "evaluator"
EXAMPLES = Path(__file__).parents[2] / "examples"
HEALTH_KEY = "resource.customizations.health."
EVALUATORS = ("kstatus", "flux", "argo")
BUILD_S = 900.0


class Verdict(NamedTuple):
    """What an evaluator says of an object."""

    word: str
    message: str


def evaluator() -> Path:
    """The program; built where the cache has none of these sources."""
    folder = cache_folder().parents[1] / "gitops"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for file in sorted(path for path in MODULE.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    program = folder / f"evaluator-{digest.hexdigest()[:16]}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.access(program, os.X_OK):
            _build(program, find_go(cache_folder().parent, print))
    return program


def go_environment() -> dict[str, str]:
    """Ours, without what the user has set for Go."""
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def judge(questions: Sequence[Manifest]) -> list[Verdict]:
    """Verdicts in the order of the questions; an evaluator's error fails."""
    done = subprocess.run(
        [evaluator()],
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions), done.stderr
    wrong = [answer["error"] for answer in answers if answer.get("error")]
    assert not wrong, wrong
    return [Verdict(answer["verdict"], answer.get("message", "")) for answer in answers]


def question(evaluator_name: str, live: Manifest) -> Manifest:
    """About a live object, with the rules that we ship for its kind."""
    asked: Manifest = {"evaluator": evaluator_name, "object": live}
    if evaluator_name == "argo":
        asked["script"] = argo_scripts()[f"terrace.dev_{live['kind']}"]
    if evaluator_name == "flux":
        asked["checks"] = flux_checks()
    return asked


def argo_scripts() -> dict[str, str]:
    """GROUP_KIND -> Lua, as examples/gitops/argocd has it."""
    (config,) = documents(EXAMPLES / "gitops/argocd/argocd-cm.yaml")
    return {key.removeprefix(HEALTH_KEY): script for key, script in config["data"].items()}


def flux_checks() -> list[Manifest]:
    """The healthCheckExprs of examples/gitops/flux."""
    (checks,) = (
        each["spec"]["healthCheckExprs"]
        for each in documents(EXAMPLES / "gitops/flux/kustomizations.yaml")
        if "healthCheckExprs" in each["spec"]
    )
    return list(checks)


def documents(path: Path) -> list[Manifest]:
    """The documents of a YAML file that hold something."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def _build(program: Path, go: Path) -> None:
    partial = program.with_name(f".{program.name}.part")
    print("building the evaluators of GitOps tools from their Go modules", flush=True)
    try:
        done = subprocess.run(
            [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", partial, "."],
            cwd=MODULE,
            env=go_environment(),
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        partial.replace(program)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    print(evaluator())
