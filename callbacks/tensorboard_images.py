"""Encoded pictures as TensorBoard image summaries.

`SummaryWriter.add_video` drops its data without a word where moviepy is missing; an animated GIF in
an image summary plays in the browser and needs nothing but Pillow.
"""

from __future__ import annotations

from io import BytesIO

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from callbacks.logs_once import LogsOnce


def tensorboard_writers(trainer: Trainer) -> list[SummaryWriter]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_image(trainer: Trainer, tag: str, encoded: bytes, step: int) -> None:
    """Write a picture, PNG or GIF as it is, to every TensorBoard logger; call on rank zero only."""
    with Image.open(BytesIO(encoded)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and not (isinstance(logger, LogsOnce) and logger.has(tag, step)):
            # what SummaryWriter.add_image does once it has encoded
            logger.experiment._get_file_writer().add_summary(summary, step)
            logger.experiment.flush()
