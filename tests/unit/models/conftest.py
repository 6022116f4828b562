"""A pod's folders, and a small model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.gguf_files import model_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "pod"
    (root / "models").mkdir(parents=True)
    (root / "source").mkdir()
    monkeypatch.setenv("TERRACE_POD_ROOT", str(root))
    return root


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return model_file(tmp_path / "m.gguf", layers=4, embedding=256, vocabulary=512).read_bytes()
