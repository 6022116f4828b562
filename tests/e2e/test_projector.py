"""Through the chain: a model with a projector sees images, and the wrong pair makes no pod."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from PIL import Image

from support import tiny_projectors
from support.chain import model
from support.tiny_model import WIDTH
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.chain import Chain

DEMO_WIDTH = 192
CLAIM: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "projectors", "namespace": "default"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


@pytest.fixture
def projectors(chain: Chain, tmp_path: Path) -> Iterator[Chain]:
    """A claim with a projector of the demo model, and one of a narrower model."""
    chain.apply(CLAIM)
    tiny_projectors.llava(tmp_path / "mmproj.gguf", DEMO_WIDTH)
    tiny_projectors.llava(tmp_path / "narrow.gguf")
    chain.put_on_claim("projectors", tmp_path / "mmproj.gguf")
    chain.put_on_claim("projectors", tmp_path / "narrow.gguf")
    yield chain
    chain.delete("im", "sees", "narrow")
    chain.delete("pvc", "projectors")


def picture(colour: str) -> str:
    """A data: URL of a PNG: a square of one colour in a corner."""
    image = Image.new("RGB", (48, 40), "white")
    image.paste(colour, (0, 0, 24, 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def body(name: str, *urls: str) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*images, {"type": "text", "text": "What is a pod?"}]
    return {
        "model": name,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
    }


def first_odds(reply: dict[str, Any]) -> float:
    return float(reply["choices"][0]["logprobs"]["content"][0]["logprob"])


def refusal(chain: Chain, request: dict[str, Any]) -> str:
    reply = httpx2.post(f"{chain.url}/chat/completions", json=request, timeout=120)
    assert reply.status_code == httpx2.codes.BAD_REQUEST, reply.text
    return reply.text


def test_a_model_with_a_projector_answers_with_what_it_sees(projectors: Chain) -> None:
    chain = projectors
    chain.apply(model("sees", projector={"uri": "pvc://projectors/mmproj.gguf"}))
    chain.wait_condition("sees", "Ready", "True", timeout=180)
    status = chain.get("im", "sees")["status"]
    assert status["projector"]["projectorType"] == "mlp"
    assert status["projector"]["outputLength"] == status["model"]["embeddingLength"] == DEMO_WIDTH
    assert any(reason.startswith("projector: ") for reason in status["plan"]["reasons"])
    plain = chain.ask(body("sees")).json()
    red, again, blue = (
        chain.ask(body("sees", picture(colour))).json() for colour in ("red", "red", "blue")
    )
    rows = red["usage"]["prompt_tokens"] - plain["usage"]["prompt_tokens"]
    assert rows >= tiny_projectors.ROWS
    assert first_odds(red) != first_odds(plain)
    assert first_odds(red) != first_odds(blue)
    assert first_odds(again) == pytest.approx(first_odds(red), abs=1e-3)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= tiny_projectors.ROWS
    (pod,) = chain.pods("sees")
    report = httpx2.get(f"http://{pod['status']['podIP']}:8000/v1/runtime", timeout=60).json()
    assert report["capabilities"]["takes_images"] is True
    assert "https" in refusal(chain, body("sees", "https://host/cat.png"))


def test_a_model_without_a_projector_says_which_field_it_lacks(chain: Chain) -> None:
    assert "spec.projector" in refusal(chain, body("demo", picture("red")))


def test_a_projector_of_another_model_is_a_condition_and_no_pod(projectors: Chain) -> None:
    chain = projectors
    chain.apply(model("narrow", projector={"uri": "pvc://projectors/narrow.gguf"}))
    placed = chain.wait_condition("narrow", "Placed", "False", "InvalidProjector")
    assert f"rows of {WIDTH} values, the model takes {DEMO_WIDTH}" in (placed["message"])
    assert chain.condition("narrow", "Stalled")["status"] == "True"
    assert chain.pods("narrow") == []
    other = model("narrow", projector={"uri": "pvc://projectors/mmproj.gguf"})
    chain.apply(other)
    chain.wait_condition("narrow", "Ready", "True", timeout=180)
    wait_for("its pod", lambda: chain.pods("narrow"))
