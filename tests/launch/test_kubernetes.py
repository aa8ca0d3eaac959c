"""Templates of launch/kubernetes/."""

import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from launching import LAUNCH, ROOT, launched


def fields(required="", **properties):
    """Require an object with these fields only, like the API server's strict validation."""
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


def each(items):
    return {"type": "array", "minItems": 1, "items": items}


# Fields of each kind, as far as the templates use them: kubeflow/trainer
# pkg/apis/trainer/v1alpha1 (v2.2), kubeflow/training-operator pkg/apis/kubeflow.org/v1,
# kubernetes-sigs/jobset api/jobset/v1alpha2, and core/v1.
TEXT, NUMBER, MAP = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
ENV = each(fields("name value", name=TEXT, value=TEXT))
RESOURCES = fields(limits=MAP, requests=MAP)
CONTAINER = fields(
    "name image volumeMounts",
    name=TEXT,
    image=TEXT,
    resources=RESOURCES,
    env=ENV,
    command=each(TEXT),
    args=each(TEXT),
    volumeMounts=each(fields("name mountPath", name=TEXT, mountPath=TEXT)),
)
POD = fields(
    "containers volumes terminationGracePeriodSeconds",
    terminationGracePeriodSeconds={"type": "integer", "minimum": 60},
    restartPolicy={"enum": ["Never", "OnFailure"]},
    volumes=each(
        fields(
            "name",
            name=TEXT,
            persistentVolumeClaim=fields("claimName", claimName=TEXT),
            emptyDir=fields(medium={"const": "Memory"}),
        )
    ),
    containers=each(CONTAINER),
)
JOB = fields(
    "template",
    completionMode={"const": "Indexed"},
    completions=NUMBER,
    parallelism=NUMBER,
    backoffLimit=NUMBER,
    template=fields("spec", spec=POD),
)
JOBSET = fields(
    "replicatedJobs failurePolicy",
    network=fields(enableDNSHostnames={"type": "boolean"}),
    failurePolicy=fields(maxRestarts=NUMBER),
    replicatedJobs=each(
        fields(
            "name template",
            name=TEXT,
            replicas=NUMBER,
            template=fields("spec", metadata=fields(labels=MAP), spec=JOB),
        )
    ),
)
REPLICA = fields(
    "replicas restartPolicy template",
    replicas=NUMBER,
    restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    template=fields("spec", spec=POD),
)


def kind(version, name, spec):
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": name},
        metadata=fields("name", name=TEXT),
        spec=spec,
    )


KINDS = {
    "TrainingRuntime": kind(
        "trainer.kubeflow.org/v1alpha1",
        "TrainingRuntime",
        fields(
            "mlPolicy template",
            mlPolicy=fields(numNodes=NUMBER, torch=fields()),
            template=fields("spec", spec=JOBSET),
        ),
    ),
    "TrainJob": kind(
        "trainer.kubeflow.org/v1alpha1",
        "TrainJob",
        fields(
            "runtimeRef trainer",
            runtimeRef=fields("name", name=TEXT, kind=TEXT, apiGroup=TEXT),
            trainer=fields(
                image=TEXT,
                numNodes=NUMBER,
                numProcPerNode=NUMBER,
                resourcesPerNode=RESOURCES,
                env=ENV,
                command=each(TEXT),
                args=each(TEXT),
            ),
        ),
    ),
    "PyTorchJob": kind(
        "kubeflow.org/v1",
        "PyTorchJob",
        fields("pytorchReplicaSpecs", pytorchReplicaSpecs=fields(Master=REPLICA, Worker=REPLICA)),
    ),
    "JobSet": kind("jobset.x-k8s.io/v1alpha2", "JobSet", JOBSET),
}
TEMPLATES = ["trainjob", "pytorchjob", "jobset"]


def read_template(name):
    return list(yaml.safe_load_all((LAUNCH / "kubernetes" / f"{name}.yaml").read_text()))


def found(value, key):
    """Collect all values under a key in a nested value."""
    if isinstance(value, dict):
        yield from [value[key]] if key in value else []
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from found(part, key)


def scripts(value):
    """Return the shell lines of a template's containers."""
    if isinstance(value, dict):
        if value.get("command") == ["bash", "-c"]:
            yield value["args"][0]
        for part in value.values():
            yield from scripts(part)
    elif isinstance(value, list):
        for part in value:
            yield from scripts(part)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_kubernetes_template_fits_its_kinds(name):
    documents = read_template(name)
    for document in documents:
        jsonschema.validate(document, KINDS[document["kind"]])
    # Launchers give ranks almost the pod's whole grace period to stop.
    (grace,) = set(found(documents, "terminationGracePeriodSeconds"))
    variables = {v["name"]: v["value"] for env in found(documents, "env") for v in env}
    assert grace - 60 <= int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace
    mounted = {mount["name"] for mounts in found(documents, "volumeMounts") for mount in mounts}
    assert mounted == {one["name"] for volumes in found(documents, "volumes") for one in volumes}


def test_the_trainjob_runs_its_own_runtime():
    runtime, job = read_template("trainjob")
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], **runtime["metadata"]}
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = node["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_kubernetes_template_starts_the_right_node(name, stubs):
    content = read_template(name)
    stubs.add("accelerate")
    environment = {
        "trainjob": {
            **{"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "PET_NODE_RANK": "1"},
            **{"PET_MASTER_ADDR": "first", "PET_MASTER_PORT": "29500"},
        },
        "pytorchjob": {
            **{"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
        },
        "jobset": {"NODES": "2", "JOB_COMPLETION_INDEX": "1"},
    }[name]
    lines = list(scripts(content))
    assert lines
    for script in lines:
        subprocess.run(
            ["bash", "-c", script], env={"PATH": stubs.path, **environment}, check=True, cwd=ROOT
        )
    for call in stubs.calls("accelerate"):
        assert "--resume" in call
        options, config = launched(call)
        # Otherwise a stop would end with status 0 and the job would count as done.
        assert options["max_restarts"] == "0"
        assert options["num_machines"] == "2"
        assert options["num_processes"] == "16"
        assert options["machine_rank"] == "1"
        assert options["main_process_port"] == "29500"
        assert options["main_process_ip"] in ("first", "adde-node-0-0.adde")
        assert config.run == Path("/runs/paper")
    # The first pod's name in a JobSet.
    if name == "jobset":
        (jobset,) = content
        job = jobset["spec"]["replicatedJobs"][0]["name"]
        assert f"{jobset['metadata']['name']}-{job}-0-0" in lines[0]
