"""Settings that follow the processes that a launcher started."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from experiments.launched import in_launched_world
from experiments.read_config import load_experiment
from experiments.trainer_config import TrainerConfig
from lumos_pl.errors import ConfigError, LumosError, TemporaryError
from lumos_pl.machinery.lightning_private.ranks import meeting_of_launched
from tests.refusals import refused

ASKED = ["trainer.devices=4", "trainer.num_nodes=2", "trainer.accumulate=3", "trainer.strategy=fsdp2"]


def settled(monkeypatch: pytest.MonkeyPatch, size: int, local: int, *overrides: str) -> TrainerConfig:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for name, value in {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local, "RANK": 0, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    return in_launched_world(load_experiment("debug", [*ASKED, *overrides])).trainer


@pytest.mark.parametrize(("size", "local"), [(8, 4), (4, 4), (2, 2), (1, 1), (12, 4), (12, 6), (24, 8), (8, 8)])
def test_the_batches_of_a_step_stay_as_many(size: int, local: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = settled(monkeypatch, size, local, "trainer.shard_size=4")
    assert (trainer.devices, trainer.num_nodes, trainer.batches_per_step) == (local, size // local, 24)
    assert trainer.shard_size == (4 if size % 4 == 0 else "auto")


@pytest.mark.parametrize(("size", "local", "kind"), [(5, 5, TemporaryError), (16, 8, ConfigError)])
def test_where_they_cannot_be_shared_it_is_said_with_what_suits(
    size: int, local: int, kind: type[LumosError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few processes may be more the next time; too many will be too many again."""
    with refused(kind, got=f"24 by {size}") as caught:
        settled(monkeypatch, size, local)
    assert "1, 2, 3, 4, 6, 8, 12, 24" in str(caught.value.expected)


def test_srun_says_how_many_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEP_ID": 0, "NTASKS": 4, "NNODES": 1, "PROCID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = in_launched_world(load_experiment("debug", ASKED)).trainer
    assert (trainer.devices, trainer.num_nodes, trainer.accumulate) == (4, 1, 6)
    meeting = meeting_of_launched(1, timedelta(seconds=1))  # `srun -n 4` says no tasks per node
    assert meeting is not None and meeting.world_size == 4


BY_HAND = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "1", "LOCAL_RANK": "2", "RANK": "6"}
ONE_NODE = ["trainer.devices=4", "trainer.accumulate=3", "trainer.strategy=fsdp2"]


def started_by_hand(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], *words: str) -> bool:
    """Whether the settings stand in a process that has these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = load_experiment("debug", words)
    return in_launched_world(config) == config


def test_ranks_that_were_started_by_hand_are_as_many_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would be waited for in vain; an earlier run in a notebook leaves such variables too."""
    assert started_by_hand(monkeypatch, {**BY_HAND, "WORLD_SIZE": "8"}, *ASKED)
    with refused(ConfigError, got=8):
        started_by_hand(monkeypatch, {"WORLD_SIZE": "1"}, *ASKED)


@pytest.mark.parametrize("missing", [*BY_HAND, "WORLD_SIZE"])
def test_several_nodes_without_a_launcher_are_told_who_and_where_they_are(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would take itself for the first, or wait for others where they are not."""
    given = {**BY_HAND, "WORLD_SIZE": "8"}
    del given[missing]
    with refused(ConfigError, where="trainer.devices x trainer.num_nodes") as caught:
        started_by_hand(monkeypatch, given, *ASKED)
    assert missing in str(caught.value.got)


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"LOCAL_RANK": "0"}, "trainer.devices x trainer.num_nodes"),  # which starts no others
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "trainer.devices x trainer.num_nodes"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "29500"}, "RANK"),
        ({"RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "29500"}, "RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "trainer.devices x trainer.num_nodes"),
    ],
)
def test_a_rank_that_is_half_told_is_refused(
    variables: dict[str, str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(ConfigError, where=where):
        started_by_hand(monkeypatch, variables, *ONE_NODE)


def test_one_process_is_no_rank_of_a_world_that_a_cluster_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_by_hand(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1"})
    with refused(ConfigError, where="trainer.devices x trainer.num_nodes", got=1):  # it would train by itself
        started_by_hand(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2"})


def test_a_node_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ConfigError, where="NODE_RANK", got=2):
        started_by_hand(monkeypatch, {**BY_HAND, "WORLD_SIZE": "8", "NODE_RANK": "2"}, *ASKED)


def test_where_nothing_but_the_run_starts_processes_the_settings_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an allocation of SLURM's, in which this process was not started by srun."""
    assert started_by_hand(monkeypatch, {"SLURM_NTASKS": "2"}, *ONE_NODE)
