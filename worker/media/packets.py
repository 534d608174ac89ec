"""Reading a container's packets so that damage ends the reading, not the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream


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
