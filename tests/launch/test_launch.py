"""The launch files: valid, they say how to be used, and they start torchrun with the arguments they were given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ("one_machine.sh", "several_machines.sh", "slurm.sbatch")
SEVERAL = {"NNODES": "2", "NPROC_PER_NODE": "3", "RDZV_ENDPOINT": "node0:29500"}


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python only prints its arguments, and whose srun and scontrol play a Slurm of two hosts."""
    for name, body in {
        "python": 'echo "$*"',
        "srun": 'shift; exec "$@"',
        "scontrol": "printf 'alpha\\nbeta\\n'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.toml").touch()
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}


def run(script: str, tools: dict[str, str], *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LAUNCH / script), *arguments], env=tools | settings, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash_and_executable(script: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_arguments_they_say_how_to_be_used(script: str, tools: dict[str, str]) -> None:
    done = run(script, tools)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "message"),
    [
        ("one_machine.sh", ("six", "job.toml"), {}, "RANKS must be a positive number, not 'six'"),
        ("one_machine.sh", ("0", "job.toml"), {}, "RANKS must be a positive number, not '0'"),
        ("one_machine.sh", ("6", "/no/such.toml"), {}, "'/no/such.toml' cannot be read"),
        ("several_machines.sh", ("job.toml",), {}, "NNODES must be a positive number, not ''"),
        ("several_machines.sh", ("job.toml",), SEVERAL | {"NPROC_PER_NODE": "x"}, "NPROC_PER_NODE must be a positive"),
        ("several_machines.sh", ("job.toml",), SEVERAL | {"RDZV_ENDPOINT": "node0"}, "RDZV_ENDPOINT must be HOST:PORT"),
        ("several_machines.sh", ("/no.toml",), SEVERAL, "'/no.toml' cannot be read"),
        ("slurm.sbatch", ("job.toml",), {}, "this is a batch file: submit it with sbatch"),
        ("slurm.sbatch", ("/no.toml",), {"SLURM_JOB_ID": "7"}, "'/no.toml' cannot be read"),
    ],
)
def test_a_wrong_argument_is_one_line_below_the_usage(
    script: str, arguments: tuple[str, ...], settings: dict[str, str], message: str, tools: dict[str, str]
) -> None:
    done = run(script, tools, *arguments, **settings)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"launch/{script}: {message}")


def test_node_rank_must_be_one_of_the_nodes(tools: dict[str, str], tmp_path: Path) -> None:
    done = run("several_machines.sh", tools, str(tmp_path / "job.toml"), **SEVERAL, NODE_RANK="2")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "launch/several_machines.sh: NODE_RANK must be 0 to NNODES - 1, not '2'",
    )


JOB = "-m hybrid_runtime.job"
TORCHRUN = "-m torch.distributed.run"
TWO_OF_THREE = f"{TORCHRUN} --nnodes 2 --nproc-per-node 3 --rdzv-backend c10d"


def test_one_machine_starts_torchrun(tools: dict[str, str], tmp_path: Path) -> None:
    file = str(tmp_path / "job.toml")
    done = run("one_machine.sh", tools, "6", file, "--quiet")
    assert done.stdout == f"{TORCHRUN} --standalone --nproc-per-node 6 {JOB} {file} --quiet\n"


@pytest.mark.parametrize(
    ("node_rank", "place"),
    [
        ("", ""),
        ("0", "--rdzv-conf is_host=true "),
        ("1", "--rdzv-conf is_host=false "),
    ],
)
def test_several_machines_start_torchrun(tools: dict[str, str], tmp_path: Path, node_rank: str, place: str) -> None:
    file = str(tmp_path / "job.toml")
    done = run("several_machines.sh", tools, file, **SEVERAL, NODE_RANK=node_rank)
    assert done.stdout == f"{TWO_OF_THREE} --rdzv-endpoint node0:29500 --rdzv-id hybrid-runtime {place}{JOB} {file}\n"


def test_slurm_starts_one_torchrun_per_host_with_the_first_as_rendezvous(tools: dict[str, str], tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_ID": "40007", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "alpha,beta"}
    file = str(tmp_path / "job.toml")
    done = run("slurm.sbatch", tools, file, **slurm, SLURM_GPUS_ON_NODE="3")
    assert (
        done.stdout
        == f"{TWO_OF_THREE} --rdzv-endpoint alpha:20007 --rdzv-id 40007 {JOB} {file} --run-folder runs/slurm-40007\n"
    )
    again = run(
        "slurm.sbatch", tools, file, "--resume", "auto", **slurm, SLURM_GPUS_ON_NODE="3", SLURM_RESTART_COUNT="2"
    )
    assert again.stdout.endswith(f"{file} --run-folder runs/slurm-40007-requeued2 --resume auto\n"), (
        "a folder of its own"
    )
    assert "set NPROC_PER_NODE" in run("slurm.sbatch", tools, file, **slurm).stderr


def test_the_train_job_has_what_kubeflow_requires() -> None:
    job: dict[str, Any] = yaml.safe_load((LAUNCH / "kubeflow_trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["metadata"]["name"]
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": "torch-distributed",
    }  # fmt: skip
    trainer = job["spec"]["trainer"]
    assert trainer["command"][:3] == ["torchrun", "-m", "hybrid_runtime.job"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(trainer["numProcPerNode"])
    assert all(isinstance(variable["value"], str) for variable in trainer["env"])
