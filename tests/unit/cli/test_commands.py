"""``terrace plan`` and ``terrace explain`` as commands: options, output, and what is bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from support.projector_files import projector_file
from terrace.cli.__main__ import app
from terrace.cli.errors import InputError
from terrace_runtime.contract import FetchSpec
from terrace_runtime.models.sources import ClaimSource, parse_source

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "runtime_image/terrace_runtime/demo/chat.gguf"
NODE = ("--node", "cpu=16,memory=64Gi")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_json_is_one_document() -> None:
    answer = run("plan", str(DEMO), *NODE, "--json", "--profile", "hostheavy")
    document = json.loads(answer.stdout)
    chosen = [each["profile"] for each in document["profiles"] if each["chosen"]]
    assert chosen == ["HostHeavy"]
    assert document["model"]["architecture"] == "llama"


def test_yaml_is_what_kubectl_takes() -> None:
    answer = run("plan", str(DEMO), *NODE, "-o", "yaml", "--with-pool", "--name", "mine")
    pool, model = yaml.safe_load_all(answer.stdout)
    assert (pool["kind"], model["kind"]) == ("InferencePool", "InferenceModel")
    assert model["metadata"] == {"name": "mine", "namespace": "default"}
    assert model["spec"]["source"]["uri"] == "pvc://models/chat.gguf"


def test_yaml_names_a_file_of_an_awkward_name_as_a_fetch_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "my model#1 (50%).gguf"
    file.symlink_to(DEMO)
    answer = run("plan", str(file), *NODE, "-o", "yaml", "--name", "mine")
    (model,) = yaml.safe_load_all(answer.stdout)
    source = parse_source(FetchSpec(uri=model["spec"]["source"]["uri"]))
    assert source == ClaimSource("models", file.name)


def test_a_model_that_does_not_fit_says_what_is_missing() -> None:
    answer = run("plan", str(DEMO), "--node", "cpu=1,memory=64Mi")
    assert answer.exit_code == 1
    assert "are missing" in answer.stdout
    answer = run("plan", str(DEMO), "--node", "cpu=1,memory=64Mi", "-o", "yaml")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "are missing" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "nowhere.gguf"), "SOURCE nowhere.gguf: there is no such file"),
        (("plan", str(ROOT / "docs")), "is a folder; name a .gguf file in it"),
        (("plan", str(ROOT / "README.md"), *NODE), "not a GGUF"),
        (("plan", "pvc://claim/m.gguf"), "plan a local copy"),
        (("plan", "ftp://host/m.gguf"), "must be the path of a GGUF file"),
        (("plan", str(DEMO), "--node", "cpu=1"), "--node: memory is missing"),
        (("plan", str(DEMO), *NODE, "--context", "1"), "--context 1: Input should be"),
        (("plan", str(DEMO), *NODE, "--kv-types", "f32"), "--kv-types f32: Input should"),
        (("plan", str(DEMO), *NODE, "--max-disk", "1Ki"), "at least 64Mi, or 0 for none"),
        (("plan", str(DEMO), *NODE, "--cluster"), "drop one"),
        (("plan", str(DEMO), *NODE, "--with-pool"), "with -o yaml only"),
        (("plan", str(DEMO), *NODE, "--name", "Not A Name", "-o", "yaml"), "--name Not A Name"),
        (("plan", str(DEMO), *NODE, "--draft", "nowhere"), "--draft nowhere: there is no"),
        (("plan", str(DEMO), *NODE, "--projector", "nowhere"), "--projector nowhere: there is no"),
        (("plan", str(DEMO), *NODE, "--projector", str(DEMO)), "under spec.projector is a whole"),
        (("plan", str(DEMO), *NODE, "--accelerators", "no.yaml"), "--accelerators no.yaml"),
        (("plan", "https://127.0.0.1:9/m.gguf"), "--allow-network CIDR"),
        (("explain", "pod/x"), "must be im/NAME or ipool/NAME"),
        (("explain", "im/x", "--kubeconfig", "nowhere"), "there is no such file"),
    ],
)
def test_bad_input_is_one_line_that_names_it(arguments: tuple[str, ...], said: str) -> None:
    answer = run(*arguments)
    assert answer.stdout == ""
    assert isinstance(answer.exception, InputError)
    assert said in str(answer.exception)
    assert answer.exception.code == 2


def test_a_projector_is_planned_with_its_model_in_every_form(tmp_path: Path) -> None:
    file = projector_file(tmp_path / "mmproj.gguf", output=192)
    command = ("plan", str(DEMO), *NODE, "--projector", str(file))
    table = run(*command)
    assert table.exit_code == 0
    assert "projector: a projector: gemma3" in table.stdout
    assert "- projector: " in table.stdout
    document = json.loads(run(*command, "--json").stdout)
    assert document["projector"]["outputLength"] == 192
    spec = yaml.safe_load(run(*command, "-o", "yaml").stdout)["spec"]
    assert spec["projector"] == {"uri": "pvc://models/mmproj.gguf"}


def test_a_projector_of_another_model_is_told_before_there_is_a_cluster(tmp_path: Path) -> None:
    file = projector_file(tmp_path / "mmproj.gguf")
    answer = run("plan", str(DEMO), *NODE, "--projector", str(file))
    assert answer.exit_code == 1
    assert "rows of 64 values, the model takes 192" in answer.stdout
