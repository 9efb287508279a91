"""Files that are cut, holed or something else than they seem: refused, never silently short."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from data_modules.media.decode import decode_media
from faults.numbered import clip_of, numbered, write_numbered
from lumos_pl.errors import DataError
from lumos_pl.seeding import generator
from tests.data_modules.media.files import CONTAINERS, flat, request, shown, write_flat, write_video
from tests.refusals import refused


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("ts", "libx264")],
)
def test_a_cut_file_is_never_silently_short(tmp_path: Path, suffix: str, codec: str) -> None:
    faststart = suffix == "mp4"
    whole = write_flat(tmp_path / f"whole.{suffix}", 24, codec=codec)
    if faststart:
        whole = _with_header_first(whole, tmp_path / "front.mp4")
    data = whole.read_bytes()
    assert len(decode_media(whole, request()).frames) == 24
    cut = tmp_path / f"a.{suffix}"
    for part in range(20, 38):
        cut.write_bytes(data[: len(data) * part // 40 | 1])
        with pytest.raises(DataError):
            decode_media(cut, request())


def _with_header_first(source: Path, target: Path) -> Path:
    with av.open(str(source)) as given, av.open(str(target), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    assert target.read_bytes().find(b"moov") < target.read_bytes().find(b"mdat")
    return target


def test_a_cut_file_still_gives_a_window_that_is_whole(tmp_path: Path) -> None:
    whole = write_flat(tmp_path / "a.mkv", 48)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.9)])
    assert shown(decode_media(cut, request(max_frames=10))) == list(range(10))
    with refused(DataError, file="cut.mkv"):
        decode_media(cut, request(max_frames=99))


@pytest.mark.parametrize("stamp", [b"", b"time"])  # before each packet: also of 192 bytes, as discs have them
def test_what_is_no_packet_at_the_end_of_a_transport_stream_is_not_passed_over(tmp_path: Path, stamp: bytes) -> None:
    data = write_flat(tmp_path / "a.ts", 24).read_bytes()
    packets = [stamp + data[i : i + 188] for i in range(0, len(data), 188)]
    file = tmp_path / "b.ts"
    file.write_bytes(b"".join(packets))
    assert len(decode_media(file, request(max_frames=99)).frames) == 24
    for lost in range(1, len(packets) // 2):
        file.write_bytes(b"".join(packets[:-lost]) + bytes(lost * len(packets[0])))
        with pytest.raises(DataError):
            decode_media(file, request(max_frames=99))


def test_an_avi_that_lost_its_index_and_its_end_is_cut_off(tmp_path: Path) -> None:
    data = write_flat(tmp_path / "whole.avi", 24, codec="huffyuv", pixel_format="yuv422p").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: len(data) * 3 // 5])
    with refused(DataError, file="a.avi"):
        decode_media(tmp_path / "a.avi", request(max_frames=99))


def test_a_damaged_fragment_of_an_mp4_is_not_its_end(tmp_path: Path) -> None:
    fragments = {"movflags": "+frag_every_frame+empty_moov"}
    data = write_numbered(tmp_path / "whole.mp4", 24, container_options=fragments).read_bytes()
    places = [place for place in range(len(data)) if data[place : place + 4] == b"moof"]
    assert len(places) == 24 and len(clip_of(tmp_path / "whole.mp4", start=0.0, n=99).frames) == 24
    first, later = places[0] - 4, places[9] - 4
    for damaged in (
        data[:later] + bytes(8) + data[later + 8 :],  # no box
        data[:first] + bytes(8) + data[first + 8 :],
        data[:later] + b"x" + data[later:],  # shifted
        data[:-3],
    ):
        (tmp_path / "a.mp4").write_bytes(damaged)
        with refused(DataError, file="a.mp4"):
            clip_of(tmp_path / "a.mp4", start=0.0, n=99)


def test_a_part_of_a_picture_with_another_checksum_is_damage(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(4))
    first.save(tmp_path / "whole.png", save_all=True, append_images=rest, duration=100)
    data = (tmp_path / "whole.png").read_bytes()
    for part in b"IHDR", b"acTL", b"IDAT", b"fcTL", b"fdAT":
        place = data.index(part) + 5
        (tmp_path / "a.png").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with refused(DataError, file="a.png"):
            clip_of(tmp_path / "a.png", start=0.0)


def test_a_frame_that_a_moving_webp_hides_is_missed(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(4))
    first.save(tmp_path / "whole.webp", save_all=True, append_images=rest, duration=100)
    head, *frames = (tmp_path / "whole.webp").read_bytes().split(b"ANMF")
    (tmp_path / "a.webp").write_bytes(b"ANMF".join([head, frames[0]]) + b"ANMG" + b"ANMF".join(frames[1:]))
    with refused(DataError, file="a.webp"):
        clip_of(tmp_path / "a.webp", start=0.0)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_a_moving_picture_of_which_one_frame_would_stay_for_more_than_a_minute_is_damage(
    suffix: str, tmp_path: Path
) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(4))
    for longest in 59_000, 100 + (1 << 16):
        durations = [100, longest, 100, 100]
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest, duration=durations)
        if longest < 60_000:
            assert len(decode_media(tmp_path / f"a.{suffix}", request()).frames)
            continue
        with refused(DataError, file=f"a.{suffix}"):
            decode_media(tmp_path / f"a.{suffix}", request())


def noise(index: int) -> NDArray[np.uint8]:
    return torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator(0, "noise", index)).numpy()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi", "ts"])
def test_a_hole_is_never_passed_over(tmp_path: Path, suffix: str) -> None:
    codec, _ = CONTAINERS[suffix]
    path = write_video(tmp_path / f"a.{suffix}", [noise(i) for i in range(24)], codec=codec, options={"g": "8"})
    data, whole = path.read_bytes(), decode_media(path, request()).frames
    n_refused = 0
    for place in range(1, 20):
        start, length = len(data) * place // 20, len(data) // 15
        for damaged in (data[:start] + bytes(length) + data[start + length :], data[:start] + data[start + length :]):
            path.write_bytes(damaged)
            try:
                frames = decode_media(path, request()).frames
            except DataError:
                n_refused += 1
                continue
            assert frames.shape == whole.shape
            changed = np.abs(frames.astype(int) - whole).mean((1, 2, 3)) > 4
            assert not changed.any(), (place, changed)
    assert n_refused


def test_damage_is_reported_not_concealed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [noise(i) for i in range(24)])
    data = bytearray(path.read_bytes())
    middle = data.find(b"mdat") + 20_000
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with refused(DataError, file="a.mp4"):
        decode_media(path, request())


def test_text_that_names_other_files_reads_none_of_them(tmp_path: Path) -> None:
    sibling = write_flat(tmp_path / "sibling.mp4", 24)
    for text in (
        f"ffconcat version 1.0\nfile {sibling.name}\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{sibling.name}\n#EXT-X-ENDLIST\n",
        f"<MPD><Period><AdaptationSet><BaseURL>{sibling.name}</BaseURL></AdaptationSet></Period></MPD>",
        "only words",
        "",
    ):
        path = tmp_path / "a.mp4"
        path.write_text(text)
        with refused(DataError, file="a.mp4"):
            decode_media(path, request())


def test_a_movie_that_refers_to_another_file_reads_only_itself(tmp_path: Path) -> None:
    write_flat(tmp_path / "sibling.mp4", 24)
    data = write_flat(tmp_path / "a.mp4", 24).read_bytes()
    url = b"\0\0\0\x0curl \0\0\0\x01"  # "the data is in this file"
    assert data.count(url) == 1
    alias = b"\0\0\0\x0curl \0\0\0\x00"
    (tmp_path / "a.mp4").write_bytes(data.replace(url, alias))
    assert shown(decode_media(tmp_path / "a.mp4", request())) == list(range(24))


def silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 8000
    return frame


def test_files_without_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for cover in False, True:
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=8000)
            if cover:
                picture = container.add_stream("mjpeg", rate=1)
                assert isinstance(picture, VideoStream)
                picture.width = picture.height = 64
                picture.pix_fmt, picture.disposition = "yuvj420p", Disposition.attached_pic
                container.mux(picture.encode(av.VideoFrame.from_ndarray(flat(0, (64, 64)), format="rgb24")))
                container.mux(picture.encode(None))
            container.mux(sound.encode(silence(4096)))
            container.mux(sound.encode(None))
        with refused(DataError, file="a.mp4"):
            decode_media(path, request())
    with refused(DataError):
        decode_media(tmp_path, request())
    with refused(DataError, file="missing.mp4"):
        decode_media(tmp_path / "missing.mp4", request())


def test_codecs_outside_the_list_are_refused(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.avi", 3, codec="cinepak", pixel_format="rgb24")
    with refused(DataError, file="a.avi", got="cinepak"):
        decode_media(path, request())


def test_a_longer_audio_track_does_not_move_the_window_or_shorten_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=12)
        audio = container.add_stream("aac", rate=8000)
        assert isinstance(video, VideoStream)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        for i in range(24):
            container.mux(video.encode(av.VideoFrame.from_ndarray(flat(i, (64, 64)), format="rgb24")))
        container.mux(video.encode(None))
        container.mux(audio.encode(silence(8000 * 4)))
        container.mux(audio.encode(None))
    assert shown(decode_media(path, request(start=None))) == list(range(24))
    assert shown(decode_media(path, request(max_frames=99))) == list(range(24))
