"""Exact pictures for fast mode, whose own decoder skips the loop filter and so drifts from the true picture.

A key picture depends on no other, so its packet alone, given to a second decoder, yields it exactly as exact mode
would, for the price of one picture.
"""

from __future__ import annotations

from collections import OrderedDict
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
_REMEMBERED = 64


class KeyPictures:
    """Remembers the packets of key pictures and decodes single ones again."""

    def __init__(self, stream: VideoStream, limits: MediaLimits) -> None:
        self._packets: OrderedDict[int, Packet[Any]] = OrderedDict()
        context = cast(VideoCodecContext, CodecContext.create(stream.codec_context.codec, "r"))
        context.extradata = stream.codec_context.extradata
        context.width, context.height = stream.codec_context.width, stream.codec_context.height
        context.thread_count = 1
        context.options = {"max_pixels": str(max_pixels(limits))}
        self._decoder = context

    def note(self, packet: Packet[Any]) -> None:
        """Remember the packet if it holds a key picture."""
        if packet.is_keyframe and packet.pts is not None:
            self._packets[packet.pts] = packet
            if len(self._packets) > _REMEMBERED:
                self._packets.popitem(last=False)

    def packet_of(self, frame: VideoFrame) -> Packet[Any] | None:
        """Return the packet that holds this key picture, None for any other picture."""
        if frame.pts is None or not frame.key_frame:
            return None
        return self._packets.pop(frame.pts, None)

    def decode(self, packet: Packet[Any]) -> VideoFrame | None:
        """Return the packet's picture, None when it can't be decoded alone."""
        try:
            frames = [*self._decoder.decode(packet), *self._decoder.decode(None)]
        except av.FFmpegError:
            return None  # the caller keeps the picture it has
        finally:
            self._decoder.flush_buffers()
        return frames[0] if frames else None
