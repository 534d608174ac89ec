"""Cheap uploads that ask for expensive work, made here: ``python -m tests.support.hostile_files FOLDER`` writes them all.

Each is small and, but for the pictures that no decoder likes, legal. Large pictures are encoded in a process of their own,
since an encoder takes as much memory as a decoder.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIDE_PX = 8192


def make(name: str, folder: Path) -> Path:
    """Write one of the files, in a process of its own; return it."""
    path = folder / name
    command = [sys.executable, "-m", "tests.support.hostile_files", str(folder), name]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    return path


def grey(side_px: tuple[int, int], pix_fmt: str = "yuv420p", level: int = 128) -> av.VideoFrame:
    frame = av.VideoFrame(*side_px, pix_fmt)
    for plane in frame.planes:
        plane.update(bytes([level]) * plane.buffer_size)
    return frame


def encode(path: Path, codec: str, frames: list[av.VideoFrame], rate: int = 25, **options: str) -> None:
    """Write these pictures, one after another."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt, stream.thread_count = frames[0].format.name, 1
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


_SKIPPING = {
    "preset": "ultrafast", "x264-params": "bframes=0:ref=1:rc-lookahead=0:sync-lookahead=0:scenecut=0:keyint=infinite:threads=1",
}  # fmt: skip


def repeat_skipped(path: Path, side_px: int, frames: int, references: int) -> None:
    """Write an H.264 of one grey picture that is shown again ``frames`` times, each time for about 30 bytes a picture.

    Frame numbers count to 16, so sixteen skipped pictures can follow each other for ever. ``references``: what the header
    asks the decoder to keep.
    """
    seed = path.with_suffix(".seed.mp4")
    encode(seed, "libx264", [grey((side_px, side_px))] * 17, **_SKIPPING)
    with av.open(str(seed)) as source, av.open(str(path), "w") as output:
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        packets = [packet for packet in source.demux(video) if packet.size]
        length = packets[1].pts - packets[0].pts
        for index in range(frames):
            origin = packets[index] if index < 17 else packets[1 + (index - 1) % 16]
            packet = av.Packet(bytes(origin))
            packet.pts = packet.dts = index * length
            packet.time_base, packet.stream = origin.time_base, stream
            packet.is_keyframe = index == 0
            output.mux(packet)
    seed.unlink()
    ask_for_references(path, references)


def ask_for_references(path: Path, references: int) -> None:
    """Change how many reference frames the parameter set in an MP4's header names, from one. The moov box comes last."""
    data = path.read_bytes()
    at = data.index(b"avcC") + 4
    size = int.from_bytes(data[at + 6 : at + 8], "big")
    old = data[at + 8 : at + 8 + size]
    bits = "".join(f"{byte:08b}" for byte in old.replace(b"\0\0\3", b"\0\0"))
    place = references_at(bits)
    assert bits[place : place + 3] == "010", bits[place : place + 12]
    code = f"{references + 1:b}"
    bits = bits[:place] + "0" * (len(code) - 1) + code + bits[place + 3 :]
    bits = bits.rstrip("0") + "0" * (-len(bits.rstrip("0")) % 8)
    new = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    for zeros in (b"\0\0\0", b"\0\0\1", b"\0\0\2", b"\0\0\3"):
        new = new.replace(zeros, b"\0\0\3" + zeros[2:])
    changed = bytearray(data[: at + 6] + len(new).to_bytes(2, "big") + new + data[at + 8 + size :])
    grown = len(new) - size
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1", b"avcC"):
        size_at = changed.rindex(box, 0, at) - 4 if box != b"avcC" else at - 8
        old_size = int.from_bytes(changed[size_at : size_at + 4], "big")
        changed[size_at : size_at + 4] = (old_size + grown).to_bytes(4, "big")
    path.write_bytes(changed)


def references_at(bits: str) -> int:
    """Where the code of max_num_ref_frames begins in a parameter set without scaling lists."""
    at = 32

    def golomb() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        value = int(bits[at + zeros : at + 2 * zeros + 1], 2) - 1
        at += 2 * zeros + 1
        return value

    profile = int(bits[8:16], 2)
    golomb()
    if profile >= 100:
        assert golomb() != 3
        golomb()
        golomb()
        at += 1
        assert bits[at] == "0"
        at += 1
    golomb()
    order = golomb()
    assert order in (0, 2)
    if order == 0:
        golomb()
    return at


def skip_in_transport(path: Path) -> None:
    """Smaller skipped pictures, in a container whose header does not count them."""
    whole = path.with_suffix(".whole.mp4")
    repeat_skipped(whole, 4096, 20_000, 1)
    remux(whole, path)
    whole.unlink()


def remux(
    source_path: Path,
    path: Path,
    options: dict[str, str] | None = None,
    *,
    shift_s: float = 0.0,
    times: int = 1,
) -> None:
    """Copy the streams into another container, ``shift_s`` seconds later, so many times in a row."""
    streams: dict[int, Any] = {}
    with av.open(str(path), "w", options=options or {}) as output:
        for _ in range(times):
            with av.open(str(source_path)) as source:
                streams = streams or {s.index: output.add_stream_from_template(s) for s in source.streams}
                for packet in filter(lambda packet: packet.size, source.demux()):
                    if shift_s:
                        shift = round(shift_s / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream_index]
                    output.mux(packet)
                shift_s += (source.duration or 0) / 1e6 + 0.2


