"""What a file is, told by its first bytes: its suffix may say anything."""

from __future__ import annotations

from typing import IO

from lumos_pl.errors import DataError

IMAGE = "image"
_REMUX = "`ffmpeg -i FILE -c copy FILE.mkv` puts the same pictures into a container that is read"
_CONVERT = "save it as PNG, JPEG, WebP or AVIF"

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF87a", b"GIF89a")
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_NOT_READ = {  # what is known and not read: its name, and the way out
    b"\x00\x00\x01\xba": ("MPEG program stream", _REMUX),
    b"\x00\x00\x01\xb3": ("MPEG video without a container", _REMUX),
    b"\x00\x00\x00\x01": ("H.264 or H.265 without a container", _REMUX),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ("ASF or WMV", "convert it: `ffmpeg -i FILE FILE.mkv`"),
    b"\x06\x0e\x2b\x34": ("MXF", _REMUX),
    b"DKIF": ("IVF", _REMUX),
    b"nut/multimedia": ("NUT", _REMUX),
    b"\x2e\x52\x4d\x46": ("RealMedia", "convert it: `ffmpeg -i FILE FILE.mkv`"),
    b"YUV4MPEG2": ("YUV4MPEG2", "convert it: `ffmpeg -i FILE -c:v ffv1 FILE.mkv`"),
    b"II*\x00": ("TIFF or a camera's raw picture", _CONVERT),
    b"MM\x00*": ("TIFF or a camera's raw picture", _CONVERT),
    b"\x00\x00\x00\x0cjP  ": ("JPEG 2000", _CONVERT),
    b"\xff\x4f\xff\x51": ("JPEG 2000", _CONVERT),
    b"\x00\x00\x00\x0cJXL ": ("JPEG XL", _CONVERT),
    b"\xff\x0a": ("JPEG XL", _CONVERT),
    b"\x00\x00\x01\x00": ("an icon, ICO", _CONVERT),
    b"P5": ("PGM", _CONVERT),
    b"P6": ("PPM", _CONVERT),
    b"DDS ": ("DDS", _CONVERT),
    b"qoif": ("QOI", _CONVERT),
    b"\x76\x2f\x31\x01": ("OpenEXR", _CONVERT),
    b"#?RADIANCE": ("Radiance HDR", _CONVERT),
    b"8BPS": ("Photoshop's PSD", _CONVERT),
    b"%PDF": ("PDF", _CONVERT),
    b"<svg": ("SVG", _CONVERT),
}

_PNG_PARTS = 1000  # that are looked through: what moves says so before its first picture


def may_move(file: IO[bytes]) -> bool:
    """Whether it is a video, or a picture whose beginning says that it moves; a GIF tells that only by all of it.

    Raises:
        DataError: as of `kind_of`.
    """
    if kind_of(file) != IMAGE:
        return True
    head = file.read(32)
    file.seek(0)
    if head.startswith(b"\x89PNG"):
        return _is_animated_png(file)
    if head[8:12] == b"WEBP":
        return head[12:16] == b"VP8X" and bool(head[20] & 0x02)
    return head.startswith(b"GIF") or head[4:12] == b"ftypavis"


def _is_animated_png(file: IO[bytes]) -> bool:
    place = 8
    for _ in range(_PNG_PARTS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"acTL", b"IDAT"):
            return head[4:] == b"acTL"
        place += 12 + int.from_bytes(head[:4], "big")
    return False


def kind_of(file: IO[bytes]) -> str:
    """`IMAGE`, or FFmpeg's name of the video's demuxer.

    Raises:
        DataError: another kind, by its name where it is known.
    """
    head = file.read(1024)
    file.seek(0)
    is_box = head[4:8] == b"ftyp"
    if head.startswith(_IMAGES) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return IMAGE
    if is_box and head[8:12] in _IMAGE_BRANDS:
        return IMAGE
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"OggS"):
        return "ogg"
    if head.startswith(b"FLV\x01"):
        return "flv"
    for first, step in (0, 188), (4, 192):  # sync bytes of four packets
        if head[first : first + 3 * step + 1 : step] == b"GGGG":
            return "mpegts"
    for start, (name, fix) in _NOT_READ.items():
        if head.startswith(start):
            raise DataError(f"a kind of file that is not read: {name}", fix=fix)
    raise DataError(
        "neither a video nor an image that is read",
        got=None if head else "an empty file",  # not its bytes: a link may lead to somebody else's
        expected="MP4/MOV, Matroska/WebM, AVI, MPEG-TS, FLV, Ogg; PNG, JPEG, WebP, AVIF, GIF, BMP",
    )
