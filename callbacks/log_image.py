"""Encoded pictures for every logger that shows pictures: TensorBoard's, and those with Lightning's `log_image`."""

from __future__ import annotations

from io import BytesIO

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from callbacks.logs_once import LogsOnce


def shows_images(trainer: Trainer) -> bool:
    """Whether any logger shows pictures; if not, none need be painted."""
    return any(isinstance(logger, TensorBoardLogger) or hasattr(logger, "log_image") for logger in trainer.loggers)


def log_image(trainer: Trainer, tag: str, encoded: bytes, step: int) -> None:
    """Show a picture, a PNG or GIF, in every logger that can; call on rank zero only."""
    for logger in trainer.loggers:
        if isinstance(logger, LogsOnce) and logger.has(tag, step):
            continue
        if isinstance(logger, TensorBoardLogger):
            _write_summary(logger.experiment, tag, encoded, step)
        else:
            _log_to(logger, tag, encoded, step)


def _write_summary(writer: SummaryWriter, tag: str, encoded: bytes, step: int) -> None:
    """Write an image summary, as `SummaryWriter.add_image` does after encoding.

    A GIF works too and plays in the browser; `add_video` silently drops its data if moviepy is missing.
    """
    with Image.open(BytesIO(encoded)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    writer.flush()


def _log_to(logger: Logger, tag: str, encoded: bytes, step: int) -> None:
    """Log by the methods of W&B's logger; an animation is skipped if the logger has no `log_video`."""
    picture = Image.open(BytesIO(encoded))
    if getattr(picture, "n_frames", 1) == 1:
        if hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[picture], step=step)
    elif hasattr(logger, "log_video"):
        logger.log_video(key=tag, videos=[BytesIO(encoded)], step=step, format=["gif"])
