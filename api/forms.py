"""Reads a form with one file (``multipart/form-data``) as it comes: the file goes on piece by piece, fields are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.bodies import require_type
from api.dialects import InvalidParameter
from api.problems import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: Parts of a form, and bytes of a field.
MAX_PARTS, MAX_FIELD_BYTES = 40, 16_384


@dataclass
class _Part:
    headers: dict[str, bytes] = field(default_factory=dict)
    header: bytes = b""
    value: bytes = b""
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


async def read_form(
    request: Request, body: AsyncIterator[bytes], file_name: str, store: Callable[[bytes], Awaitable[None]]
) -> dict[str, list[str]]:
    """The fields of a form by name, each with its values; the bytes of the file ``file_name`` go to ``store``.

    Raises:
        UnsupportedMedia: the body is said to be something else.
        BadRequest: it is no form, or has too many parts.
        InvalidParameter: a field is too long or no text, or a file has another name, or comes twice.
    """
    require_type(request, "multipart/form-data")
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if not boundary:
        raise BadRequest("the form's content type has no boundary: let the client set it")
    reader = _Reader(file_name)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in body:
            parser.write(chunk)
            if reader.file:
                await store(bytes(reader.file))
                reader.file.clear()
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"the body is no form ({error}): send multipart/form-data") from None
    if not reader.ended:
        raise BadRequest("the form ends early: send all of it")
    if not reader.files:
        raise InvalidParameter(f"{file_name} is missing: send it", file_name)
    return reader.fields


class _Reader:
    """What the parser has found."""

    def __init__(self, file_name: str) -> None:
        self._file_name, self._parts, self._part = file_name, 0, _Part()
        self.fields: dict[str, list[str]] = {}
        self.file = bytearray()
        self.files = 0
        self.ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts: send fewer")
        self._part = _Part()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _header_end(self) -> None:
        part = self._part
        part.headers[part.header.lower().decode("latin-1")] = part.value
        part.header = part.value = b""

    def _headers_finished(self) -> None:
        part = self._part
        options = parse_options_header(part.headers.get("content-disposition", b""))[1]
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        part.is_file = b"filename" in options
        if part.is_file:
            self.files += 1
            if part.name != self._file_name or self.files > 1:
                shown = part.name[:60]
                raise InvalidParameter(
                    f"the file {shown!a} is one too many: send one, {self._file_name}", shown
                )

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.is_file:
            self.file += data[start:end]
            return
        part.data += data[start:end]
        if len(part.data) > MAX_FIELD_BYTES:
            shown = part.name[:60]
            raise InvalidParameter(f"{shown!a} has more than {MAX_FIELD_BYTES} bytes: send less", shown)

    def _end(self) -> None:
        part = self._part
        if not part.is_file:
            try:
                value = part.data.decode()
            except UnicodeDecodeError:
                shown = part.name[:60]
                raise InvalidParameter(f"{shown!a} is no UTF-8 text: send text", shown) from None
            self.fields.setdefault(part.name, []).append(value)

    def _finish(self) -> None:
        self.ended = True
