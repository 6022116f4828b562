"""``terrace demo``: the whole chain on this machine, from nothing to a streamed answer.

Owns: the steps, what they print and what is left behind. Does not own: the cluster
(``terrace.local``), the manifests (``charts/``, ``crds/``, ``examples/``). Every step has a name,
so that a failure names it and the log to read. Next: ``demo_chat`` asks the model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from terrace.cli.demo_chat import stream_answer
from terrace.local.cluster import LocalCluster
from terrace.local.interrupts import held_interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "terrace-system"
GATEWAY_PORT = 8080
WAIT_S = 180
KUBECTL_MARGIN_S = 20
"""For kubectl to start, and to say itself that it waited in vain."""
QUESTION = "What is a pod?"
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step failed; the message says what was seen."""


class Steps:
    """Prints each step with its time and remembers the one that runs."""

    def __init__(self) -> None:
        """Nothing has run yet."""
        self.current = "start"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run one named step."""
        self.current, start = name, time.monotonic()
        console.print(f"[bold]==> {name}[/bold]")
        yield
        self.seconds[name] = time.monotonic() - start
        console.print(f"    [green]done[/green] in {self.seconds[name]:.1f} s")


def demo(
    keep: Annotated[bool, typer.Option(help="Leave the cluster up and say how to use it.")] = False,
    name: Annotated[str, typer.Option(help="Name of the local cluster.")] = "demo",
    question: Annotated[str, typer.Option(help="What to ask the demo model.")] = QUESTION,
) -> None:
    """Apply the minimal example to a local cluster and stream a chat answer through the gateway."""
    root = _project_root()
    steps = Steps()
    cluster = LocalCluster(name, report=lambda line: console.print(f"    {line}", markup=False))
    try:
        _run(cluster, root, steps, question)
        if keep:
            _explain_keep(cluster)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it was, nothing stays
        _report_failure(error, cluster, steps)
        _take_down(cluster)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    if not keep:
        with steps.step("Take the cluster down"):
            cluster.down()
    total = sum(steps.seconds.values())
    console.print(f"\nAll of it took {total:.1f} s.")


def _run(cluster: LocalCluster, root: Path, steps: Steps, question: str) -> None:
    with steps.step("Start a Kubernetes control plane and the host node"):
        cluster.up()
    with steps.step("Install the custom resources and the chart"):
        install(cluster, root)
    with steps.step("kubectl apply -f examples/01-minimal/"):
        console.print(cluster.kubectl("apply", "-f", str(root / "examples/01-minimal")).rstrip())
    with steps.step("kubectl wait --for=condition=Ready im/demo"):
        watch_until_ready(cluster, "default", "demo")
    with steps.step(f"Ask through the gateway: {question!r}"):
        stream_answer(gateway_url(cluster), "demo", question, console)
    with steps.step("kubectl get ipool,im,pods"):
        console.print(cluster.kubectl("get", "ipool,im,pods").rstrip())


def install(cluster: LocalCluster, root: Path) -> None:
    """Apply ``crds/``, install the chart and wait until operator and gateway are ready."""
    cluster.kubectl("apply", "-f", str(root / "crds"))
    established = ("wait", "--for=condition=Established", "-f", str(root / "crds"))
    cluster.kubectl(*established, f"--timeout={WAIT_S}s", timeout_s=WAIT_S + KUBECTL_MARGIN_S)
    cluster.tools.install_chart(root / "charts/terrace", {}, namespace=NAMESPACE)
    for name in ("operator", "gateway"):
        cluster.kubectl(
            "rollout",
            "status",
            f"deployment/terrace-{name}",
            "-n",
            NAMESPACE,
            f"--timeout={WAIT_S}s",
            timeout_s=WAIT_S + KUBECTL_MARGIN_S,
        )


def gateway_url(cluster: LocalCluster) -> str:
    """Base URL of a ready gateway pod: there is no cluster network to reach its Service by."""
    selector = "app.kubernetes.io/component=gateway"
    pods = json.loads(cluster.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json"))
    for pod in pods["items"]:
        if _is_true(pod["status"].get("conditions", []), "Ready"):
            return f"http://{pod['status']['podIP']}:{GATEWAY_PORT}/v1"
    raise DemoError("no gateway pod is ready; see: kubectl get pods -n terrace-system")


def watch_until_ready(cluster: LocalCluster, namespace: str, name: str) -> None:
    """Print each change of the model's conditions until Ready; raises DemoError when it stalls."""
    seen: dict[str, str] = {}
    deadline = time.monotonic() + WAIT_S
    command = cluster.tools.kubectl_command(
        "get", "im", name, "-n", namespace, "--watch", "-o", "json", f"--request-timeout={WAIT_S}s"
    )
    with held_interrupts() as let_through:
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own kubectl
        with watch:
            try:
                let_through()
                assert watch.stdout is not None
                for model in _json_stream(watch.stdout):
                    conditions = model.get("status", {}).get("conditions", [])
                    _print_changes(conditions, seen)
                    if _is_true(conditions, "Ready"):
                        return
                    if _is_true(conditions, "Stalled"):
                        raise DemoError(f"im/{name} is stalled: {seen.get('Stalled', '')}")
                    if time.monotonic() > deadline:
                        break
            finally:
                watch.kill()
    raise DemoError(f"im/{name} was not Ready within {WAIT_S} s: {seen}")


