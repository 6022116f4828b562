"""The end: what helm uninstall leaves, and that nothing of it works on. Runs last."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from e2e.test_failures import ask
from support.chain import ROOT
from support.waiting import wait_for
from terrace.cli.demo import NAMESPACE

if TYPE_CHECKING:
    from support.real_chain import RealChain

pytestmark = pytest.mark.timeout(600)
OURS = "pods,statefulsets,deployments,replicasets,jobs,services,configmaps,secrets,serviceaccounts,\
roles,rolebindings,poddisruptionbudgets,persistentvolumeclaims,leases"
CLUSTER = "clusterroles,clusterrolebindings,priorityclasses"

EVERYWHERE = {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default", "Service/kubernetes"}


def names(chain: RealChain, kinds: str, *where: str) -> set[str]:
    """What there is of these kinds, without what every namespace has."""
    items = json.loads(chain.cluster.kubectl("get", kinds, *where, "-o", "json"))["items"]
    found = {f"{item['kind']}/{item['metadata']['name']}" for item in items}
    return {each for each in found if each not in EVERYWHERE}


def test_models_go_on_without_the_release_until_they_are_deleted(chain: RealChain) -> None:
    uids = chain.uids("demo")
    assert wait_for("an answer", lambda: ask(chain))
    chain.cluster.tools.helm("uninstall", "terrace", "-n", NAMESPACE, "--wait", timeout_s=300)
    wait_for(
        "operator and gateway to go",
        lambda: not any(n.startswith("Pod/") for n in names(chain, "pods", "-n", NAMESPACE)),
        timeout=180,
    )
    # The chart keeps the kinds, so the user's models and their replicas stay.
    assert chain.uids("demo") == uids
    assert names(chain, OURS, "-n", NAMESPACE) <= {"Secret/terrace-trust", "Lease/terrace-operator"}
    assert not names(chain, CLUSTER, "-l", "app.kubernetes.io/instance=terrace")
    # Before their kinds: the garbage collector needs those to find what belonged to them.
    remove = ("delete", "im,ipool", "-A", "--all", "--cascade=foreground")
    chain.cluster.kubectl(*remove, timeout_s=180)
    wait_for("nothing of ours", lambda: not ours_left(chain), timeout=120, every=0.3)
    chain.cluster.kubectl("delete", "-f", str(ROOT / "crds"), "--wait", timeout_s=120)


def ours_left(chain: RealChain) -> set[str]:
    return names(chain, OURS, "-n", "default") | {
        n for n in names(chain, "persistentvolumes") if "pvc-" in n
    }
