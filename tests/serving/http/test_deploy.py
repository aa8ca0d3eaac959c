"""Dockerfile and manifests, compared with the program's flags and paths."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from adde.serving.http import ray_serve
from adde.serving.http.cards import Cards
from adde.serving.http.settings import Settings
from adde.serving.onnx import cores

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "serve_onnx" / "Dockerfile").read_text()
DEPLOYMENT, SERVICE = yaml.safe_load_all((ROOT / "launch/kubernetes/server.yaml").read_text())
RAY = yaml.safe_load((ROOT / "launch" / "ray_serve.yaml").read_text())
UVICORN_MORE = 2
"""Seconds allowed for the process after the deadline of the last request."""


def instruction(name):
    """The last instruction of that name, with continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name}\s+(.+)$", joined, re.MULTILINE)[-1].strip()


def started(monkeypatch, words):
    """The arguments with which serve_onnx/server.py calls `serve`, given these words."""
    called = []
    monkeypatch.setattr("adde.serving.http.server.serve", lambda *given: called.append(given))
    monkeypatch.setattr(sys, "argv", ["server.py", *words])
    runpy.run_path(str(ROOT / "serve_onnx" / "server.py"), run_name="__main__")
    return called[0]


def paths():
    """The app's paths."""
    from adde.serving.http.routes import router

    return {route.path for route in router.routes}


@pytest.fixture
def pod():
    return DEPLOYMENT["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    (only,) = pod["containers"]
    return only


def test_the_image_starts_the_program_with_flags_it_has(monkeypatch):
    program, *words = json.loads(instruction("ENTRYPOINT"))[1:]
    assert program == "/app/server.py"
    assert "serve_onnx/server.py" in instruction("COPY") and instruction("COPY").endswith("/app/")
    source, settings, host, port, key_file, require_key, allow_host, cards = started(
        monkeypatch, words
    )
    assert [str(source.bundle), str(source.gallery)] == json.loads(instruction("VOLUME"))
    # Off loopback keys are required by default.
    assert (host, key_file, require_key) == ("0.0.0.0", None, None)
    assert not allow_host  # probes and load balancers use addresses not known in advance
    assert (settings, cards) == (Settings(), Cards())
    assert port == int(instruction("EXPOSE"))


def test_the_image_is_not_root_and_has_a_health_check_and_its_files():
    user, group = map(int, instruction("USER").split(":"))
    assert user and group
    check = instruction("HEALTHCHECK")
    address = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)'", check)
    assert (address[1], address[2]) == (instruction("EXPOSE"), "/healthz")
    assert address[2] in paths()
    compile(json.loads(check[check.index("CMD ") + 4 :])[2], "check", "exec")
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    ignored = (ROOT / "serve_onnx" / "Dockerfile.dockerignore").read_text().split()
    assert {"!adde", "!serve_onnx", "!pyproject.toml", "!README.md", "!LICENSE"} < set(ignored)


def test_the_image_holds_no_torch():
    (install,) = re.findall(r"pip install .+", DOCKERFILE)
    assert "/src[serve]" in install and "torch" not in install
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    assert not [name for name in wanted if name.startswith(("torch", "timm", "accelerate"))]


def test_the_deployment_starts_the_image_with_flags_it_has(monkeypatch, pod, container):
    words = json.loads(instruction("ENTRYPOINT"))[2:] + container["args"]
    source, settings, _, port, key_file, *_ = started(monkeypatch, words)
    longest = settings.drain_seconds + settings.deadline_seconds + UVICORN_MORE
    assert pod["terminationGracePeriodSeconds"] > longest
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {str(source.bundle), str(source.gallery)} < set(mounts)
    assert source.pictures in mounts
    assert all(mounts[path]["readOnly"] for path in mounts if path != "/tmp")
    assert str(key_file.parent) in mounts
    assert {mount["name"] for mount in mounts.values()} == {v["name"] for v in pod["volumes"]}
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    assert source.threads == settings.threads
    assert settings.decoders <= int(container["resources"]["limits"]["cpu"])
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert 1.2 * settings.queue * settings.max_bytes < memory / 2  # see serving_operations.md
    # Load balancers see that it is not ready before the listener closes.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.drain_seconds


def test_examples_of_containers_mount_the_pictures():
    for text in (DOCKERFILE, (ROOT / "docs" / "serving_deployment.md").read_text()):
        (example,) = re.findall(r"docker run -p 8000(?:.*\\\n)+.*", text)
        (mounted,) = re.findall(r"-v \$PWD/data/shop:(\S+):ro", example)
        assert example.endswith(f"adde-server --pictures {mounted}")


