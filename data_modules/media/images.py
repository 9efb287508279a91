"""Pictures as they are to be seen: turned, in sRGB, on black; those that move are videos."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from data_modules.media.coded_colours import Coded, coded_colours
from data_modules.media.colour import hdr_of, is_of_screen, to_screen
from data_modules.media.fit import absurd_dimensions, check_dimensions, fit
from data_modules.media.moving import count_frames
from data_modules.media.request import Facts, Hdr
from data_modules.media.size_buckets import Size
from lumos_pl.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF")
_MOVING = ("PNG", "WEBP", "GIF", "AVIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = (b"acTL", b"fcTL", b"fdAT", b"cICP")  # beside those that every PNG needs
_PNG_WORDS = (b"tEXt", b"zTXt", b"iTXt")
_SHORTEST, _INSTEAD = 10, 100  # ms: browsers show frames of up to the one for the other
_GAMMA, _EQUAL_GAMMA, _MOST_GAMMA = 0.45455, 0.05, 10  # of a screen; what nobody sees; what nobody means
_MOST_FRAMES = 10_000
_LONGEST = 60_000  # ms that a frame stays. Most formats have no checksum: a bit of a duration makes it last for hours
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20  # of a colour profile: Pillow calls one of more than 1 MiB damage


class Picture:
    """An open image file; a context manager. `is_moving` tells whether it is a sequence of frames."""

    def __init__(self, file: IO[bytes], *, hdr: Hdr = "map") -> None:
        head = file.read(16)
        file.seek(0)
        formats = [*FORMATS]
        if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis"):
            formats = _heif()
        self._coded = coded_colours(file) if head[4:8] == b"ftyp" else None
        if head.startswith(_PNG):
            file, self._coded = _png(file)
        self._image = _opened(file, formats)
        if hdr == "refuse" and self._coded is not None and (kind := hdr_of(self._coded.transfer)) is not None:
            raise DataError("a picture of high dynamic range", got=kind, expected="SDR, as asked for by --hdr refuse")
        check_dimensions(*self._image.size)
        self.n_frames = getattr(self._image, "n_frames", 1) if self._image.format in _MOVING else 1
        # A PNG may have a picture for who cannot show what moves, which is not part of that.
        self._skipped = int(self.n_frames > 1 and bool(getattr(self._image, "default_image", False)))
        self.n_frames -= self._skipped
        if self.n_frames > _MOST_FRAMES:
            raise DataError("too many frames in a picture", got=self.n_frames, expected=f"at most {_MOST_FRAMES}")
        kind = self._image.format
        if kind == "GIF" or (kind == "WEBP" and self.is_moving):
            position = file.tell()
            if (held := count_frames(file, kind)) != self.n_frames:
                raise DataError("frames are missing", got=self.n_frames, expected=held)
            file.seek(position)

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()

    @property
    def is_moving(self) -> bool:
        return self.n_frames > 1

    def facts(self) -> Facts:
        seconds = float(self.end) if self.is_moving else 0.0
        width, height = self._image.size
        return Facts(width=width, height=height, seconds=seconds, rate=self.n_frames / seconds if seconds else 0.0)

    def pixels(self, frame: int = 0) -> NDArray[np.uint8]:
        """One frame in sRGB, [H, W, 3]."""
        if self.n_frames + self._skipped > 1:
            self._image.seek(self._skipped + frame)
        picture, alpha = ImageOps.exif_transpose(self._image), None
        if picture.mode.startswith("I;16") or picture.mode == "I":  # Pillow would clip 16 bits, not scale them
            values, clear = np.asarray(picture).astype(np.uint32), picture.info.get("transparency")
            alpha = None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
            picture = Image.fromarray((values >> 8).astype(np.uint8))
        elif picture.has_transparency_data:
            alpha = picture.convert("RGBA").getchannel("A")
        profile = self._image.info.get("icc_profile")
        if self._coded is not None and not profile and not is_of_screen(*self._coded):
            wide = np.asarray(picture.convert("RGB")).astype(np.uint16) * 257
            picture = Image.fromarray(to_screen(wide, *self._coded))
        picture = _in_srgb(picture, profile)
        if self._image.format == "PNG" and self._coded is None and not profile and "srgb" not in self._image.info:
            picture = _of_gamma(picture, self._image.info.get("gamma") or _GAMMA)
        if alpha is not None:
            picture = Image.composite(picture, Image.new("RGB", picture.size), alpha)
        return np.asarray(picture)

    # -- a moving one, as a film: see `windows` -------------------------------------------------------

    @cached_property
    def _ends(self) -> list[int]:
        """Of each frame, in ms."""
        durations = list(self._durations())
        if (longest := max(durations)) > _LONGEST:
            got = f"{longest / 1000:g} s, frame {durations.index(longest)}"
            raise DataError("a frame that stays too long", got=got, expected=f"at most {_LONGEST // 1000} s")
        return list(accumulate(durations))

    @property
    def end(self) -> Fraction:
        return Fraction(self._ends[-1], 1000)

    def length(self) -> Fraction:
        return self.end

    def on_screen(self, times: Iterable[Fraction]) -> Iterator[int]:
        """Which frame is seen at each of the rising times, up to the end of the last."""
        frame = 0
        for time in times:
            while frame < self.n_frames and self._ends[frame] <= 1000 * time:
                frame += 1
            if frame == self.n_frames:
                return
            yield frame

    def fit(self, frame: int, sizes: Sequence[Size]) -> NDArray[np.uint8]:
        return fit(self.pixels(frame), sizes)

    def check_whole(self) -> None:
        """That all frames are there was seen on opening."""

    def _durations(self) -> Iterator[int]:
        """Of each frame, in ms."""
        for frame in range(self.n_frames):
            self._image.seek(self._skipped + frame)
            self._image.load()  # some formats tell it then
            told = round(self._image.info.get("duration") or 0)
            yield told if told > _SHORTEST else _INSTEAD


def _opened(file: IO[bytes], formats: list[str]) -> Image.Image:
    """What Pillow makes of a file; which size is too large is said here, and not by its warnings and limits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise absurd_dimensions(re.sub(r".*?(\d+ pixels).*", r"\1", str(error))) from error


