"""The outputs in docs/cli.md are what the commands print; TERRACE_GOLDEN=write writes them anew."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.model_shapes import write_header
from terrace.cli.__main__ import app

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/cli.md"
MODEL = "Llama-3-8B-Q4_K_M.gguf"
_BLOCK = re.compile(
    r"(?<=```\n)\$ (?P<command>terrace [^\n]+)\n(?P<output>.*?)(?=```\n)", re.DOTALL
)
EXPLAINED = Path(__file__).parent / "golden/explain_crash_loop.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("docs")
    path = write_header("llama-3.1-8b", found / MODEL, "Q4_K_M")
    head = path.open("r+b")
    with head:
        # The shapes have one name, which a page would stumble over.
        at = head.read(4096).index(b"a shape")
        head.seek(at)
        head.write(b"Llama 3")
    return found


def printed(command: str) -> str:
    if command == "terrace explain im/demo":
        return EXPLAINED.read_text()
    words, _, lines = command.partition(" | head -")
    answer = CliRunner().invoke(app, shlex.split(words)[1:])
    assert answer.stderr == ""
    return "".join(answer.stdout.splitlines(keepends=True)[: int(lines or 1000)])


def test_every_output_of_the_page_is_what_the_command_prints(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)
    text = PAGE.read_text()
    blocks = [(match["command"], match["output"]) for match in _BLOCK.finditer(text)]
    assert len(blocks) == 4
    now = {command: printed(command) for command, _ in blocks}
    if os.environ.get("TERRACE_GOLDEN") == "write":
        PAGE.write_text(
            _BLOCK.sub(lambda match: f"$ {match['command']}\n{now[match['command']]}", text)
        )
        return
    for command, output in blocks:
        assert output == now[command], f"TERRACE_GOLDEN=write pytest {__file__} writes the page"


@pytest.mark.parametrize("name", ["plan", "explain"])
def test_every_option_is_on_the_page_or_explains_itself(name: str) -> None:
    help_text = CliRunner(env={"COLUMNS": "200"}).invoke(app, [name, "--help"]).stdout
    rows = [line for line in help_text.splitlines() if re.match(r"│ +--", line)]
    assert rows
    for row in rows:
        words = row.strip("│ ").split()
        assert len(words) > 3, f"{words[0]} has no help"


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
