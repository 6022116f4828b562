"""``terrace plan``: what would a model get, before there is any cluster.

Owns: the options, what is printed where, exit codes. Does not own: numbers (``terrace.planner``).
The walk: ``model_file.py`` reads facts, ``target.py`` says where, ``plan_spec.py`` what is wanted,
``profiles.py`` asks the planner, ``plan_table.py``, ``plan_json.py`` and ``plan_yaml.py`` print.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from terrace.api.names import MAX_NAME_LENGTH, Key
from terrace.cli.errors import EXIT_NO, InputError
from terrace.cli.model_file import read_facts
from terrace.cli.node_shape import EXAMPLE, parse_shape
from terrace.cli.plan_json import plan_document
from terrace.cli.plan_spec import (
    NO_DIGEST,
    Wanted,
    is_local,
    is_name,
    model_name,
    model_spec,
    source_uri,
)
from terrace.cli.plan_table import plan_lines
from terrace.cli.plan_yaml import as_yaml, manifests
from terrace.cli.profiles import Row, Target, chosen_row, plan_profiles
from terrace.cli.screen import show, waiting, width_of
from terrace.cli.target import cluster_target, machine_target, reading_of, shape_target
from terrace.planner.accelerators import BadTableError, built_in, read_table
from terrace.planner.placement import Placement

if TYPE_CHECKING:
    from terrace.api.model import ModelSpec
    from terrace.planner.accelerators import AcceleratorTable


class PlanOutput(StrEnum):
    """How ``plan`` answers."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


_WHERE, _WHAT, _HOW = "Where to plan", "What the model asks for", "Output"


def plan(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A GGUF file: a path, hf://OWNER/REPO[:QUANT], or https://HOST/PATH. Only the "
            "header is read; of a remote file only that is downloaded.",
            show_default=False,
        ),
    ],
    node: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help=f"A node in words: {EXAMPLE}, or gpu=nvidia:H100-80GB.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    is_cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="The nodes of the cluster of your kubeconfig, with what Terrace runs there.",
            rich_help_panel=_WHERE,
        ),
    ] = False,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="[NS/]NAME",
            help="An InferencePool of that cluster: its flavors and settings. Implies --cluster.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    accelerators: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows that add to the accelerator table. Default with --cluster: the operator's.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="Default: $KUBECONFIG or ~/.kube/config.", rich_help_panel=_WHERE),
    ] = None,
    kube_context: Annotated[
        str | None,
        typer.Option(help="Context of the kubeconfig.", rich_help_panel=_WHERE),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of one conversation.", rich_help_panel=_WHAT),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(help="Conversations at the same time.", rich_help_panel=_WHAT),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Auto, DeviceOnly, Balanced, HostHeavy or DiskHeavy: the one that decides the "
            "exit code and -o yaml. Default: the pool's, else Auto.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    kv_types: Annotated[
        str | None,
        typer.Option(
            metavar="KEY[,VALUE]", help="f16, q8_0 or q4_0, or one each.", rich_help_panel=_WHAT
        ),
    ] = None,
    max_disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Disk tier, such as 20Gi.", rich_help_panel=_WHAT),
    ] = None,
    spill_threshold: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Host tier, such as 2Gi.", rich_help_panel=_WHAT),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="A small model that guesses ahead.", rich_help_panel=_WHAT
        ),
    ] = None,
    allow_network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Private network that SOURCE may be in. Default: the pool's allowedNetworks.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    wants_digest: Annotated[
        bool,
        typer.Option(
            "--digest",
            help="Read a local SOURCE whole for its checksum, which the plan's digest covers.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    output: Annotated[
        PlanOutput,
        typer.Option("--output", "-o", help="yaml: the manifests.", rich_help_panel=_HOW),
    ] = PlanOutput.TABLE,
    is_json: Annotated[
        bool, typer.Option("--json", help="The same as -o json.", rich_help_panel=_HOW)
    ] = False,
    with_pool: Annotated[
        bool,
        typer.Option("--with-pool", help="-o yaml: the InferencePool too.", rich_help_panel=_HOW),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="-o yaml: name of the InferenceModel.", rich_help_panel=_HOW),
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(
            help="-o yaml: spec.source.uri for a local SOURCE. Default: pvc://models/FILE.",
            rich_help_panel=_HOW,
        ),
    ] = None,
) -> None:
    """Show what a model would get: where its bytes go, with every profile, and why.

    Plans with the operator's own planner for a node in words (--node), for a cluster (--cluster)
    or, without either, for this machine.

    terrace plan model.gguf

    terrace plan hf://OWNER/REPO:Q4_K_M --node cpu=16,memory=64Gi --context 32768

    terrace plan model.gguf --pool team-a/gpus --profile Balanced -o yaml | kubectl apply -f -

    Exit codes: 0 the chosen profile fits, 1 it does not, 2 something you wrote is wrong, 3 a
    cluster, server or file could not be reached.
    """
    wanted = Wanted(
        source=source,
        uri=uri,
        context=context,
        parallel=parallel,
        profile=profile,
        kv_types=kv_types,
        max_disk=max_disk,
        spill_threshold=spill_threshold,
        draft=draft,
    )
    kind = PlanOutput.JSON if is_json else output
    _check_output(kind, source, uri, name, with_pool=with_pool)
    table = _table(accelerators)
    target = _target(node, pool, table, kubeconfig, kube_context, is_cluster=is_cluster)
    # Before anything is downloaded, what was written is checked.
    model_spec(wanted, target.pool_key.name)
    reading = reading_of(target.pool, tuple(allow_network or ()), wants_digest=wants_digest)
    with waiting(f"Reading the header of {source}"):
        facts = read_facts(source, reading=reading)
        draft_facts = None
        if draft is not None:
            draft_facts = read_facts(draft, "--draft", "draft", reading)
    spec = model_spec(wanted, target.pool_key.name, facts.digest)
    rows = plan_profiles(target.inputs(facts, spec, draft_facts), target)
    match kind:
        case PlanOutput.TABLE:
            console = Console(highlight=False)
            width = width_of(console)
            show(console, plan_lines(facts, target, rows, width), width)
        case PlanOutput.JSON:
            typer.echo(json.dumps(plan_document(source, facts, target, rows), indent=2))
        case PlanOutput.YAML:
            _print_yaml(wanted, name, target, spec, rows, with_pool=with_pool)
    if not chosen_row(rows).fits:
        raise typer.Exit(EXIT_NO)