def silence(path: Path, seconds: int, picture_times_s: list[float]) -> None:
    """Write ``seconds`` of silence in a few bytes a second, with tiny pictures at these times."""
    rate_hz, block = 8_000, 4_096
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = output.add_stream("flac", rate=rate_hz, layout="mono", format="s16")
        sound.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.zeros((1, block), np.int16), format="s16", layout="mono")
        frame.sample_rate = rate_hz
        found = []
        for index in range(4):
            frame.pts = index * block
            found += sound.codec_context.encode(frame)
        payload = bytes(found[0])
        for index, time_s in enumerate(picture_times_s):
            picture = grey((64, 48), level=40 + 150 * (index % 2))
            picture.pts, picture.time_base = round(time_s * 1000), Fraction(1, 1000)
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
        for index in range(seconds * rate_hz // block):
            packet = av.Packet(payload)
            packet.pts = packet.dts = index * block
            packet.duration = block
            packet.time_base, packet.stream = Fraction(1, rate_hz), sound
            output.mux(packet)


def write_slow_sound(path: Path) -> None:
    """One sample of sound a second, each of which would become 16,000."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("pcm_s16le", rate=1, layout="mono", format="s16")
        for index in range(50):
            picture = grey((64, 48))
            picture.pts, picture.time_base = index, Fraction(1, 25)
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
        for index in range(4_000):
            packet = av.Packet(bytes(20))
            packet.pts = packet.dts = index * 10
            packet.time_base, packet.stream = Fraction(1, 1), sound
            output.mux(packet)


def write_streams(path: Path) -> None:
    """Two hundred streams."""
    with av.open(str(path), "w") as output:
        streams = []
        for _ in range(200):
            stream = output.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            streams.append(stream)
        for stream in streams:
            picture = grey((64, 48))
            picture.pts, picture.time_base = 0, Fraction(1, 25)
            output.mux(stream.encode(picture))
            output.mux(stream.encode(None))


def write_boxes(path: Path) -> None:
    """Boxes in boxes, two hundred thousand deep."""
    deep, names = 200_000, (b"trak", b"mdia", b"minf", b"stbl", b"udta", b"meta")
    size = 8 * deep
    data = bytearray(struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0))
    data += struct.pack(">I4s", size + 8, b"moov")
    for index in range(deep):
        data += struct.pack(">I4s", size - 8 * index, names[index % len(names)])
    path.write_bytes(data)


def write_changing(path: Path) -> None:
    """A cut every third of a second between two pictures that compress badly as JPEG."""
    chance = np.random.default_rng(3)
    pictures: list[Any] = []
    for _ in range(2):
        noise = chance.integers(0, 255, (720, 1280, 3), np.uint8)
        pictures.append(av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuv420p"))
    frames = [pictures[index // 9 % 2] for index in range(250)]
    encode(path, "libx264", frames, preset="ultrafast", crf="40")


def write_large(path: Path) -> None:
    encode(path.with_suffix(".avi"), "mpeg4", [grey((4096, 4096))] * 30)
    path.with_suffix(".avi").rename(path)


#: How each file is made.
MAKERS: dict[str, Callable[[Path], None]] = {
    # The largest pictures, 16 of them to be kept.
    "references.mp4": lambda path: repeat_skipped(path, SIDE_PX, 40, 16),
    # 10 MB of skipped pictures of the largest size: hours of decoding.
    "skipped.mp4": lambda path: repeat_skipped(path, SIDE_PX, 300_000, 1),
    "skipped.ts": skip_in_transport,
    # A codec of film studios, whose decoder takes gigabytes.
    "exr.mov": lambda path: encode(path, "exr", [grey((4096, 4096), "gbrpf32le", 0)] * 2, compression="zip16"),
    # 16 bits a channel: 8 bytes a pixel, several times over.
    "png64.mov": lambda path: encode(path, "png", [grey((4096, 4096), "rgba64be", 0)] * 2),
    # One second of pictures and twelve hours of sound, by the header.
    "silence.mp4": lambda path: silence(path, 43_000, [0.0, 0.5, 1.0]),
    # The same in a container whose header gives one length for all streams.
    "silence.mkv": lambda path: silence(path, 43_000, [0.0, 0.5, 1.0]),
    # Three pictures, the last of them eleven hours later.
    "late.mkv": lambda path: silence(path, 2, [0.0, 0.5, 40_000.0]),
    "slow-sound.mkv": write_slow_sound,
    "streams.mkv": write_streams,
    # Thirty thousand pictures a second.
    "rate.mp4": lambda path: encode(path, "libx264", [grey((64, 48))] * 3_000, 30_000, preset="ultrafast"),
    "boxes.mp4": write_boxes,
    "changing.mp4": write_changing,
    # The largest pictures by another codec.
    "vp8.webm": lambda path: encode(
        path, "libvpx", [grey((SIDE_PX, SIDE_PX))] * 4, **{"deadline": "realtime", "cpu-used": "16", "lag-in-frames": "0"}
    ),
    # Pictures of the largest size of MPEG-4, few and plain: allowed, and to be done within the memory.
    "large.mpg": write_large,
}  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or MAKERS:
        MAKERS[name](folder / name)
        print(f"{folder / name}: {(folder / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
