"""``terrace local``: a cluster on this machine, from the command line.

Owns: the options, the progress lines, the tables. Does not own: the cluster
(``terrace.local.cluster``).
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from terrace.local.cluster import ClusterStatus, LocalCluster
from terrace.local.errors import LocalClusterError
from terrace.local.kubelets.network import MAX_NODES
from terrace.local.logs import follow, show
from terrace.local.state import ClusterOptions, known_clusters

app = typer.Typer(
    help="A real Kubernetes control plane as processes of this machine, with a node that runs "
    "pods as host processes, or with real kubelets and containerd. For trying Terrace and for "
    "tests; not a place to keep things.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Option("--name", "-n", help="Which cluster; several can run.")]
Directory = Annotated[
    Path | None,
    typer.Option("--dir", help="The cluster's folder. [default: below $XDG_STATE_HOME/terrace]"),
]


class Output(StrEnum):
    """How ``status`` answers."""

    TABLE = "table"
    JSON = "json"


@app.command()
def up(
    name: Name = "default",
    directory: Directory = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            help="host: pods are processes of this machine; kubelet:N: N real nodes (1 to 3) with "
            "kubelet and containerd, for root; none: no pod ever starts. [default: host]"
        ),
    ] = None,
    no_node: Annotated[bool, typer.Option("--no-node", help="The same as --nodes none.")] = False,
    bin_dir: Annotated[
        Path | None,
        typer.Option(
            "--bin",
            exists=True,
            file_okay=False,
            help="Folder with etcd, kube-apiserver and so on.",
        ),
    ] = None,
    emulated_version: Annotated[
        str | None, typer.Option(help="An older Kubernetes API, such as 1.34.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="JSON file: image -> argv that the node runs for it."
        ),
    ] = None,
) -> None:
    """Bring a cluster up, or repair one that is half dead.

    Programs come from --bin or $TERRACE_K8S_BIN, else from your cache, else from the official
    releases, else from a build of their Go modules (about 5 minutes, once).
    """
    began = time.monotonic()
    if no_node and nodes not in {None, "none"}:
        raise LocalClusterError(f"--no-node and --nodes {nodes} exclude each other")
    options = _options("none" if no_node else nodes, emulated_version, images)
    cluster = LocalCluster(
        name, directory=directory, options=options, bin_dir=bin_dir, report=_progress(began)
    )
    if not cluster.up():
        typer.echo(f"cluster {name!r} is up already: {cluster.server}")
    else:
        typer.echo(f"cluster {name!r} is up after {time.monotonic() - began:.1f} s")
        if cluster.options.nodes:
            typer.echo(
                "Its node stands in for kubelet and containerd: pods are processes of this "
                "machine, with their own address but without isolation."
            )
        if cluster.options.kubelets:
            typer.echo(
                "Its nodes run containers and pull nothing: bring images with "
                f"`terrace local load{_chosen(name, directory)} TAR...`."
            )
    typer.echo(f"export KUBECONFIG={cluster.kubeconfig}")


@app.command()
def load(
    archives: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, metavar="TAR...", help="OCI archives."),
    ],
    name: Name = "default",
    directory: Directory = None,
) -> None:
    """Load images into every real node, but for those that are there already."""
    cluster = LocalCluster(name, directory=directory, report=_progress(time.monotonic()))
    cluster.load_images(archives)


@app.command()
def down(
    name: Name = "default",
    directory: Directory = None,
    all_: Annotated[bool, typer.Option("--all", help="Every cluster of this user.")] = False,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Stop only; `up` goes on with the same objects.")
    ] = False,
) -> None:
    """Stop a cluster and delete it with all it holds."""
    names = known_clusters() if all_ else [name]
    if not names:
        typer.echo("no local cluster")
    for each in names:
        cluster = LocalCluster(
            each, directory=None if all_ else directory, report=_progress(time.monotonic())
        )
        if cluster.down(keep_data=keep_data):
            typer.echo(f"cluster {each!r} {'stopped' if keep_data else 'deleted'}")
        else:
            typer.echo(f"no local cluster {each!r}")


@app.command()
def status(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Which cluster. [default: all]")
    ] = None,
    directory: Directory = None,
    output: Annotated[Output, typer.Option("--output", "-o")] = Output.TABLE,
) -> None:
    """Say what runs. Exits 0 when every cluster asked for is ready, 1 when one is not."""
    names = [name or "default"] if name or directory else known_clusters()
    states = [LocalCluster(each, directory=directory).status() for each in names]
    if output is Output.JSON:
        typer.echo(json.dumps([asdict(state) for state in states], default=str, indent=2))
    elif not states:
        typer.echo("no local cluster; make one with `terrace local up`")
    else:
        for state in states:
            _print_status(state)
    if not all(state.is_ready and state.is_running for state in states):
        raise typer.Exit(1)


@app.command()
def logs(
    component: Annotated[
        str | None, typer.Argument(help="Such as kube-apiserver. [default: list them]")
    ] = None,
    name: Name = "default",
    directory: Directory = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
    lines: Annotated[int, typer.Option("--tail", min=1, help="Lines from the end.")] = 100,
) -> None:
    """Show the log of one component."""
    state = LocalCluster(name, directory=directory).status()
    paths = {part.name: part.log for part in state.components}
    if component is None:
        for part in state.components:
            typer.echo(f"{part.name}\t{part.log_bytes / 1e6:.1f} MB\t{part.log}")
        return
    if component not in paths:
        raise LocalClusterError(
            f"{component!r} is no component of cluster {name!r}; there are: {', '.join(paths)}"
        )
    show(paths[component], lines, typer.echo)
    if is_followed:
        follow(paths[component], typer.echo)


@app.command()
def kubeconfig(
    name: Name = "default",
    directory: Directory = None,
    is_export: Annotated[bool, typer.Option("--export", help="As a line for your shell.")] = False,
) -> None:
    """Print the path of the admin's kubeconfig."""
    cluster = LocalCluster(name, directory=directory)
    cluster.status()  # says so when there is no such cluster
    typer.echo(f"export KUBECONFIG={cluster.kubeconfig}" if is_export else cluster.kubeconfig)


