"""Exact pictures for fast mode, whose own decoder skips the loop filter and so drifts from the true picture.

A key picture depends on no other: its packet alone, given to a second decoder, yields it exactly as exact mode would,
for the price of one picture. Any other one needs the packets from the key picture before it on.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import av
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .limits import MediaLimits
from .probe import max_pixels

#: Packets remembered until their picture comes out of the decoder.
_REMEMBERED = 128
#: A group of pictures with more data than this is not kept; 8 s at 16 Mbit/s fit.
_GROUP_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """Where a picture can be decoded again from: the first ``count`` packets of its group, a key picture first."""

    packets: list[Packet[Any]]
    count: int
    pts: int


class ExactPictures:
    """Keeps the packets of the current group of pictures and decodes single pictures again."""

    def __init__(self, stream: VideoStream, limits: MediaLimits) -> None:
        self._origin = stream.codec_context
        self._options = {"max_pixels": str(max_pixels(limits))}
        self._group: list[Packet[Any]] | None = None
        self._group_bytes = 0
        self._sources: OrderedDict[int, Source] = OrderedDict()

    def note(self, packet: Packet[Any]) -> None:
        """Remember a packet, in the order of decoding."""
        if packet.is_keyframe:
            self._group, self._group_bytes = [], 0
        if self._group is None or packet.pts is None:
            return
        self._group.append(packet)
        self._group_bytes += packet.size
        self._sources[packet.pts] = Source(self._group, len(self._group), packet.pts)
        if len(self._sources) > _REMEMBERED:
            self._sources.popitem(last=False)
        if self._group_bytes > _GROUP_BYTES:
            self._group = None

    def source_of(self, frame: VideoFrame) -> Source | None:
        """Return how to decode this frame again, None when its packets were not kept."""
        return None if frame.pts is None else self._sources.get(frame.pts)

    def decode(self, source: Source) -> VideoFrame | None:
        """Return the picture, None when it can't be decoded."""
        context = cast(VideoCodecContext, CodecContext.create(self._origin.codec, "r"))
        context.extradata = self._origin.extradata
        context.width, context.height = self._origin.width, self._origin.height
        context.thread_count = 1
        context.skip_frame = "NONREF"
        context.options = dict(self._options)
        with suppress(av.FFmpegError):  # the caller keeps the picture it has
            for packet in (*source.packets[: source.count], None):
                for frame in context.decode(packet):
                    if frame.pts == source.pts:
                        return frame
        return None