def _json_stream(stream: Any) -> Iterator[dict[str, Any]]:
    """Objects of ``kubectl get --watch -o json``, which writes one after the other, indented."""
    decoder, buffer = json.JSONDecoder(), ""
    for line in stream:
        buffer += line
        if line.rstrip() == "}":
            value, _ = decoder.raw_decode(buffer.lstrip())
            buffer = ""
            yield value


def _print_changes(conditions: list[dict[str, Any]], seen: dict[str, str]) -> None:
    for condition in conditions:
        text = f"{condition['status']} {condition['reason']}: {condition.get('message', '')}"
        if seen.get(condition["type"]) != text:
            seen[condition["type"]] = text
            console.print(f"    {condition['type']:<12} {text}")


def _is_true(conditions: list[dict[str, Any]], kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _project_root() -> Path:
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "charts/terrace/Chart.yaml").exists() and (folder / "examples").is_dir():
            return folder
    console.print("terrace demo needs a checkout of Terrace: charts/ and examples/ are not here.")
    raise typer.Exit(2)


def _report_failure(error: BaseException, cluster: LocalCluster, steps: Steps) -> None:
    what = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    console.print(f"[red]Failed[/red] in the step {steps.current!r}: {what}", style="bold")
    console.print(f"Logs of the control plane: {cluster.logs_dir}")
    console.print(f"Logs of the pods:          {cluster.folder.node / 'logs'}")
    sys.stdout.flush()


def _take_down(cluster: LocalCluster) -> None:
    try:
        cluster.down(keep_data=True)
    except KeyboardInterrupt:
        cluster.down(keep_data=True)


def _explain_keep(cluster: LocalCluster) -> None:
    url, bin_dir = gateway_url(cluster), Path(cluster.tools.kubectl_command()[0]).parent
    console.print(
        "\nThe cluster stays up. To use it:\n"
        f"  export KUBECONFIG={cluster.kubeconfig}\n"
        f"  export OPENAI_BASE_URL={url} OPENAI_API_KEY=none\n"
        f"  export PATH={bin_dir}:$PATH\n"
        "and try:\n"
        "  kubectl get im demo -o yaml\n"
        "  kubectl scale im/demo --replicas=2\n"
        f"  curl -N {url}/chat/completions -H 'content-type: application/json' \\\n"
        '    -d \'{"model":"demo","stream":true,'
        '"messages":[{"role":"user","content":"What is gguf?"}]}\'\n'
        f"Take it down with: terrace local down --name {cluster.name}"
    )
