"""The Kubernetes and Slurm files against what their systems accept, so that a typing error is found here.

Both descriptions are written from public documentation, in part: what the files use, closed against the rest.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml  # type: ignore[import-untyped]

LAUNCH = Path(__file__).parents[2] / "launch"
TRAINJOB: dict[str, Any] = yaml.safe_load((LAUNCH / "kubeflow_trainjob.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "trainjob.schema.json").read_text())
BATCH = (LAUNCH / "slurm.sbatch").read_text()

# Long options of sbatch (https://slurm.schedmd.com/sbatch.html, Slurm 23.02), those that a batch file may state.
_LISTED = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution
    error exclude exclusive export export-file extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input job-name kill-on-invalid-dep licenses
    mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile
    nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output overcommit
    oversubscribe parsable partition power prefer priority profile propagate qos quiet reboot requeue reservation signal
    sockets-per-node spread-job switches test-only thread-spec threads-per-core time time-min tmp tres-per-task uid
    use-min-nodes verbose wait wait-all-nodes wckey
"""
SBATCH_OPTIONS = set(_LISTED.split())
FORMS = {  # of the values that the file states
    "job-name": r"[\w.-]+",
    "nodes": r"[1-9]\d*(-[1-9]\d*)?",
    "ntasks-per-node": r"1",  # torchrun starts the ranks
    "gpus-per-node": r"(\w+:)?[1-9]\d*",
    "cpus-per-task": r"[1-9]\d*",
    "time": r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}",
    "output": r"([\w./-]|%[%AaJjNnstuxb])+",
    "signal": r"((R|B|RB):)?(\d+|[A-Z]+[12]?)(@\d{1,5})?",
}


def directives() -> dict[str, str]:
    """The file's own options. sbatch reads them until the first line that is neither comment nor empty."""
    found = re.findall(r"^#SBATCH (.*)$", BATCH.partition("\nset ")[0], re.MULTILINE)
    matches = [re.fullmatch(r"--([a-z-]+)=(\S+)", line) for line in found]
    assert all(matches), found
    return {match[1]: match[2] for match in matches if match}


def test_the_train_job_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(TRAINJOB, SCHEMA)


PATCH = ("spec", "runtimePatches", 0)
POD = (*PATCH, "trainingRuntimeSpec", "template", "spec", "replicatedJobs", 0, "template", "spec", "template", "spec")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("apiVersion",), "trainer.kubeflow.org/v1"),
        (("metadata", "name"), "Hybrid_Runtime"),
        (("spec", "podTemplateOverrides"), []),  # until Trainer 2.1
        (("spec", "trainer", "numProcPerNode"), "3"),
        (("spec", "trainer", "numNode"), 2),
        (("spec", "trainer", "env", 0, "value"), 1),
        (("spec", "trainer", "resourcesPerNode", "requests", "memory"), "96 GB"),
        ((*PATCH, "manager"), ""),
        ((*POD, "containers", 0, "volumeMounts", 0, "mountPath"), "runs"),
        ((*POD, "volumes", 0, "persistentVolumeClaim", "claim"), "x"),
    ],
)
def test_a_mistake_in_it_would_be_found(place: tuple[str | int, ...], value: object) -> None:
    job: Any = copy.deepcopy(TRAINJOB)
    inner = job
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_the_run_folder_is_on_the_volume_that_all_nodes_mount() -> None:
    pod: Any = TRAINJOB
    for key in POD:
        pod = pod[key]
    command = TRAINJOB["spec"]["trainer"]["command"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert command[command.index("--run-folder") + 1].startswith(f"{mount['mountPath']}/")
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]


def test_sbatch_knows_every_option_and_its_form() -> None:
    stated = directives()
    assert stated.keys() <= SBATCH_OPTIONS
    assert {name: value for name, value in stated.items() if not re.fullmatch(FORMS[name], value)} == {}
    assert BATCH.count("#SBATCH ") == len(stated), "an option behind the first command would be ignored"


def test_the_ranks_hear_of_the_end_before_slurm_kills_them() -> None:
    """SIGTERM goes to the steps, not to the batch shell (B:), early enough for a checkpoint."""
    name, _, seconds = directives()["signal"].partition("@")
    assert name == "TERM"
    assert int(seconds) >= 60


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["one_machine.sh", "several_machines.sh", "slurm.sbatch"])
def test_shellcheck_finds_nothing(script: str) -> None:
    done = subprocess.run(["shellcheck", str(LAUNCH / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
