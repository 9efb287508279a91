"""Settings that follow what started a run: how many processes there are is for torchrun and srun to say."""

from __future__ import annotations

import os
from dataclasses import replace

from experiments.config import Config
from experiments.environment import number
from experiments.trainer_config import TrainerConfig
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.lightning_private.ranks import in_srun, in_torchrun, launching_environment, process_rank

OF_A_RANK = "MASTER_PORT", "WORLD_SIZE"  # what whoever starts processes by hand tells each, beside its LOCAL_RANK
OF_A_NODES_RANK = *OF_A_RANK, "MASTER_ADDR", "NODE_RANK", "LOCAL_RANK", "RANK"  # and where there are several nodes
LAUNCHERS = "torchrun or srun (docs/cluster.md)"


def in_launched_world(config: Config) -> Config:
    """The configuration for the processes that there are, whose steps are of as many batches as it asks for.

    A launcher that starts a run again may have fewer nodes, or more: each process then accumulates more batches, or
    fewer. Where nothing but the run itself starts processes, its settings stand.

    Raises:
        TemporaryError: processes are missing, and those that came cannot share the batches of a step.
        ConfigError: nor can they, and they are more than the settings say; or who started this process by hand told
            it of another number than the settings do.
    """
    world, asked = launched_world(), config.trainer
    if world is None:
        _check_started(asked)
        return config
    if in_srun():  # sets it only where it was asked for by this number, without which Lightning takes no job
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(world[0]))
    if world == (asked.devices, asked.num_nodes):
        return config
    devices, nodes = world
    n, batches = devices * nodes, asked.batches_per_step
    if batches % n:
        kind = TemporaryError if n < asked.processes else ConfigError
        raise kind(
            "the batches of a step cannot be shared by the processes that were started",
            where="trainer.accumulate x trainer.devices x trainer.num_nodes",
            got=f"{batches} by {n}",
            expected=f"a number that {n} divides, or {_suiting(batches)} processes",
        )
    settled = _trainer(asked, devices, nodes)
    if process_rank() == 0 and n != asked.processes:
        print(f"settled: {n} processes share the {batches} batches of a step, {settled.accumulate} each")
    return replace(config, trainer=settled)


def launched_world() -> tuple[int, int] | None:
    """Processes per node, and nodes, where a launcher decided how many there are; None: the settings decide.

    Raises:
        ConfigError: the nodes have different numbers of processes.
    """
    if in_torchrun():
        name, size, local = "LOCAL_WORLD_SIZE", number("WORLD_SIZE"), number("LOCAL_WORLD_SIZE")
    elif in_srun() and {"SLURM_NTASKS", "SLURM_NNODES"} <= os.environ.keys():
        name, size = "SLURM_NTASKS", number("SLURM_NTASKS")
        local = size // max(1, number("SLURM_NNODES"))
    else:
        return None
    if local == 0 or size % local:
        raise ConfigError("nodes with different numbers of processes", where=name, got=local, expected=f"of {size} all")
    return local, size // local


def _check_started(asked: TrainerConfig) -> None:
    """Raise ConfigError where this process would wait for others that nobody starts, or take itself for another one.

    Lightning goes by LOCAL_RANK and NODE_RANK: a process that was told the first starts no others. What asks for the
    rank before it has them goes by RANK, which some clusters set alone.
    """
    if launching_environment() is None:
        return
    is_told, several = "LOCAL_RANK" in os.environ, asked.processes > 1
    _check_size(asked, is_told)
    needed = OF_A_NODES_RANK if asked.num_nodes > 1 else OF_A_RANK if is_told and several else ()
    if missing := [name for name in needed if name not in os.environ]:
        raise ConfigError(
            "nothing starts the other processes, or says where they meet",
            where="trainer.devices x trainer.num_nodes",
            got=f"{asked.processes}, without {', '.join(missing)}",
            fix=f"start it by {LAUNCHERS}; or each process by hand, with these variables",
        )
    node = number("NODE_RANK") if asked.num_nodes > 1 else 0
    if node >= asked.num_nodes:
        expected = f"0 to {asked.num_nodes - 1}, trainer.num_nodes={asked.num_nodes}"
        raise ConfigError("no such node", where="NODE_RANK", got=node, expected=expected)
    own = node * asked.devices + (number("LOCAL_RANK") if is_told else 0)
    if "RANK" in os.environ and (number("RANK") != own or (several and not is_told)):
        raise ConfigError(
            "RANK alone does not say which of the processes this is",
            where="RANK",
            got=number("RANK"),
            expected=f"LOCAL_RANK beside it, and {own}: NODE_RANK x trainer.devices + LOCAL_RANK",
            fix=f"unset it, or start the processes by {LAUNCHERS}",
        )


def _check_size(asked: TrainerConfig, is_told: bool) -> None:
    if not (is_told or "RANK" in os.environ) or "WORLD_SIZE" not in os.environ:
        return
    if (world := number("WORLD_SIZE")) != asked.processes:
        raise ConfigError(
            "the variables say that this is one of several processes, which are not as many as the settings say",
            where="trainer.devices x trainer.num_nodes",
            got=asked.processes,
            expected=f"WORLD_SIZE, {world}",
            fix="unset LOCAL_RANK, RANK and WORLD_SIZE, unless you started the ranks yourself",
        )


def _trainer(asked: TrainerConfig, devices: int, nodes: int) -> TrainerConfig:
    n = devices * nodes
    shard_size = asked.shard_size
    if isinstance(shard_size, int) and n % shard_size:
        shard_size = "auto"  # a checkpoint goes on with any
    accumulate = asked.batches_per_step // n
    return replace(asked, devices=devices, num_nodes=nodes, accumulate=accumulate, shard_size=shard_size)


def _suiting(batches: int) -> str:
    """The numbers of processes that share so many batches evenly; of many the first."""
    divisors = [str(n) for n in range(1, min(batches, 1000) + 1) if batches % n == 0]
    return ", ".join([*divisors[:12], "..."] if len(divisors) > 12 else divisors)
