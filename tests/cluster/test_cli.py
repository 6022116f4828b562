"""``terrace plan --cluster`` and ``terrace explain`` against a real API server and operator."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_kubelet import crashed
from support.controller_objects import fetched
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.cli.cluster import KubeReader
from terrace.cli.model_file import read_facts
from terrace.cli.target import cluster_target
from terrace.controller.parse import parse_spec
from terrace.planner.inputs import ModelInputs
from terrace.planner.placement import Placement, place
from terrace_runtime.contract import FetchOutcome

if TYPE_CHECKING:
    from cluster.controller_operator import Operator
    from cluster.controller_world import World

PROGRAM = Path(sys.executable).with_name("terrace")
DEMO = "demo://chat"
READABLE = [
    "inferencemodels",
    "inferencepools",
    "pods",
    "events",
    "jobs",
    "statefulsets",
    "services",
    "configmaps",
    "persistentvolumeclaims",
    "poddisruptionbudgets",
]


def terrace(kubeconfig: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments, "--kubeconfig", str(kubeconfig)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def explained(world: World, name: str = "demo") -> dict[str, Any]:
    answer = terrace(
        world.cluster.kubeconfig, "explain", f"im/{name}", "-n", world.namespace, "--json"
    )
    assert answer.stderr == ""
    story: dict[str, Any] = json.loads(answer.stdout)
    assert answer.returncode == (0 if story["ready"] else 1)
    return story


def step(story: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in story["steps"] if each["name"] == name)


def test_what_is_printed_is_taken_and_gets_the_same_plan(world: World, operator: Operator) -> None:
    facts = read_facts(DEMO)
    world.kubelet.outcome = lambda _model: FetchOutcome(path="/models/m.gguf", facts=facts)
    world.add_pool()
    where = ("--pool", f"{world.namespace}/default")
    wanted = (DEMO, *where, "--context", "1024", "--profile", "Balanced", "--kv-types", "q8_0")
    config = world.cluster.kubeconfig
    document = json.loads(terrace(config, "plan", *wanted, "--json").stdout)
    shown = next(each["plan"] for each in document["profiles"] if each["chosen"])
    printed = terrace(config, "plan", *wanted, "-o", "yaml", "--name", "demo")
    assert printed.returncode == 0, printed.stderr

    dry = ("apply", "-f", "-", "--dry-run=server", "-o", "json")
    taken = json.loads(world.cluster.kubectl(*dry, stdin=printed.stdout))
    target = cluster_target(KubeReader.connect(config, None), where[1], None)
    again = place(ModelInputs(facts, parse_spec(ModelSpec, taken)), target.pool, target.cluster)
    assert isinstance(again, Placement)
    assert again.plan.digest == shown["digest"]

    world.cluster.kubectl("apply", "-f", "-", stdin=printed.stdout)
    world.wait_ready()
    plan = world.model()["status"]["plan"]
    assert (plan["digest"], plan["context"]) == (shown["digest"], 1024)
    assert operator.process.poll() is None


def test_a_printed_pool_is_taken_as_well(world: World) -> None:
    node = ("--node", "cpu=32,memory=128Gi,gpu=nvidia:2xH100-80GB")
    answer = subprocess.run(
        [PROGRAM, "plan", DEMO, *node, "-o", "yaml", "--with-pool"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    pool, _ = yaml.safe_load_all(answer.stdout)
    dry = ("apply", "-f", "-", "--dry-run=server", "-o", "json")
    taken = json.loads(world.cluster.kubectl(*dry, stdin=answer.stdout))
    stored = next(each for each in taken["items"] if each["kind"] == "InferencePool")
    assert parse_spec(PoolSpec, stored) == parse_spec(PoolSpec, pool)


def test_explain_follows_a_model_from_nothing_to_ready(world: World, operator: Operator) -> None:
    world.add_model()
    world.wait("Placed", "False", "PoolNotFound")
    story = explained(world)
    assert step(story, "placement")["reason"] == "PoolNotFound"
    assert story["next"] == f"kubectl get ipool -n {world.namespace}"

    world.kubelet.serve = lambda pod: crashed(pod, 13, "llama.cpp: cannot load the model")
    world.add_pool()
    world.wait("Available", "False", "Crashing")
    story = explained(world)
    replicas = step(story, "replicas")
    assert (replicas["state"], replicas["reason"]) == ("stuck", "Crashing")
    assert "cannot load the model" in " ".join(replicas["details"])
    assert "demo-cpu-0 --previous" in story["next"]

    world.kubelet.serve = lambda _pod: None
    world.wait_ready()
    story = explained(world)
    states = {each["name"]: each["state"] for each in story["steps"]}
    assert states["replicas"] == states["names"] == states["plan"] == "done"
    assert story["plan"]["reasons"]
    assert operator.process.poll() is None


def test_explain_judges_every_flavor_on_the_live_nodes(world: World, operator: Operator) -> None:
    world.kubelet.outcome = lambda _model: fetched(weights=4 * 10**12)
    flavors = [{"name": "cpu"}, {"name": "far", "nodeSelector": {"zone": "nowhere"}}]
    world.add_pool(flavors=flavors)
    world.add_model()
    world.wait("Placed", "False", "NoNodeFits")
    details = " ".join(step(explained(world), "placement")["details"])
    assert "TiB" in details
    assert "nearest to flavor far: node-a" in details
    assert "without label zone=nowhere" in details
    pool = terrace(world.cluster.kubeconfig, "explain", "ipool/default", "-n", world.namespace)
    assert "flavor far  NoNodeFits" in pool.stdout
    assert operator.process.poll() is None


def test_a_reader_of_one_namespace_is_told_what_it_may_not_read(
    world: World, operator: Operator, tmp_path: Path
) -> None:
    world.add_pool()
    world.add_model()
    world.wait_ready()
    config = reader_of_one_namespace(world, tmp_path)
    answer = terrace(config, "explain", "im/demo", "-n", world.namespace)
    assert answer.stderr == ""
    assert answer.returncode == 0
    assert "demo-cpu-0 on node-a: ready" in answer.stdout
    assert "You may not read" in answer.stdout
    assert "nodes of the cluster" in answer.stdout
    planned = terrace(config, "plan", DEMO, "--pool", f"{world.namespace}/default")
    assert planned.returncode == 2
    assert "no node of" in planned.stderr
    assert operator.process.poll() is None


def reader_of_one_namespace(world: World, folder: Path) -> Path:
    """A kubeconfig of somebody who may read everything but Secrets, in that namespace alone."""
    namespace = world.namespace
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount"},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "reader",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "rules": [{"apiGroups": ["*"], "resources": READABLE, "verbs": ["get", "list"]}],
        },
    ]
    for each in objects:
        each["metadata"] = {"name": "reader", "namespace": namespace}
    world.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    token = world.cluster.kubectl("create", "token", "reader", "-n", namespace).strip()
    authority = (world.cluster.folder.pki / "ca.crt").read_bytes()
    server = {
        "server": world.cluster.server,
        "certificate-authority-data": base64.b64encode(authority).decode(),
    }
    context = {"cluster": "c", "user": "reader", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "reader", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": context}],
        "current-context": "c",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path
