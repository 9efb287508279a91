"""What a plan is asked: for which GPUs, how many, and how well used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.merging import build, merge_overrides, resolved
from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import above, at_least, between, check_ranges, optional


@dataclass(frozen=True)
class Gpu:
    """Memory as `nvidia-smi` shows it; dense peaks without sparsity, in TFLOP/s; GB/s it sends to its node's others."""

    mebibytes: int
    bf16: float
    fp32: float
    link: float


# Peaks: NVIDIA's data sheets of H100, H200 and A100 (SXM) and the Ada white paper (bf16 summed in fp32); H20's
# as its press reports give them; of L40S and RTX A6000 their data sheets. Links: one direction, half of what the same
# sheets give for both: NVLink's 900 GB/s (600 of A100), and of those without one among all of a node, PCIe 4.0 x16.
GPUS = {
    "h20-96g": Gpu(97_871, 148, 44, 450),
    "h100-80g": Gpu(81_559, 989, 67, 450),
    "h200-141g": Gpu(143_771, 989, 67, 450),
    "a100-80g": Gpu(81_920, 312, 19.5, 300),
    "l40s-48g": Gpu(46_068, 362, 91.6, 32),
    "a6000-48g": Gpu(49_140, 155, 38.7, 32),
    "4090-24g": Gpu(24_564, 165, 82.6, 32),
}
CPU = "cpu"
DEFAULT_GPU = "h100-80g"
USABLE = 0.9  # of a GPU's memory; the rest is CUDA's, NCCL's, and lost between the allocator's blocks

PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
BITS = "bit", "bit/s", "bps"
_NUMBER, _PREFIX = r"(?P<number>[0-9]+(?:\.[0-9]+)?)", r"(?P<prefix>[kmgt]?)"
_RATE = rf"{_NUMBER} ?{_PREFIX}(?P<unit>bit|bit/s|bps|b|b/s)"  # of bytes where it is no bit
QUANTITIES = {
    "link": (rf"(?:(?P<times>[1-9][0-9]{{0,3}}) ?x ?)?{_RATE}", "200gbit, 8x400gbit or 25GB/s"),
    "disk": (_RATE, "2GB/s or 500MB/s"),
    "samples": (rf"{_NUMBER} ?{_PREFIX}", "60M or 1500000"),
}


@dataclass(frozen=True, kw_only=True)
class PlanWords:
    """The plan's own key=value words.

    Args:
        gpu: one of `GPUS`, or `cpu` (memory only). Null: `DEFAULT_GPU`, or cpu where the experiment runs on it.
        gpus: processes in all; null: as the experiment says.
        mfu: share of the GPUs' peak that the model's own operations reach while they run.
        node: GPUs that share a node's fast links.
        bandwidth: GB/s that a GPU sends to other nodes: one 400 Gb/s adapter each, as in NVIDIA's DGX H100.
        link: what leaves a node for others, all its adapters together, such as `200gbit`, `8x400gbit` or `25GB/s`;
            then `bandwidth` is a GPU's part of it.
        disk: bytes per second that all processes together write to where the run lies, such as `2GB/s`.
        gpu_hours: between two failures of one GPU, its node and its network counted in. By default one in 50,700: those
            of Llama 3's training, 419 in 54 days of 16,384 (arXiv:2407.21783, 3.3.4).
        samples: of each kind, where no manifest says how many, such as `60M`.
        size: WIDTHxHEIGHT of every sample; null: from the shards' manifest.
        text: ids of every text; null: from the manifest.
    """

    gpu: str | None = None
    gpus: int | None = None
    mfu: float = 0.4
    node: int = 8
    bandwidth: float = 50.0
    link: str | None = None
    disk: str = "2GB/s"
    gpu_hours: float = 50_700
    samples: str | None = None
    size: str | None = None
    text: int | None = None

    def __post_init__(self) -> None:
        if self.gpu is not None and self.gpu not in (CPU, *GPUS):
            raise ConfigError("unknown GPU", where="gpu", got=self.gpu, expected=", ".join((CPU, *GPUS)))
        check_ranges(
            "",
            self,
            gpus=optional(between(1, 10**6)),
            node=between(1, 10**6),
            mfu=above(0, up_to=1),
            bandwidth=above(0, words="above 0, in GB/s"),
            gpu_hours=above(0, words="above 0, in hours"),
            text=optional(at_least(0)),
        )
        for name in "link", "disk", "samples":
            if (said := getattr(self, name)) is not None:
                _quantity(name, said)

    @property
    def leaving(self) -> float:
        """GB/s that a GPU sends to other nodes."""
        return self.bandwidth if self.link is None else _quantity("link", self.link) / 1e9 / self.node

    @property
    def disk_rate(self) -> float:
        """Bytes per second."""
        return _quantity("disk", self.disk)

    @property
    def n_samples(self) -> int | None:
        return None if self.samples is None else round(_quantity("samples", self.samples))

    @classmethod
    def parse(cls, words: Sequence[str]) -> PlanWords:
        return build(cls, resolved(cls, merge_overrides(cls, {}, words)))


def _quantity(name: str, said: str) -> float:
    """The number that a word says, in bytes per second, or in samples."""
    pattern, expected = QUANTITIES[name]
    match = re.fullmatch(pattern, said, re.IGNORECASE)
    if match is None:
        raise ConfigError("value does not fit", where=name, got=said, expected=expected)
    found = {"times": "1", "prefix": "", "unit": "", **{k: v or "" for k, v in match.groupdict().items()}}
    number = float(found["number"]) * int(found["times"] or 1) * PREFIXES[found["prefix"].lower()]
    if not 0 < number < 1e18:
        raise ConfigError("value does not fit", where=name, got=said, expected="above 0")
    return number / 8 if found["unit"].lower() in BITS else number


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The processes that a run is placed on, all alike.

    Args:
        gpu: one of `GPUS`, or `cpu`, of which only the memory is known.
        gpus: processes of all nodes.
        usable: bytes that one of them may take; None is any number.
        mfu, node, bandwidth: as in `PlanWords`.
    """

    gpu: str
    gpus: int
    usable: int | None
    mfu: float
    node: int
    bandwidth: float

    @property
    def link(self) -> float | None:
        """GB/s that a GPU sends to its node's others; None on a CPU."""
        return None if self.gpu == CPU else GPUS[self.gpu].link

    def peak_flops(self, precision: str) -> float | None:
        """Operations per second of one GPU; None on a CPU."""
        if self.gpu == CPU:
            return None
        return 1e12 * (GPUS[self.gpu].bf16 if precision == "bf16-mixed" else GPUS[self.gpu].fp32)


def gpu_like(name: str) -> str:
    """The one of `GPUS` whose figures stand for a GPU that its driver calls `name`; `DEFAULT_GPU` for all others."""
    known = sorted(GPUS, key=len, reverse=True)  # H200 before H20
    return next((gpu for gpu in known if gpu.partition("-")[0].upper() in name.upper()), DEFAULT_GPU)
