"""Through the chain: a draft that guesses, adapters asked by name, a file that needs a secret."""

from __future__ import annotations

import hashlib
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import yaml

from support.chain import ROOT, model
from support.lora_files import lora_file
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.chain import Chain

EXAMPLE = ROOT / "examples/03-draft-and-adapter"
QUESTION = [{"role": "user", "content": "What is a pod?"}]
KEY = "poets-key"


def ask(chain: Chain, name: str) -> str:
    body = {"model": name, "messages": QUESTION, "temperature": 0, "max_tokens": 32}
    answer: str = chain.ask(body).json()["choices"][0]["message"]["content"]
    return answer


@contextmanager
def guarded_store(files: dict[str, bytes]) -> Iterator[str]:
    """A store that speaks S3 and gives files to whoever signs with the key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
                self.send_error(403)
                return
            data = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_the_example_answers_by_draft_and_by_adapter(chain: Chain, tmp_path: Path) -> None:
    plain = ask(chain, "demo")
    chain.cluster.kubectl("apply", "-f", str(EXAMPLE / "1-claim.yaml"))
    chain.put_on_claim("adapters", lora_file(tmp_path / "polite.gguf", strength=2.0))
    chain.cluster.kubectl("apply", "-f", str(EXAMPLE))
    try:
        chain.wait_condition("chat", "Ready", "True")
        status = chain.get("im", "chat")["status"]
        assert status["servedNames"] == ["chat", "polite"]
        (adapter,) = status["adapters"]
        written = hashlib.sha256((tmp_path / "polite.gguf").read_bytes()).hexdigest()
        assert (adapter["name"], adapter["digest"]) == ("polite", written)
        assert status["draft"]["parameters"] < status["model"]["parameters"]
        assert ask(chain, "chat") == plain  # Guessing changes no answer.
        assert ask(chain, "polite") != plain
        assert ask(chain, "chat") == plain
        (pod,) = chain.pods("chat")
        url = f"http://{pod['status']['podIP']}:8000/v1/runtime"

        def guesses() -> int:
            assert ask(chain, "chat") == plain
            report = httpx2.get(url, timeout=60).json()
            return int(report["engine"]["speculation"]["drafted_tokens"])

        wait_for("guesses", guesses)
        told = chain.get("configmap", config_of(pod))["data"]["runtime.json"]
        assert '"mode": "draft"' in told
        names = [m["id"] for m in httpx2.get(f"{chain.url}/models", timeout=60).json()["data"]]
        assert {"chat", "polite"} <= {*names}
    finally:
        chain.delete("im", "chat")
        chain.delete("ipool", "fast")
        chain.delete("pvc", "adapters")


def config_of(pod: dict[str, Any]) -> str:
    (name,) = [v["configMap"]["name"] for v in pod["spec"]["volumes"] if v["name"] == "config"]
    return str(name)


def test_an_adapter_is_added_to_a_running_model_by_a_secret_that_comes_late(
    chain: Chain, tmp_path: Path
) -> None:
    data = lora_file(tmp_path / "poet.gguf", seed=3, strength=2.0).read_bytes()
    pool = yaml.safe_load((ROOT / "examples/01-minimal/1-pool.yaml").read_text())
    pool["metadata"] = {"name": "guarded", "namespace": "default"}
    pool["spec"] |= {"access": {"allowedNetworks": ["127.0.0.0/8"]}}
    served = model("grown", poolRef={"name": "guarded"})
    with guarded_store({"/verses/poet.gguf": data}) as url:
        pool["spec"]["sources"] = {"s3Endpoint": url}
        chain.apply(pool, served)
        try:
            chain.wait_condition("grown", "Ready", "True")
            plain = ask(chain, "grown")
            (before,) = [pod["metadata"]["uid"] for pod in chain.pods("grown")]
            source = {
                "uri": "s3://verses/poet.gguf",
                "sha256": hashlib.sha256(data).hexdigest(),
                "secretRef": {"name": "poets"},
            }
            served["spec"]["adapters"] = [{"name": "poet", "source": source}]
            chain.apply(served)
            said = wait_for(
                "a condition that names the Secret",
                lambda: found if "Secret 'poets'" in (found := cached(chain))["message"] else {},
                timeout=60,
            )
            assert said["status"] == "False"
            assert [pod["metadata"]["uid"] for pod in chain.pods("grown")] == [before]
            assert ask(chain, "grown") == plain
            keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "poets-secret"}
            chain.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": "poets", "namespace": "default"},
                    "stringData": keys,
                }
            )
            chain.wait_condition("grown", "Ready", "True", timeout=120)
            assert chain.get("im", "grown")["status"]["servedNames"] == ["grown", "poet"]
            assert ask(chain, "poet") != plain
            assert ask(chain, "grown") == plain
        finally:
            chain.delete("im", "grown")
            chain.delete("ipool", "guarded")
            chain.delete("secret", "poets")


def cached(chain: Chain) -> dict[str, Any]:
    return {"message": "", **chain.condition("grown", "ModelCached")}


def test_a_file_that_no_model_uses_any_more_leaves_the_disk(chain: Chain) -> None:
    pool = yaml.safe_load((ROOT / "examples/01-minimal/1-pool.yaml").read_text())
    pool["metadata"] = {"name": "tidy", "namespace": "default"}
    pool["spec"]["modelCache"]["deleteUnusedAfterSeconds"] = 1
    kept, gone = (model(name, poolRef={"name": "tidy"}) for name in ("kept", "gone"))
    gone["spec"] |= {"draft": {"uri": "demo://draft"}, "speculation": {"mode": "Draft"}}
    chain.apply(pool, kept, gone)
    try:
        chain.wait_condition("kept", "Ready", "True")
        chain.wait_condition("gone", "Ready", "True")
        draft = chain.get("im", "gone")["status"]["draft"]
        claim = chain.get("pvc", draft["claim"])
        folder = Path(chain.get("pv", claim["spec"]["volumeName"])["spec"]["local"]["path"])
        file = folder / draft["path"].removeprefix("/models/")
        assert file.stat().st_size == draft["fileBytes"]
        plain = ask(chain, "kept")
        chain.delete("im", "gone")
        wait_for("the draft's file to go", lambda: not file.exists(), timeout=60)

        def noted() -> list[str]:
            return [entry["digest"] for entry in chain.get("ipool", "tidy")["status"]["files"]]

        wait_for("the draft's note to go", lambda: draft["digest"] not in noted(), timeout=30)
        assert noted() == [chain.get("im", "kept")["status"]["model"]["digest"]]
        assert ask(chain, "kept") == plain
    finally:
        chain.delete("im", "kept", "gone")
        chain.delete("ipool", "tidy")