def _check_output(
    kind: PlanOutput, source: str, uri: str | None, name: str | None, *, with_pool: bool
) -> None:
    if with_pool and kind is not PlanOutput.YAML:
        raise InputError("--with-pool has an effect with -o yaml only")
    if name is not None and not is_name(name):
        raise InputError(
            f"--name {name}: must be at most {MAX_NAME_LENGTH} lower-case letters, digits and "
            "dashes, and start with a letter"
        )
    if uri is not None and not is_local(source):
        raise InputError(f"--uri is for a local SOURCE; {source} is its own address")


def _table(path: Path | None) -> AcceleratorTable | None:
    if path is None:
        return None
    try:
        return read_table(path.read_text(encoding="utf-8"), built_in())
    except (OSError, UnicodeDecodeError, BadTableError) as error:
        raise InputError(f"--accelerators {path}: {error}") from error


def _target(
    node: str | None,
    pool: str | None,
    table: AcceleratorTable | None,
    kubeconfig: Path | None,
    kube_context: str | None,
    *,
    is_cluster: bool,
) -> Target:
    is_cluster = is_cluster or pool is not None
    if node is not None and is_cluster:
        raise InputError("--node is a node in words, --cluster and --pool a real one: drop one")
    if node is not None:
        return shape_target(parse_shape(node), "a node", table or built_in())
    if not is_cluster:
        if kubeconfig is not None or kube_context is not None:
            raise InputError("--kubeconfig and --kube-context have an effect with --cluster only")
        return machine_target(table or built_in())
    from terrace.cli.cluster import KubeReader  # noqa: PLC0415 - its client takes a second

    return cluster_target(KubeReader.connect(kubeconfig, kube_context), pool, table)


def _print_yaml(
    wanted: Wanted,
    name: str | None,
    target: Target,
    spec: ModelSpec,
    rows: tuple[Row, ...],
    *,
    with_pool: bool,
) -> None:
    row = chosen_row(rows)
    if not isinstance(row.result, Placement):
        typer.echo(f"error: {row.profile} does not fit: {row.result.message}", err=True)
        return
    if spec.source.sha256 == NO_DIGEST:
        raise InputError(f"-o yaml: {spec.source.uri} needs a checksum: use https://")
    plan = row.result.plan
    comments = [
        f"Plan {plan.digest[:12]} on flavor {plan.flavor} of {target.title}",
        f"{plan.parallel} x {plan.context_tokens:,} tokens, memory limit {plan.memory_limit_bytes}",
    ]
    if is_local(wanted.source) and wanted.uri is None:
        comments.append(f"Put the file on the claim first: {source_uri(wanted.source)}")
    if not target.is_stored and not with_pool:
        comments.append(f"For a pool {target.pool_key.name} of such nodes: --with-pool prints it")
    key = Key(target.pool_key.namespace, name or model_name(wanted.source))
    pool = target.pool if with_pool else None
    typer.echo(as_yaml(manifests(key, spec, target.pool_key, pool), comments), nl=False)
