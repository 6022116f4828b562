"""The evaluators of GitOps tools: one Go program, built once for each content of its sources.

Owns: asking it, and the rules that examples/gitops ships. Does not own: building (``programs.py``)
or what is right (``test_health.py``).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from gitops.programs import evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

Manifest = dict[str, Any]

EXAMPLES = Path(__file__).parents[2] / "examples"
HEALTH_KEY = "resource.customizations.health."
EVALUATORS = ("kstatus", "flux", "argo")


class Verdict(NamedTuple):
    """What an evaluator says of an object."""

    word: str
    message: str


def judge(questions: Sequence[Manifest]) -> list[Verdict]:
    """Verdicts in the order of the questions; an evaluator's error fails."""
    done = subprocess.run(
        [evaluator()],
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        timeout=120,
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
