"""Which of the processes of a run this one is, from what its launcher wrote into the environment."""

from __future__ import annotations

import pytest

from tunewright.core.launched import first_host, here

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_torchruns_variables_are_read() -> None:
    place = here(TORCHRUN)
    assert place is not None
    assert (place.rank, place.world, place.local, place.local_world) == (3, 4, 1, 2)
    assert (place.address, place.port, place.attempt, place.hosts) == ("10.0.0.1", 29500, 2, 2)


def test_a_process_by_itself_has_no_place() -> None:
    assert here({}) is None
    # A batch script of SLURM runs once, whatever the job has.
    assert here({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}) is None
    assert here({**TORCHRUN, "RANK": "three"}) is None


def test_torchrun_inside_a_job_of_slurm_is_torchrun() -> None:
    place = here(
        {**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    )
    assert place is not None and place.by == "torchrun"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[03-05,9],cpu1", "gpu03"), ("a1,b2", "a1"), ("rack[2,4]-x", "rack2-x")],
)
def test_the_first_host_of_a_list_of_slurm(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
