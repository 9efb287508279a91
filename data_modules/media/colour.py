"""The colours of a video's frame, or of a picture, as a screen of today shows them: sRGB, 8 bits.

What a file says of its colours is followed: matrix and range by FFmpeg's converter, wide gamuts and high dynamic range
here. A file that says nothing is taken as players take it: BT.709 from 720 lines on, BT.601 below.

HDR is brought to SDR by the rule of ITU-R BT.2390-10, section 5.4 (its EETF in PQ, on the largest of the three
channels, so that hues stay): from 1,000 cd/m2 down to 203 cd/m2, the white of a graphic in HDR (BT.2408). Below some
90 cd/m2 nothing changes; HLG is seen on a display of 1,000 cd/m2 (BT.2100: system gamma 1.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self, cast

import numpy as np
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from numpy.typing import NDArray

from lumos_pl.errors import DataError

Floats = NDArray[np.float32]

HD_LINES = 720
SDR_WHITE, HDR_PEAK, PQ_PEAK = 203.0, 1000.0, 10_000.0  # cd/m2
GAMMA = 2.2  # of an SDR picture, in and out
_STRIP = 128  # rows that are converted at once: a frame of 4K in floating point takes 100 MB

_XY = {  # red, green, blue as x, y; white is D65 in all (BT.2020, SMPTE EG 432-1; BT.709 is sRGB's)
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)
_UNSAID = (2, 3)  # FFmpeg's numbers of a matrix that is unspecified, or reserved
_NOT_READ = {  # FFmpeg's numbers of matrices that its converter does not take, which are H.273's
    8: "YCgCo",
    10: "BT.2020, constant luminance",
    11: "Y'D'zD'x",
    12: "chromaticity-derived",
    13: "chromaticity-derived, constant luminance",
    14: "ICtCp",
    15: "IPT-C2 of Dolby Vision",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
_DOLBY = ("dvh1", "dvhe", "dav1")  # codec tags of Dolby Vision that need not be a picture without it
_HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}


@dataclass(frozen=True)
class ToldColours:
    """What a container says of its video's colours, which counts where the video itself says nothing.

    FFmpeg's decoders of H.265 and VP9 pass it over; players do not.
    """

    color_primaries: int
    color_trc: int
    colorspace: int
    codec_tag: str

    @classmethod
    def of(cls, context: VideoCodecContext) -> Self:
        """As a stream has it before a picture is decoded."""
        return cls(context.color_primaries, context.color_trc, context.colorspace, context.codec_tag)

    def complete(self, frame: VideoFrame) -> None:
        """Say of a frame what it does not; of Dolby Vision, which need not be such a picture, nothing."""
        if not _is_dolby(frame, self.codec_tag):
            for name in "color_primaries", "color_trc", "colorspace":
                if getattr(frame, name) in _UNSAID:
                    setattr(frame, name, getattr(self, name))


def hdr_kind(frame: VideoFrame) -> str | None:
    """See `hdr_of`."""
    return hdr_of(frame.color_trc)


def hdr_of(transfer: int) -> str | None:
    """ "PQ" or "HLG" by FFmpeg's number, which is H.273's; None for a standard dynamic range."""
    return _HDR.get(cast(ColorTrc, transfer))


def check_readable(frame: VideoFrame, codec_tag: str) -> None:
    """Raise DataError for colours that are known and not read here: shown by another rule they would be wrong.

    Dolby Vision's pictures are those of PQ, HLG or SDR where the file says so, and else mean nothing by themselves
    (profile 5 and its like).
    """
    fix = "convert it: `ffmpeg -i FILE -vf zscale=matrix=709 -c:v ffv1 FILE.mkv`"
    what, got = "colours that are not read", _NOT_READ.get(frame.colorspace)
    if _is_dolby(frame, codec_tag) and frame.color_trc in _UNSAID:
        got, fix = "Dolby Vision without another picture", "export it as HDR10 or SDR"
    if got is not None:
        raise DataError(what, got=got, expected="BT.601, BT.709, BT.2020 or RGB", fix=fix)


def _is_dolby(frame: VideoFrame, codec_tag: str) -> bool:
    told = cast("Mapping[SideDataType, SideData]", frame.side_data)  # wrongly typed in PyAV
    return codec_tag in _DOLBY or SideDataType.DOVI_METADATA in told or SideDataType.DOVI_RPU_BUFFER in told


def to_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """The picture in sRGB, [H, W, 3]; what is transparent lies on black."""
    matrix = _matrix(frame)
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", src_colorspace=matrix, threads=1)
        return (rgba[..., :3] * (rgba[..., 3:].astype(np.float32) / 255) + 0.5).astype(np.uint8)
    if is_of_screen(frame.color_primaries, frame.color_trc):
        return cast("NDArray[np.uint8]", frame.to_ndarray(format="rgb24", src_colorspace=matrix, threads=1))
    wide = cast("NDArray[np.uint16]", frame.to_ndarray(format="rgb48le", src_colorspace=matrix, threads=1))
    return to_screen(wide, frame.color_primaries, frame.color_trc)


def is_of_screen(primaries: int, transfer: int) -> bool:
    """Whether there is nothing for `to_screen` to do."""
    return cast(ColorPrimaries, primaries) not in _XY and hdr_of(transfer) is None


def to_screen(wide: NDArray[np.uint16], primaries_number: int, transfer: int) -> NDArray[np.uint8]:
    """A picture of these primaries and this transfer function in sRGB, [H, W, 3]."""
    primaries, hdr = _XY.get(cast(ColorPrimaries, primaries_number)), hdr_of(transfer)
    to_bt709 = np.eye(3, dtype=np.float32) if primaries is None else _to_bt709(primaries)
    picture = np.empty(wide.shape, np.uint8)
    for top in range(0, len(wide), _STRIP):
        picture[top : top + _STRIP] = _to_srgb(wide[top : top + _STRIP], to_bt709, hdr)
    return picture


def _matrix(frame: VideoFrame) -> int:
    if frame.colorspace not in _UNSAID:
        return frame.colorspace
    return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601


def _to_srgb(wide: NDArray[np.uint16], to_bt709: Floats, hdr: str | None) -> NDArray[np.uint8]:
    light = _light_of_codes(hdr)[wide]
    if hdr == "HLG":  # from the light of the scene to that of the display
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (np.maximum(luminance, 1e-6) ** 0.2 * HDR_PEAK)[..., None]
    light = np.maximum(light @ to_bt709.T, 0)
    if hdr is not None:
        largest = np.maximum(light.max(-1), 1e-4)
        light *= (_mapped(largest) / largest)[..., None]
    seen: Floats = np.minimum(light / SDR_WHITE, 1) ** (1 / GAMMA)
    return (seen * 255 + 0.5).astype(np.uint8)


@lru_cache
def _light_of_codes(hdr: str | None) -> Floats:
    """The light of each 16-bit code value: cd/m2, of HLG relative to the scene's peak."""
    signal = np.linspace(0, 1, 1 << 16)
    match hdr:
        case "PQ":
            light = pq_to_light(signal)
        case "HLG":  # BT.2100, inverse OETF
            a, b, c = 0.17883277, 0.28466892, 0.55991073
            light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        case _:
            light = signal**GAMMA * SDR_WHITE
    return light.astype(np.float32)


def pq_to_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084: from a signal in [0, 1] to cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.asarray(signal) ** (1 / m2)
    return (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * PQ_PEAK


def light_to_pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `pq_to_light`."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = (np.asarray(light) / PQ_PEAK) ** m1
    return ((c1 + c2 * root) / (1 + c3 * root)) ** m2


def _mapped(light: Floats) -> Floats:
    """What the EETF makes of so much light, in cd/m2."""
    return np.interp(light, *_tone_curve()).astype(np.float32)


@lru_cache
def _tone_curve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The EETF at 4,096 points, evenly spaced in PQ: light before and after."""
    source, target = light_to_pq(np.array([HDR_PEAK, SDR_WHITE]))
    signal = np.linspace(0, 1, 4096)
    brightness, most = np.minimum(signal / source, 1), target / source
    knee = 1.5 * most - 0.5
    t = np.clip((brightness - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_to_light(signal), pq_to_light(np.where(brightness < knee, brightness, spline) * source)


@lru_cache
def _to_bt709(primaries: tuple[tuple[float, float], ...]) -> Floats:
    """The matrix from linear RGB of these primaries to that of BT.709."""
    return (np.linalg.inv(_to_xyz(_BT709)) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))
