"""Reads a container's packets so that damage ends the reading, not the process, and reports how far it has got."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

#: Wall time between two reports.
_EVERY_S = 0.5


def read_packets(
    container: InputContainer,
    decoded: list[VideoStream | AudioStream],
    on_unreadable: Callable[[], None],
) -> Iterator[Packet[Any]]:
    """Yield the packets of all streams, then an empty one for each stream in ``decoded``.

    The empty ones make the decoders give up what they hold. When the container can't be read on, ``on_unreadable``
    is called and the reading ends there; what came so far stays usable.
    """
    try:
        for packet in container.demux():
            if packet.size:
                yield packet
            elif packet.dts is None and packet.pos is None:
                # PyAV's own end mark. It must not go on: with streams that appeared on the way, PyAV 18 reads past
                # its list of streams there.
                break
    except av.FFmpegError:
        on_unreadable()
    for stream in decoded:
        end: Packet[Any] = Packet()
        end.stream = stream
        yield end


class Progress:
    """Calls back with a fraction 0..1 that never falls, about twice a second."""

    def __init__(
        self, duration_s: float, size_bytes: int, on_progress: Callable[[float], None] | None
    ) -> None:
        self._duration_s = duration_s
        self._size_bytes = size_bytes
        self._on_progress = on_progress or (lambda _: None)
        self._told_s = time.monotonic()
        self._fraction = 0.0

    def tell(self, content_s: float, position_bytes: int | None) -> None:
        """Report the time reached, or where the header gives no duration, the place in the file."""
        now_s = time.monotonic()
        if now_s - self._told_s < _EVERY_S:
            return
        self._told_s = now_s
        if self._duration_s > 0:
            fraction = content_s / self._duration_s
        else:
            fraction = (position_bytes or 0) / self._size_bytes
        self._fraction = max(self._fraction, min(0.99, fraction))
        self._on_progress(self._fraction)

    def finish(self) -> None:
        """Report that all is done."""
        self._on_progress(1.0)