def test_probes_ask_paths_that_need_no_key(container):
    from adde.serving.http.requests.middleware import needs_key

    asked = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    for path in asked.values():
        assert path in paths() and not needs_key(path)
    assert {container[f"{n}Probe"]["httpGet"]["port"] for n in asked} == {"http"}


def test_the_pod_is_not_root_and_the_service_finds_it(pod, container):
    user = int(instruction("USER").split(":")[0])
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (
        True,
        user,
    )
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert instruction("ENV").endswith("XDG_CACHE_HOME=/tmp/cache")  # the only writable place
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["ports"][0]["targetPort"] == "http"


def test_ray_serves_the_limits_that_the_server_has():
    (application,) = RAY["applications"]
    (deployment,) = application["deployments"]
    settings = Settings(**application["args"]["limits"])
    # Otherwise Ray would retry a replica's 429 forever.
    assert deployment["max_ongoing_requests"] > settings.queue
    assert deployment["max_queued_requests"] > 0
    assert deployment["graceful_shutdown_timeout_s"] > settings.deadline_seconds
    assert RAY["http_options"]["request_timeout_s"] > settings.deadline_seconds
    assert deployment["autoscaling_config"]["target_ongoing_requests"] < settings.queue


def test_a_ray_replica_has_as_many_threads_and_decoders_as_it_has_cores(monkeypatch):
    (application,) = RAY["applications"]
    assigned = {"CPU": 1.5, "GPU": 1.0}

    class Ray:
        @staticmethod
        def get_runtime_context():
            return Ray

        @staticmethod
        def get_assigned_resources():
            return assigned

    monkeypatch.setitem(sys.modules, "ray", Ray)
    arguments = ray_serve.Arguments(**application["args"])
    settings = ray_serve.settings_of(arguments, ray_serve.assigned_cores())
    assert (settings.threads, settings.decoders, settings.queue) == (2, 2, 256)
    arguments.limits["threads"] = 5
    assert ray_serve.settings_of(arguments, ray_serve.assigned_cores()).threads == 5
    assigned.clear()
    assert ray_serve.assigned_cores() is None


def test_a_quota_counts_as_cores_of_all_groups_around(monkeypatch, tmp_path):
    inner = tmp_path / "groups" / "pod" / "container"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:cpu:/old\n0::/pod/container\n")
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "OWN_GROUP", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores.cores() == 8
    (inner / "cpu.max").write_text("max 100000\n")
    assert cores.cores() == 8
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    assert cores.cores() == 3
    (inner / "cpu.max").write_text("20000 100000\n")
    assert cores.cores() == 1
    (inner / "cpu.max").write_text("9900000 100000\n")
    own.unlink()
    assert cores.cores() == 8


@pytest.mark.slow
def test_under_ray_serve_the_app_answers_as_the_server(tmp_path, tiny_bundle, tiny_gallery, server):
    """launch/ray_serve.yaml itself, with this bundle, this port and one replica."""
    pytest.importorskip("ray.serve", reason="ray is not installed: pip install 'adde[ray]'")
    content = json.loads(json.dumps(RAY))
    content["http_options"] |= {"host": "127.0.0.1", "port": 18_734}
    (application,) = content["applications"]
    application["args"] |= {"bundle": str(tiny_bundle), "gallery": str(tiny_gallery)}
    del application["args"]["pictures"]
    application["deployments"][0]["ray_actor_options"]["num_cpus"] = 1
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(content))
    key = "a-key-of-some-length"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "ADDE_API_KEYS": f"shop: {key}", "PYTHONPATH": path}
    environment |= {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(Path(sys.executable).with_name("serve")), "run", str(tmp_path / "serve.yaml")]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    url = "http://127.0.0.1:18734"
    try:
        wait_until_ready(url, process, log)
        asked = {"item": "test-000000-003", "edits": {"colour": "red"}, "k": 6}
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(f"{url}/v1/search", json=asked).status_code == 401
        found = httpx.post(f"{url}/v1/search", json=asked, headers=headers)
        assert found.status_code == 200
        assert found.json() == httpx.post(f"{server.url}/v1/search", json=asked).json()
        assert httpx.get(f"{url}/").headers["content-security-policy"]
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(url, process, log):
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())
