"""The facts of a model file, from a child process that reads nothing but its header.

Owns: the child ``python -m terrace_runtime inspect``, its bounds and its end. Does not own: reading
GGUF or reaching servers (``terrace_runtime.models``): ``terrace`` knows the runtime by its contract
alone. Next: ``plan.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import ValidationError

from terrace.cli.errors import InputError, NoAnswerError
from terrace.local.interrupts import held_interrupts
from terrace_runtime.contract import EXIT_PERMANENT, ModelFacts, ProjectorFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace_runtime.contract import FileRole

REMOTE: Final = ("hf://", "https://", "http://", "s3://", "oci://", "demo://")
WALL_S: Final = 600.0
"""Bound of one inspection: a slow mirror, or the checksum of a very large local file."""
_MAX_OUTPUT: Final = 1 << 20
_MAX_ERROR: Final = 2000
_NO_RUNTIME: Final = "No module named"
Facts = TypeVar("Facts", ModelFacts, ProjectorFacts)


@dataclass(frozen=True, slots=True)
class Reading:
    """How model files are read: what a pool says about sources, and what the user asks for."""

    networks: tuple[str, ...] = ()
    """CIDRs that addresses may resolve to although they are private."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Mirrors and stores, where our own environment does not name them."""
    wants_digest: bool = False
    """Read a local file whole, for its checksum."""


def read_facts(
    source: str,
    option: str = "SOURCE",
    role: FileRole = "model",
    reading: Reading = Reading(),
    wall_s: float = WALL_S,
) -> ModelFacts:
    """Facts of the model at ``source``, a path or an address.

    Raises InputError for a file that cannot be used and NoAnswerError where it was not reached.
    """
    output = _header(source, option, role, reading, wall_s)
    return _parsed(ModelFacts, output, f"{option} {source}")


def read_projector(
    source: str, option: str, reading: Reading = Reading(), wall_s: float = WALL_S
) -> ProjectorFacts:
    """Facts of the projector at ``source``; raises as ``read_facts`` does."""
    output = _header(source, option, "projector", reading, wall_s)
    return _parsed(ProjectorFacts, output, f"{option} {source}")


def _header(source: str, option: str, role: FileRole, reading: Reading, wall_s: float) -> bytes:
    """What the child says of a file's header."""
    _check_path(source, option)
    command = [sys.executable, "-P", "-m", "terrace_runtime", "inspect", "--role", role]
    command += ["--digest"] if reading.wants_digest and not source.startswith(REMOTE) else []
    for network in reading.networks:
        command += ["--allow-network", network]
    try:
        code, output, errors = _run(
            [*command, "--", source], {**reading.environment, **os.environ}, wall_s
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{option} {source}: its header was not read within {wall_s:g} s"
        ) from None
    if code:
        raise _failure(code, errors, f"{option} {source}")
    return output[:_MAX_OUTPUT]


def _parsed(kind: type[Facts], output: bytes, what: str) -> Facts:
    try:
        return kind.model_validate_json(output)
    except ValidationError as error:
        raise NoAnswerError(
            f"{what}: the reader's answer is not understood; terrace and its runtime "
            "are of different versions"
        ) from error


def _check_path(source: str, option: str) -> None:
    if source.startswith(REMOTE):
        return
    if "://" in source:
        hint = "; for a file of a claim, plan a local copy of it" if source[:6] == "pvc://" else ""
        raise InputError(
            f"{option} {source}: must be the path of a GGUF file, hf://OWNER/REPO[:QUANT], "
            f"s3://, oci:// or https://HOST/PATH{hint}"
        )
    path = Path(source)
    if path.is_dir():
        inside = sorted(each.name for each in path.glob("*.gguf"))[:3]
        said = f"such as {', '.join(inside)}" if inside else "it holds none"
        raise InputError(f"{option} {source} is a folder; name a .gguf file in it, {said}")
    if not path.exists():
        raise InputError(f"{option} {source}: there is no such file")


def _failure(code: int, errors: bytes, what: str) -> InputError | NoAnswerError:
    text = errors.decode(errors="replace").strip()
    last = text.rpartition("\n")[2][:_MAX_ERROR]
    if _NO_RUNTIME in text:
        return NoAnswerError(
            f"{what} cannot be read: this installation of terrace is without the runtime "
            f"({last}); install it with: pip install 'terrace[cli,runtime]'"
        )
    if last.startswith("AddressRefused"):
        return InputError(f"{what}: {last}; here: --allow-network CIDR")
    if code == EXIT_PERMANENT:
        return InputError(f"{what}: {last}")
    if code < 0:
        return NoAnswerError(f"{what}: its reader was ended by signal {-code}")
    return NoAnswerError(f"{what}: {last or f'its reader ended with code {code}'}")


def _run(
    command: list[str], environment: Mapping[str, str], wall_s: float
) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of a process in a session of its own, of which nothing is left.

    A Ctrl-C of the terminal reaches us alone; we take down the child and what it started. Raises
    subprocess.TimeoutExpired.
    """
    with held_interrupts() as let_through:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        with child:
            try:
                let_through()
                output, errors = child.communicate(timeout=wall_s)
            finally:
                with suppress(ProcessLookupError):  # All of them have ended.
                    os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, output, errors
