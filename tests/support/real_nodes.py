"""Words of the tests with real nodes: manifests of the tiny image, looking and asking."""

from __future__ import annotations

import http.client
import json
import urllib.request
from typing import TYPE_CHECKING, Any

from support.tiny_image import IMAGE

if TYPE_CHECKING:
    from terrace.local.cluster import LocalCluster

Json = dict[str, Any]
HARDENED = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def objects(cluster: LocalCluster, *words: str) -> Any:
    """What ``kubectl get`` finds."""
    return json.loads(cluster.kubectl("get", *words, "-o", "json"))


def apply(cluster: LocalCluster, *manifests: Json) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(items))


def conditions(thing: Json) -> dict[str, str]:
    return {item["type"]: item["status"] for item in thing["status"].get("conditions", [])}


def answer(url: str) -> str:
    """What this machine is told at a URL; nothing when it cannot be reached."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as response:
            text: str = response.read().decode()
            return text
    except (OSError, http.client.HTTPException):
        return ""


def container(*args: str, **more: Any) -> Json:
    """The one container of a pod."""
    return {"name": "main", "image": IMAGE, "args": list(args), "securityContext": HARDENED, **more}


def pod(name: str, *args: str, **more: Any) -> Json:
    spec = {"restartPolicy": "Never", "containers": [container(*args, **more)]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def service(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def server_template(name: str) -> Json:
    """Pods that answer on port 8080 and count their starts in /data, under the label ``app``."""
    serving = container(
        "serve", "/data",
        readinessProbe={"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        resources={"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m"}},
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
    )  # fmt: skip
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "securityContext": {"fsGroup": 65532},
            "terminationGracePeriodSeconds": 10,
            "containers": [serving],
        },
    }


def stateful_set(name: str) -> Json:
    """One replica with a volume of its own."""
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "10Mi"}},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": server_template(name),
            "volumeClaimTemplates": [claim],
        },
    }


def deployment(name: str) -> Json:
    """One replica that may run anywhere."""
    template = server_template(name)
    template["spec"]["volumes"] = [{"name": "data", "emptyDir": {}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


def node_of(cluster: LocalCluster, app: str) -> str:
    """Where the one Ready pod of ``app`` runs; nothing while there is none."""
    for each in objects(cluster, "pods", "-l", f"app={app}")["items"]:
        is_going = each["metadata"].get("deletionTimestamp")
        if not is_going and conditions(each).get("Ready") == "True":
            return str(each["spec"]["nodeName"])
    return ""


def cluster_ip(cluster: LocalCluster, name: str) -> str:
    return str(objects(cluster, "service", name)["spec"]["clusterIP"])