def _heif() -> list[str]:
    """The format of HEIC pictures, whose library is an extra."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        fix = "pip install 'lumos_pl[heif]', or save it as JPEG"
        raise DataError("a kind of file that is not read: HEIC", fix=fix) from None
    register_heif_opener()
    return ["HEIF"]


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture's colours by its profile; one that cannot be used is passed over, as viewers do."""
    if picture.mode not in ("RGB", "L", "CMYK"):
        picture = picture.convert("RGB")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            own = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None
            return converted
    return picture.convert("RGB")


def _of_gamma(picture: Image.Image, gamma: float) -> Image.Image:
    """A picture whose PNG says by `gAMA` how its values follow from light, as a screen of today needs them."""
    exponent = _GAMMA / gamma
    if abs(exponent - 1) < _EQUAL_GAMMA or not 1 / _MOST_GAMMA < exponent < _MOST_GAMMA:
        return picture
    table = [round(255 * (value / 255) ** exponent) for value in range(256)]
    return picture.point(table * 3)


def _png(file: IO[bytes]) -> tuple[BytesIO, Coded | None]:
    """A PNG without its texts, which tools fill with megabytes; and what it says of its colours.

    Raises:
        DataError: a part that the picture needs is damaged, as its checksum says, which Pillow does not look at.
    """
    coded = None
    rest = BytesIO(file.read(len(_PNG)))
    rest.seek(0, 2)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        chunk = file.read(length + 4)
        if head[4:] in _PNG_WORDS and len(chunk) == length + 4:
            continue
        needed = not head[4] & 0x20 or head[4:] in _PNG_NEEDED
        is_whole = len(chunk) == length + 4  # a file that ends amid a part is Pillow's to tell
        if needed and is_whole and zlib.crc32(head[4:] + chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise DataError("damaged picture", got=f"another checksum of the part at byte {file.tell() - len(chunk)}")
        if head[4:] == b"cICP" and length == 4:
            coded = Coded(*chunk[:2])
        rest.write(head + chunk)
    rest.write(head)
    rest.seek(0)
    return rest, coded
