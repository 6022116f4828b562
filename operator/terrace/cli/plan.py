"""``terrace plan``: what would a model get, before there is any cluster.

Owns: what is printed where, exit codes. Does not own: options (``plan_options.py``), numbers
(``terrace.planner``). The walk: ``target.py`` says where, ``model_file.py`` reads facts,
``plan_spec.py`` says what is wanted, ``profiles.py`` asks the planner, ``plan_table.py``,
``plan_json.py`` and ``plan_yaml.py`` print.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from terrace.api.names import MAX_NAME_LENGTH, Key
from terrace.cli import plan_options as options  # noqa: TC001 - typer reads the annotations
from terrace.cli.errors import EXIT_NO, InputError
from terrace.cli.model_file import read_facts, read_projector
from terrace.cli.node_shape import parse_shape
from terrace.cli.plan_json import plan_document
from terrace.cli.plan_options import PlanOutput
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
from terrace.cli.profiles import Beside, Row, Target, chosen_row, plan_profiles
from terrace.cli.screen import show, waiting, width_of
from terrace.cli.target import cluster_target, machine_target, reading_of, shape_target
from terrace.planner.accelerators import BadTableError, built_in, read_table
from terrace.planner.placement import Placement

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.api.model import ModelSpec
    from terrace.planner.accelerators import AcceleratorTable


def plan(
    source: options.Source,
    node: options.Node = None,
    is_cluster: options.Cluster = False,
    pool: options.Pool = None,
    accelerators: options.Accelerators = None,
    kubeconfig: options.Kubeconfig = None,
    kube_context: options.KubeContext = None,
    context: options.Context = None,
    parallel: options.Parallel = None,
    profile: options.Profile = None,
    kv_types: options.KvTypes = None,
    max_disk: options.MaxDisk = None,
    spill_threshold: options.SpillThreshold = None,
    projector: options.Projector = None,
    draft: options.Draft = None,
    allow_network: options.AllowNetwork = None,
    wants_digest: options.WantsDigest = False,
    output: options.Output = PlanOutput.TABLE,
    is_json: options.Json = False,
    with_pool: options.WithPool = False,
    name: options.Name = None,
    uri: options.Uri = None,
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
        projector=projector,
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
        beside = Beside()
        if projector is not None:
            beside = replace(beside, projector=read_projector(projector, "--projector", reading))
        if draft is not None:
            beside = replace(beside, draft=read_facts(draft, "--draft", "draft", reading))
    spec = model_spec(wanted, target.pool_key.name, facts.digest)
    rows = plan_profiles(target.inputs(facts, spec, beside), target)
    match kind:
        case PlanOutput.TABLE:
            console = Console(highlight=False)
            width = width_of(console)
            show(console, plan_lines(facts, target, rows, width, beside.projector), width)
        case PlanOutput.JSON:
            typer.echo(
                json.dumps(plan_document(source, facts, target, rows, beside.projector), indent=2)
            )
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
    files = (wanted.source if wanted.uri is None else None, wanted.projector, wanted.draft)
    comments += [
        f"Put the file on the claim first: {source_uri(file)}"
        for file in files
        if file is not None and is_local(file)
    ]
    if not target.is_stored and not with_pool:
        comments.append(f"For a pool {target.pool_key.name} of such nodes: --with-pool prints it")
    key = Key(target.pool_key.namespace, name or model_name(wanted.source))
    pool = target.pool if with_pool else None
    typer.echo(as_yaml(manifests(key, spec, target.pool_key, pool), comments), nl=False)
