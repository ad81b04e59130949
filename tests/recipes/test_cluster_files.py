"""The ready files under `recipes/cluster`: each is what its own tool reads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tunewright.core import compat, launched
from tunewright.core.runfile import load_run

CLUSTER = Path(__file__).resolve().parents[2] / "recipes" / "cluster"

TRAIN_JOB: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "trainer.kubeflow.org/v1alpha1"},
        "kind": {"const": "TrainJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["runtimeRef"],
            "properties": {
                "runtimeRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {n: {"type": "string"} for n in ("name", "apiGroup", "kind")},
                },
                "initializer": {"type": "object"},
                "trainer": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "string"},
                        "command": {"type": "array", "items": {"type": "string"}},
                        "args": {"type": "array", "items": {"type": "string"}},
                        "env": {"type": "array"},
                        "numNodes": {"type": "integer"},
                        "resourcesPerNode": {"type": "object"},
                        "numProcPerNode": {"type": ["integer", "string"]},
                    },
                },
                "labels": {"type": "object"},
                "annotations": {"type": "object"},
                "podTemplateOverrides": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["targetJobs"],
                        "properties": {
                            "targetJobs": {"type": "array", "minItems": 1},
                            "metadata": {"type": "object"},
                            "spec": {"type": "object"},
                        },
                    },
                },
                "suspend": {"type": "boolean"},
                "managedBy": {"type": "string"},
            },
        },
    },
}
"""The fields of TrainJob, from the trainer's API (pkg/apis/trainer/v1alpha1/trainjob_types.go)."""
TASK: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "workdir": {"type": "string"},
        "num_nodes": {"type": "integer"},
        "resources": {"type": "object"},
        "envs": {"type": "object"},
        "secrets": {"type": "object"},
        "file_mounts": {"type": "object"},
        "volumes": {"type": "object"},
        "setup": {"type": "string"},
        "run": {"type": "string"},
        "config": {"type": "object"},
    },
}
"""The fields of a SkyPilot task (sky/utils/schemas.py)."""


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def test_the_run_file_loads_for_any_number_of_processes() -> None:
    for number in (2, 8, "auto"):
        parsed = load_run(CLUSTER / "run.yaml", [f"engine.processes={number}"])
        assert compat.problems(parsed.config) == []


def test_the_train_job_has_the_fields_of_its_kind() -> None:
    job = read("trainjob.yaml")
    jsonschema.validate(job, TRAIN_JOB)
    assert "tunewright" in job["spec"]["trainer"]["command"]


def test_the_task_has_the_fields_of_skypilot_and_its_script_is_shell() -> None:
    task = read("skypilot.yaml")
    jsonschema.validate(task, TASK)
    checked(task["run"])
    checked(task["setup"])


def test_the_scripts_are_shell_and_slurm_knows_their_options() -> None:
    for name in ("torchrun.sh", "slurm.sbatch"):
        checked((CLUSTER / name).read_text(encoding="utf-8"))
    text = (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, flags=re.M))
    known = {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal",
        "requeue", "output",
    }  # fmt: skip
    assert set(options) <= known
    # One task a GPU: what the variables of srun then say is understood.
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    said = {
        "SLURM_STEP_NUM_TASKS": str(nodes * tasks),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_JOB_ID": "4711",
    }
    place = launched.here(said)
    assert place is not None
    assert (place.rank, place.world, place.local, place.local_world) == (9, 16, 1, 8)
    assert (place.address, place.hosts) == ("gpu07", 2)


def checked(script: str) -> None:
    """The shell reads it without running it."""
    shell = shutil.which("bash")
    assert shell is not None
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
