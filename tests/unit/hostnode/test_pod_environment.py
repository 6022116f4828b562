"""What the processes of a pod see: variables, arguments, files."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.host_pods import container, pod
from terrace.local.pods.ports import StaticSources, Token

if TYPE_CHECKING:
    from support.host_pods import Bench

SOURCES = StaticSources(
    config_maps={"settings": {"color": b"green", "size": b"7"}},
    secrets={"keys": {"password": b"open sesame"}},
)


async def test_variables_reach_the_process_and_refer_to_earlier_ones(bench: Bench) -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2 $(NO) $$(A)"}]
    one = await bench.run(pod(container('echo "$B"', env=env)))
    assert await one.logs() == "12 $(NO) $(A)\n"


async def test_arguments_and_command_are_expanded(bench: Bench) -> None:
    env = [{"name": "WORD", "value": "hello"}]
    command = ["/bin/echo", "$(WORD)"]
    one = await bench.run(pod(container(command=command, args=["$(WORD)", "$$(WORD)"], env=env)))
    assert await one.logs() == "hello hello $(WORD)\n"


async def test_the_downward_api_tells_a_container_about_its_pod(bench: Bench) -> None:
    paths = {
        "NAME": "metadata.name",
        "LABEL": "metadata.labels['app']",
        "IP": "status.podIP",
        "NODE": "spec.nodeName",
        "HOST": "status.hostIP",
        "ACCOUNT": "spec.serviceAccountName",
    }
    env = [{"name": k, "valueFrom": {"fieldRef": {"fieldPath": v}}} for k, v in paths.items()]
    manifest = pod(container('echo "$NAME $LABEL $IP $NODE $HOST $ACCOUNT"', env=env))
    manifest["metadata"]["labels"] = {"app": "demo"}
    one = await bench.run(manifest)
    name, ip = manifest["metadata"]["name"], one.status["podIP"]
    assert await one.logs() == f"{name} demo {ip} bench 127.0.0.1 default\n"


async def test_resource_fields_are_numbers_in_units_of_their_divisor(bench: Bench) -> None:
    def variable(name: str, resource: str, divisor: str) -> dict[str, object]:
        reference = {"resource": resource, "divisor": divisor}
        return {"name": name, "valueFrom": {"resourceFieldRef": reference}}

    env = [
        variable("MEMORY", "limits.memory", "1Mi"),
        variable("CPU", "requests.cpu", "1m"),
        variable("NODE_CPU", "limits.cpu", "1"),
    ]
    resources = {"limits": {"memory": "1Gi"}, "requests": {"cpu": "250m"}}
    manifest = pod(container('echo "$MEMORY $CPU $NODE_CPU"', env=env, resources=resources))
    one = await bench.run(manifest, allocatable={"cpu": "8"})
    assert await one.logs() == "1024 250 8\n"


async def test_config_maps_and_secrets_become_variables(bench: Bench) -> None:
    env = [
        {"name": "P", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {
            "name": "NONE",
            "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y", "optional": True}},
        },
    ]
    env_from = [
        {"prefix": "S_", "configMapRef": {"name": "settings"}},
        {"secretRef": {"name": "absent", "optional": True}},
    ]
    script = 'echo "$P/$S_color/$S_size/${NONE-unset}"'
    one = await bench.run(pod(container(script, env=env, envFrom=env_from)), SOURCES)
    assert await one.logs() == "open sesame/green/7/unset\n"


async def test_a_missing_config_map_holds_the_container_back_and_says_so(bench: Bench) -> None:
    one = bench.start(pod(container("true", envFrom=[{"configMapRef": {"name": "absent"}}])))
    await one.until("it waits", lambda: "waiting" in one.container()["state"] and one.events)
    waiting = one.container()["state"]["waiting"]
    assert waiting["reason"] == "CreateContainerConfigError"
    assert waiting["message"] == 'configmap "absent" not found'
    assert ("Failed", 'Error: configmap "absent" not found') in one.events


async def test_volumes_lie_below_the_pod_root_at_their_mount_paths(
    bench: Bench, tmp_path: Path
) -> None:
    host, claimed = tmp_path / "host", tmp_path / "claimed"
    for folder in (host, claimed):
        folder.mkdir()
    (host / "file").write_text("from the host")
    volumes = [
        {"name": "config", "configMap": {"name": "settings", "defaultMode": 0o400}},
        {
            "name": "secret",
            "secret": {"secretName": "keys", "items": [{"key": "password", "path": "deep/pw"}]},
        },
        {"name": "host", "hostPath": {"path": str(host)}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    mounts = [
        {"name": "config", "mountPath": "/etc/app"},
        {"name": "secret", "mountPath": "/etc/keys"},
        {"name": "host", "mountPath": "/host"},
        {"name": "data", "mountPath": "/data", "subPath": "part"},
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "config", "mountPath": "/scratch/one-file", "subPath": "color"},
    ]
    script = (
        'cd "$TERRACE_POD_ROOT"; cat etc/app/color etc/keys/deep/pw host/file scratch/one-file;'
        "echo kept > data/file; echo; stat -L -c %a etc/app/color"
    )
    sources = StaticSources(SOURCES.config_maps, SOURCES.secrets, claims={"data": claimed})
    manifest = pod(container(script, volumeMounts=mounts), volumes=volumes)
    one = await bench.run(manifest, sources)
    assert await one.logs() == "greenopen sesamefrom the hostgreen\n400\n"
    one.runner.remove()
    assert (claimed / "part" / "file").read_text() == "kept\n"
    assert not one.root().exists()


async def test_init_and_main_containers_share_an_empty_dir(bench: Bench) -> None:
    mounts = [{"name": "scratch", "mountPath": "/scratch"}]
    first = container('echo hi > "$TERRACE_POD_ROOT/scratch/f"', name="i", volumeMounts=mounts)
    second = container('cat "$TERRACE_POD_ROOT/scratch/f"', volumeMounts=mounts)
    volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]
    one = await bench.run(pod(second, initContainers=[first], volumes=volumes))
    assert await one.logs() == "hi\n"
    assert "emptyDir.sizeLimit is not enforced: scratch" in [text for _, text in one.events]


async def test_a_projected_volume_joins_token_config_and_downward_files(bench: Bench) -> None:
    parts = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
        {"configMap": {"name": "settings", "items": [{"key": "color", "path": "c"}]}},
        {
            "downwardAPI": {
                "items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = f'cd "$TERRACE_POD_ROOT{folder}"; cat token c ns'
    mounts = [{"name": "p", "mountPath": folder, "readOnly": True}]
    volumes = [{"name": "p", "projected": {"sources": parts}}]
    sources = StaticSources(
        SOURCES.config_maps, tokens={"default": Token("a.b.c", time.time() + 600)}
    )
    one = await bench.run(pod(container(script, volumeMounts=mounts), volumes=volumes), sources)
    assert await one.logs() == "a.b.cgreendefault"


async def test_a_changed_config_map_reaches_the_files_of_a_running_pod(bench: Bench) -> None:
    config = {"settings": {"color": b"green", "old": b"1"}}
    mounts = [{"name": "v", "mountPath": "/v"}]
    volumes = [{"name": "v", "configMap": {"name": "settings"}}]
    manifest = pod(container(volumeMounts=mounts), volumes=volumes)
    one = bench.start(manifest, StaticSources(config), refresh_s=0.05)
    await one.until("it runs", lambda: one.status["phase"] == "Running")
    file = one.root() / "v" / "color"
    assert file.read_text() == "green"
    config["settings"] = {"color": b"blue", "new": b"2"}
    await one.until("the file changed", lambda: file.read_text() == "blue")
    names = {path.name for path in (one.root() / "v").iterdir() if path.name[0] != "."}
    assert names == {"color", "new"}


async def test_a_missing_claim_holds_the_pod_and_is_told_once_it_is_there(
    bench: Bench, tmp_path: Path
) -> None:
    claims: dict[str, Path] = {}
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    mounts = [{"name": "d", "mountPath": "/data"}]
    manifest = pod(container("true", volumeMounts=mounts), volumes=volumes)
    one = bench.start(manifest, StaticSources(claims=claims))
    await one.until("it says why", lambda: "FailedMount" in one.reasons())
    assert one.message_of("FailedMount") == (
        'MountVolume.SetUp failed for volume "d": persistentvolumeclaim "data" not found'
    )
    assert one.container()["state"]["waiting"]["reason"] == "ContainerCreating"
    claims["data"] = tmp_path
    assert (await one.over())["phase"] == "Succeeded"


async def test_a_sub_path_cannot_leave_its_volume(bench: Bench) -> None:
    mounts = [{"name": "v", "mountPath": "/v", "subPath": "../../.."}]
    manifest = pod(container(volumeMounts=mounts), volumes=[{"name": "v", "emptyDir": {}}])
    one = bench.start(manifest)
    await one.until("it refuses", lambda: "Failed" in one.reasons())
    assert "subPath '../../..' leaves volume 'v'" in one.message_of("Failed")


async def test_a_sub_path_expression_is_expanded_and_its_folder_made(
    bench: Bench, tmp_path: Path
) -> None:
    claimed = tmp_path / "claimed"
    claimed.mkdir()
    env = [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    mounts = [{"name": "d", "mountPath": "/data", "subPathExpr": "logs/$(NAME)"}]
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    script = 'echo x > "$TERRACE_POD_ROOT/data/f"'
    manifest = pod(container(script, env=env, volumeMounts=mounts), volumes=volumes)
    await bench.run(manifest, StaticSources(claims={"data": claimed}))
    assert (claimed / "logs" / manifest["metadata"]["name"] / "f").read_text() == "x\n"


async def test_a_mount_inside_a_claim_is_refused_as_others_share_the_claim(
    bench: Bench, tmp_path: Path
) -> None:
    volumes = [
        {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "e", "emptyDir": {}},
    ]
    mounts = [{"name": "d", "mountPath": "/data"}, {"name": "e", "mountPath": "/data/in"}]
    manifest = pod(container(volumeMounts=mounts), volumes=volumes)
    one = bench.start(manifest, StaticSources(claims={"data": tmp_path}))
    await one.until("it refuses", lambda: "Failed" in one.reasons())
    assert "/data/in lies inside /data" in one.message_of("Failed")
    assert not (tmp_path / "in").exists()


async def test_the_temporary_folder_is_empty_short_and_gone_afterwards(bench: Bench) -> None:
    script = 'ls -A "$TMPDIR" "$TERRACE_POD_ROOT/tmp/"; touch "$TMPDIR/left"; echo "$TMPDIR"'
    one = await bench.run(pod(container(script)))
    *listing, folder = (await one.logs()).splitlines()
    assert not [line for line in listing if line and not line.endswith(":")]
    assert len(folder) < 40
    assert not await asyncio.to_thread(Path(folder).exists)


async def test_an_unsupported_volume_is_named(bench: Bench) -> None:
    one = bench.start(pod(container(), volumes=[{"name": "n", "nfs": {"server": "x"}}]))
    await one.until("it refuses", lambda: "FailedMount" in one.reasons())
    assert 'volume "n": the host node has no nfs volumes' in one.message_of("FailedMount")


async def test_the_working_directory_lies_below_the_pod_root(bench: Bench) -> None:
    one = await bench.run(pod(container("pwd", workingDir="/srv/app")))
    assert await one.logs() == f"{one.root()}/srv/app\n"


async def test_secrets_of_the_agent_do_not_reach_the_pod(bench: Bench) -> None:
    one = await bench.run(pod(container("env")), env={"KUBERNETES_SERVICE_PORT": "6443"})
    seen = dict(line.partition("=")[::2] for line in (await one.logs()).splitlines())
    assert set(seen) <= {
        *("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "PWD", "SHLVL", "_"),
        *("HOSTNAME", "HOME", "TMPDIR", "TERRACE_POD_ROOT", "KUBERNETES_SERVICE_PORT", "OLDPWD"),
    }
    assert seen["KUBERNETES_SERVICE_PORT"] == "6443"
    assert seen["TERRACE_POD_ROOT"] == str(one.root())


async def test_binary_keys_survive_as_files(bench: Bench) -> None:
    content = bytes(range(256))
    sources = StaticSources(config_maps={"b": {"bin": content}})
    mounts = [{"name": "v", "mountPath": "/v"}]
    script = 'base64 -w0 "$TERRACE_POD_ROOT/v/bin"'
    volumes = [{"name": "v", "configMap": {"name": "b"}}]
    one = await bench.run(pod(container(script, volumeMounts=mounts), volumes=volumes), sources)
    assert base64.b64decode(await one.logs()) == content


async def test_labels_as_a_file_are_quoted_lines(bench: Bench) -> None:
    items = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    mounts = [{"name": "v", "mountPath": "/v"}]
    manifest = pod(
        container('cat "$TERRACE_POD_ROOT/v/labels"', volumeMounts=mounts),
        volumes=[{"name": "v", "downwardAPI": {"items": items}}],
    )
    manifest["metadata"]["labels"] = {"b": 'say "x"', "a": "1"}
    one = await bench.run(manifest)
    assert await one.logs() == "a=" + json.dumps("1") + "\nb=" + json.dumps('say "x"')
