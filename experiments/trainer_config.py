"""How long and on what a run trains: our own settings, and any others of Lightning's Trainer."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_type_hints

from lightning import Trainer

from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.machinery.devices import has_bf16, resolve_device
from lumos_pl.settings.plain import fits, type_words
from lumos_pl.settings.ranges import above, at_least, between, check_ranges, optional

LIGHTNING = tuple(inspect.signature(Trainer).parameters)
AFTER_WATCH_S = 60  # more than a watch needs to name the rank that stalls
COLLECTS = "collects"  # in a field's metadata: keys of its section that are entries of this field, a dict
DECIDED = {  # arguments that a run decides by itself, and what to use instead
    "logger": "say it in `loggers`",
    "callbacks": "say it in `callbacks.extra`",
    "max_epochs": "steps are counted: trainer.max_steps",
    "min_epochs": "steps are counted: trainer.max_steps",
    "min_steps": "steps are counted: trainer.max_steps",
    "limit_train_batches": "steps are counted: trainer.max_steps; or trainer.overfit_batches, trainer.fast_dev_run",
    "limit_test_batches": "nothing is tested in a run: `lumos eval` measures",
    "limit_predict_batches": "nothing is predicted in a run: `lumos sample` makes clips",
    "val_check_interval": "say it in trainer.val_every_n_steps",
    "check_val_every_n_epoch": "say it in trainer.val_every_n_steps",
    "log_every_n_steps": "say it in callbacks.log_every_n_steps",
    "enable_checkpointing": "a run always saves: checkpoint.every_n_steps",
    "enable_progress_bar": "say it in callbacks.progress_bar",
    "accumulate_grad_batches": "say it in trainer.accumulate",
    "gradient_clip_val": "say it in optimizer.grad_clip",
    "gradient_clip_algorithm": "gradients are clipped by their norm: optimizer.grad_clip",
    "use_distributed_sampler": "the data's own plan deals the batches to the ranks",
    "reload_dataloaders_every_n_epochs": "the data are one stream, which a resumed run goes on with",
    "plugins": "trainer.precision and trainer.strategy choose them",
    "barebones": "a run logs and saves; `python -m bench` measures a bare step",
    "default_root_dir": "say it in run.dir and run.name",
    "model_registry": "a run keeps its own checkpoints: `checkpoint`",
}


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and on what to train.

    This section may also have any other argument of `lightning.Trainer` that does not contradict what a run promises:
    `fast_dev_run`, `profiler`, `limit_val_batches`, `detect_anomaly`, `max_time`, ...

    Args:
        max_steps: optimizer steps in all.
        accumulate: batches per step and process.
        precision: `32-true`, or `bf16-mixed` (norms, loss and weights stay fp32); `auto`: bf16-mixed if this machine
            multiplies in bf16 natively, else 32-true; the run's config.yaml says which it was.
        accelerator: `cpu`, `gpu`, or `auto` (a GPU if there is one).
        devices: processes per node, one per GPU.
        num_nodes: machines.
        strategy: `auto` (one process, or DDP), `ddp`, or `fsdp2` (sharded).
        shard_size: of fsdp2: neighbouring processes that share one copy of the weights; several groups of them
            are HSDP. Null: one copy shared by all processes; `auto`: that, or a copy per node, see
            experiments/plan/placement.py.
        reshard_after_forward: of fsdp2: gather each layer's weights again for its backward pass, instead of keeping
            them from its forward pass; `auto`: only if they would not fit.
        cpu_offload: of fsdp2: keep weights, gradients and optimizer in host memory, and update them there.
        val_every_n_steps: optimizer steps between validations; 0: never.
        start_timeout_s: seconds that a process waits for the others before the training starts.
        rank_timeout_s: seconds that a process may take for one piece of its work, such as a batch, and that it waits
            for the others, before the run ends and names the one that stalls; reading a checkpoint, saving and
            compiling may take `start_timeout_s` if that is longer.
        grace_s: seconds from the scheduler's SIGTERM to its SIGKILL. A run warns if its last save would take longer,
            and drops the current step if finishing it would; null: not considered.
        lightning: the other arguments of Lightning's Trainer, by name; each may be spelled `trainer.NAME`.
    """

    max_steps: int = 1000
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed", "auto"] = "32-true"
    accelerator: Literal["cpu", "gpu", "auto"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    shard_size: int | Literal["auto"] | None = "auto"
    reshard_after_forward: Literal["auto", True, False] = "auto"
    cpu_offload: bool = False
    val_every_n_steps: int = 0
    start_timeout_s: int = 600
    rank_timeout_s: int = 1800
    grace_s: float | None = 30
    lightning: dict[str, Any] = field(default_factory=dict, metadata={COLLECTS: LIGHTNING})

    def __post_init__(self) -> None:
        if self.precision == "auto":  # settled now, so that resuming on another machine keeps it
            in_bf16 = has_bf16("cpu" if self.works_on_cpu else "cuda")
            object.__setattr__(self, "precision", "bf16-mixed" if in_bf16 else "32-true")
        counted = between(1, 10**9)
        check_ranges(
            "trainer",
            self,
            max_steps=counted,
            accumulate=between(1, 10**6),
            devices=between(1, 1024),
            num_nodes=between(1, 10**5),
            start_timeout_s=between(1, 10**7),
            rank_timeout_s=between(1, 10**7),
            grace_s=optional(above(0)),
            val_every_n_steps=at_least(0),
        )
        self._check_sharding()
        for name, value in self.lightning.items():
            _check_argument(name, value)
        overfit = self.lightning.get("overfit_batches") or 0
        if overfit < 0 or overfit % self.accumulate:
            raise ConfigError(
                "not whole steps",
                where="trainer.overfit_batches",
                got=overfit,
                expected=f"0, or a multiple of {self.accumulate} (trainer.accumulate)",
            )

    def _check_sharding(self) -> None:
        of_fsdp2 = {"shard_size": ("auto", None), "reshard_after_forward": ("auto",), "cpu_offload": (False,)}
        for name, off in of_fsdp2.items():
            if getattr(self, name) not in off and self.strategy != "fsdp2":
                raise ConfigError(
                    "of fsdp2 alone",
                    where=f"trainer.{name}",
                    got=getattr(self, name),
                    fix="trainer.strategy=fsdp2, or leave it out",
                )
        if isinstance(self.shard_size, int) and (self.shard_size < 1 or self.processes % self.shard_size):
            raise ConfigError(
                "does not divide the processes",
                where="trainer.shard_size",
                got=self.shard_size,
                expected=f"a divisor of {self.processes} (devices x num_nodes)",
                fix="null shards over all of them",
            )

    @property
    def works_on_cpu(self) -> bool:
        """Whether `accelerator` means the CPU on this machine."""
        return self.accelerator == "cpu" or (self.accelerator == "auto" and resolve_device("auto") == "cpu")

    @property
    def is_dry(self) -> bool:
        """Whether `fast_dev_run` asks for a few batches only, with nothing logged or saved."""
        return bool(self.lightning.get("fast_dev_run"))

    @property
    def backend_timeout(self) -> timedelta:
        """How long the backend waits in a collective: longer than a rank may stall, so the watch names it first."""
        return timedelta(seconds=max(self.start_timeout_s, self.rank_timeout_s) + AFTER_WATCH_S)

    @property
    def processes(self) -> int:
        """Processes on all nodes together."""
        return self.devices * self.num_nodes

    @property
    def batches_per_step(self) -> int:
        """Micro-batches of an optimizer step, over all processes."""
        return self.accumulate * self.processes


def _check_argument(name: str, value: Any) -> None:
    """Refuse what is not an argument of the Trainer, what a run decides by itself, and values of another type."""
    where = f"trainer.{name}"
    own = {item for item in TrainerConfig.__dataclass_fields__ if item != "lightning"}
    if name in DECIDED or name in own:
        raise ConfigError("the run decides this", where=where, got=value, fix=DECIDED.get(name, f"say it in {where}"))
    if name not in LIGHTNING:
        known = (f"trainer.{item}" for item in {*own, *LIGHTNING} - set(DECIDED))
        raise ConfigError("unknown key", got=where, fix=did_you_mean(where, known))
    hint = get_type_hints(Trainer.__init__)[name]
    if value is not None and not fits(value, hint):
        raise ConfigError("value does not fit", where=where, got=repr(value), expected=type_words(hint))