def _options(
    nodes: str | None, emulated_version: str | None, images: Path | None
) -> ClusterOptions | None:
    """None when nothing was asked for: then a cluster that exists keeps what it has."""
    if not (nodes or emulated_version or images):
        return None
    kubelets = _kubelets(nodes or "host")
    if images and kubelets:
        raise LocalClusterError(
            "--images is for the host node; real nodes take `terrace local load`"
        )
    try:
        return ClusterOptions(
            nodes=1 if nodes in {None, "host"} else 0,
            kubelets=kubelets,
            emulated_version=emulated_version,
            images=str(images.absolute()) if images else None,
        )
    except ValidationError as error:
        raise LocalClusterError(
            f"--emulated-version {emulated_version!r} is no version such as 1.34"
        ) from error


def _chosen(name: str, directory: Path | None) -> str:
    """The options that name this cluster again."""
    words = ["--name", name] if name != "default" else []
    words += ["--dir", str(directory)] if directory else []
    return "".join(f" {shlex.quote(word)}" for word in words)


def _kubelets(nodes: str) -> int:
    """How many real nodes ``--nodes`` asks for."""
    if nodes in {"host", "none"}:
        return 0
    kind, _, count = nodes.partition(":")
    if kind != "kubelet" or count not in {str(number) for number in range(1, MAX_NODES + 1)}:
        raise LocalClusterError(
            f"--nodes {nodes!r} is neither host nor none nor kubelet:N with N from 1 to {MAX_NODES}"
        )
    return int(count)


class _Progress:
    """Prints each step with the seconds since the command began."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def __call__(self, line: str) -> None:
        elapsed = time.monotonic() - self._began
        self._console.print(f"{elapsed:6.1f} s  {line}", markup=False)


def _progress(began: float) -> _Progress:
    return _Progress(began)


def _print_status(state: ClusterStatus) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if state.is_stopped:
        word = "stopped"
    elif not state.is_running:
        dead = [part.name for part in state.components if not part.is_alive]
        word = f"broken: {', '.join(dead)} not running; `terrace local up` repairs it"
    else:
        word = "ready" if state.is_ready else "not ready"
    console.print(f"{state.name}  {word}  {state.server}  {state.folder}", markup=False)
    console.print(f"logs in {state.components[0].log.parent}", markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("COMPONENT", "PID", "STATE", "LOG"):
        table.add_column(heading)
    for part in state.components:
        table.add_row(
            part.name,
            str(part.pid or "-"),
            "running" if part.is_alive else "gone",
            f"{part.log_bytes / 1e6:.1f} MB",
        )
    console.print(table)
