"""What a checkpoint of ours holds, said once: whoever reads one, to go on or for its weights, has it checked by this.

A checkpoint is of one of three kinds, and has all parts of its kind:

    training    every field of `Training`: what Lightning saves of it, and "lumos", which is ours
    its weights the same without the last three, where the Trainer's callback was asked for weights only
    weights     "state_dict" and "lumos" alone, as `lumos import-hf` writes them

What stands in "lumos" says how the weights are made again, see description.py; what the optimizer, the schedule and
Lightning's loops hold, training_state.py. Whether a checkpoint fits a run is asked where the run is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.json_file import Number, first_problem

FORMAT = 1  # of what stands under "lumos" in a checkpoint
MOST_STEPS = 1 << 53
# As the kind of an optimizer that is not made of the settings, so that nobody knows its state.
OF_ITS_OWN = "of its own"

Count = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Plain = dict[str, Any]


def _of_lightning_2(version: str) -> str:
    try:
        if Version(version) >= Version("2.0"):
            return version
    except InvalidVersion:
        pass
    raise ValueError("a version of Lightning, 2.0 or later")


class Part(BaseModel):
    """A part of a checkpoint; fields that nobody reads may stand beside those that it has."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True, protected_namespaces=())


class IdentityOptimizer(Part):
    kind: str
    ema: bool


class Identity(Part):
    """What a resumed training must have in common with this one, beside what rebuilds its weights.

    Weights alone and older checkpoints have not all of it; `adapter` has only a training of one.
    """

    layout: Plain | None = None
    model: Plain | None = None
    tokenizer: Plain | None = None
    adapter: Plain | None = None
    data: Plain = {}
    seed: int | None = None
    batches_per_step: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    optimizer: IdentityOptimizer | None = None


class Lumos(Part):
    """What we say of a training in its checkpoint.

    Args:
        format: of these fields.
        config: the run's whole configuration, or what the module and the data say of theirs.
        losses: every loss as it was last; older checkpoints, and those of other Trainers, have none.
        frozen: names of weights that were not trained, by which the optimizer's state is of the others; older
            checkpoints do not say.
    """

    format: Literal[1]
    config: Plain
    identity: Identity
    losses: dict[str, Number] = {}
    frozen: list[str] | None = None


class Weights(Part):
    state_dict: dict[str, Tensor]
    lumos: Lumos


class WeightsOfTraining(Weights):
    epoch: Count
    global_step: Count
    version: Annotated[str, AfterValidator(_of_lightning_2)] = Field(alias="pytorch-lightning_version")
    loops: dict[str, Plain]
    hyper_parameters: Plain = {}
    hparams_name: str | None = None


class ParameterGroup(Part):
    params: list[Any]


class OptimizerState(Part):
    state: dict[Any, dict[str, Any]]
    param_groups: list[ParameterGroup]


class Training(WeightsOfTraining):
    callbacks: dict[str, Plain]
    optimizer_states: list[OptimizerState]
    lr_schedulers: list[Plain]


class _FrameLosses(Part):
    step: Count
    frames: list[Number | None]
    spread: Number


class _LossHistory(Part):
    model_config = ConfigDict(extra="forbid")
    rows: list[Annotated[list[Number | None], Field(min_length=1)]]
    stride: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    added: Count


class _FrameLossBalance(Part):
    last: dict[Literal["train", "val"], _FrameLosses]
    history: _LossHistory


class _Owed(Part):
    is_owed: bool


class _SampleGrid(Part):
    wanted: list[Literal["image", "video"]]


class _Timer(Part):
    time_elapsed: dict[str, Number]


class _EarlyStopping(Part):
    wait_count: Count
    stopped_epoch: Count
    best_score: Tensor
    patience: Count


class _ModelCheckpoint(Part):
    best_model_path: str
    best_model_score: Tensor | None
    dirpath: str | None
    best_k_models: dict[str, Tensor]
    kth_best_model_path: str
    kth_value: Tensor
    last_model_path: str


CALLBACKS: dict[str, type[Part]] = {  # what those that are known save, by the beginning of their keys
    "FrameLossBalance": _FrameLossBalance,
    "SampledClips": _Owed,
    "SampleGrid": _SampleGrid,
    "ReconstructionGrid": _Owed,
    "Timer": _Timer,
    "EarlyStopping": _EarlyStopping,
    "ModelCheckpoint": _ModelCheckpoint,
}
_OF_A_TRAINING = ("epoch", "global_step", "pytorch-lightning_version", "loops")
_OF_ITS_STATE = ("callbacks", "optimizer_states", "lr_schedulers")


def check_fields(content: Mapping[str, Any], file: Path | None) -> Weights:
    """The parts of a checkpoint, once all of its kind are there, each of its type.

    Raises:
        CheckpointError: with the field.
    """
    lumos = content.get("lumos")
    version = lumos.get("format") if isinstance(lumos, dict) else FORMAT
    if type(version) is int and version != FORMAT:
        what = "not a checkpoint of this version"
        raise CheckpointError(what, file=file, where="lumos.format", got=version, expected=FORMAT)
    kind: type[Weights] = Weights
    if content.keys() & {*_OF_A_TRAINING, *_OF_ITS_STATE}:
        kind = Training if content.keys() & set(_OF_ITS_STATE) else WeightsOfTraining
    parts: Weights = described_by(kind, content, file)
    if isinstance(parts, Training):
        for name, state in parts.callbacks.items():
            known = CALLBACKS.get(name.partition("{")[0])
            if known is not None:
                described_by(known, state, file, where=f"callbacks.{name[:40]}")
    return parts


def described_by(kind: type[Any], value: object, file: Path | None, *, where: str = "") -> Any:
    """A value as the part that it should be.

    Raises:
        CheckpointError: the first field that is missing or of another type, with what was got and expected.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = first_problem(error, value)
        what = f"not a checkpoint of ours: {found.what}"
        place = ".".join(filter(None, (where, found.where))) or None
        raise CheckpointError(**found.parts | {"what": what, "file": file, "where": place}) from None
