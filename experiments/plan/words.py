"""What a plan is asked: for which GPUs, how many, and how well used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lumos_pl.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """Memory as `nvidia-smi` shows it; dense peaks without sparsity, in TFLOP/s."""

    mebibytes: int
    bf16: float
    fp32: float


# Peaks: NVIDIA's data sheets of H100, H200 and A100 (SXM) and the Ada white paper (bf16 summed in fp32); H20's
# as its press reports give them.
GPUS = {
    "h20-96g": Gpu(97_871, 148, 44),
    "h100-80g": Gpu(81_559, 989, 67),
    "h200-141g": Gpu(143_771, 989, 67),
    "a100-80g": Gpu(81_920, 312, 19.5),
    "4090-24g": Gpu(24_564, 165, 82.6),
}
CPU = "cpu"
USABLE = 0.9  # of a GPU's memory; the rest is CUDA's, NCCL's, and lost between the allocator's blocks


@dataclass(frozen=True, kw_only=True)
class PlanWords:
    """The plan's own key=value words.

    Args:
        gpu: one of `GPUS`, or `cpu` (memory only). Null: h100-80g, or cpu where the experiment runs on it.
        gpus: processes in all; null: as the experiment says.
        mfu: share of the GPUs' peak that the model's own operations reach.
        size: WIDTHxHEIGHT of every sample; null: from the shards' manifest.
        text: ids of every text; null: from the manifest.
    """

    gpu: str | None = None
    gpus: int | None = None
    mfu: float = 0.4
    size: str | None = None
    text: int | None = None

    def __post_init__(self) -> None:
        if self.gpu is not None and self.gpu not in (CPU, *GPUS):
            raise ConfigError("unknown GPU", where="gpu", got=self.gpu, expected=", ".join((CPU, *GPUS)))
        if self.gpus is not None and not 1 <= self.gpus <= 10**6:
            raise ConfigError("out of range", where="gpus", got=self.gpus, expected="1 to 1000000")
        if not 0 < self.mfu <= 1:
            raise ConfigError("out of range", where="mfu", got=self.mfu, expected="above 0, at most 1")
        if self.text is not None and self.text < 0:
            raise ConfigError("out of range", where="text", got=self.text, expected="0 or more")

    @classmethod
    def parse(cls, words: Sequence[str]) -> PlanWords:
        try:
            merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.from_dotlist(list(words)))
            parsed: PlanWords = OmegaConf.to_object(merged)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise ConfigError("value does not fit", where=error.full_key, got=str(error).splitlines()[0]) from None
        return parsed
