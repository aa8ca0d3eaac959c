"""launch/*.yaml contain topology only."""

import jsonschema
import pytest
import yaml
from launching import FILES, LAUNCH

TOPOLOGY = {
    "type": "object",
    "required": ["compute_environment", "distributed_type", "num_machines", "num_processes"],
    "additionalProperties": False,
    "properties": {
        "compute_environment": {"const": "LOCAL_MACHINE"},
        "distributed_type": {"enum": ["NO", "MULTI_GPU", "FSDP", "DEEPSPEED"]},
        "mixed_precision": {"const": "no"},  # the recipe's
        "use_cpu": {"type": "boolean"},
        "gpu_ids": {"type": "string"},
        "num_machines": {"type": "integer", "minimum": 1},
        "num_processes": {"type": "integer", "minimum": 1},
        "machine_rank": {"const": 0},
        "main_process_ip": {"type": "string"},
        "main_process_port": {"type": "integer"},
        "rdzv_backend": {"enum": ["static", "c10d"]},
        "same_network": {"type": "boolean"},
        "fsdp_config": {
            "additionalProperties": False,
            "required": ["fsdp_version"],
            "properties": {"fsdp_version": {"const": 2}},
        },
        "deepspeed_config": {
            "additionalProperties": False,
            "required": ["zero_stage", "deepspeed_multinode_launcher"],
            "properties": {
                "zero_stage": {"enum": [1, 2, 3]},
                "deepspeed_multinode_launcher": {"const": "standard"},
                "offload_optimizer_device": {"const": "cpu"},
                "offload_param_device": {"const": "cpu"},
            },
        },
    },
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_topology_and_nothing_else(file):
    content = yaml.safe_load((LAUNCH / f"{file}.yaml").read_text())
    jsonschema.validate(content, TOPOLOGY)
    assert (content["num_machines"] > 1) == ("_nodes" in file)
    assert f"`{file}.yaml`" in (LAUNCH / "README.md").read_text()
