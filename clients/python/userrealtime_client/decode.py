"""Decodes messages of the relay: JSON with numbers of any size and any nesting, and data by the application's function.

The data of an event is any value of the Postgres type jsonb, with numbers of up to 131,072 digits and thousands of
nested lists. `json.loads` rejects both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

Parse = Callable[[str], Any]
"""Converts the JSON text of an event's data to the value that the application receives."""

_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{},:]|[^][{},:"\s]++', re.DOTALL)
_SPACE: Final = " \t\n\r"


class Unparsed(NamedTuple):
    """Replaces data that the function of the application could not convert."""

    text: str
    error: Exception


def decode(text: str) -> Any:
    """Return the value of a JSON text. A number that is too large for int or float is a Decimal.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return json.loads(text, parse_float=_real)
    except (ValueError, RecursionError):
        return _decode_deep(text)


def decode_message(text: str, parse: Parse | None) -> Any:
    """Return a message of the relay, with the data of an event converted by `parse`.

    Raises:
        ValueError: the text is not JSON.
    """
    message = decode(text)
    if parse is not None and isinstance(message, dict) and message.get("type") in ("event", "broadcast"):
        _convert_data(message, text, parse)
    return message


def decode_answer(text: str, parse: Parse | None) -> Any:
    """Return the response to a poll, with the data of its events converted by `parse`.

    Raises:
        ValueError: the text is not JSON.
    """
    answer = decode(text)
    if parse is not None and isinstance(answer, dict):
        for name in ("events", "broadcasts"):
            if isinstance(events := answer.get(name), list):
                for event, source in zip(events, _items(_members(text)[name]), strict=True):
                    if isinstance(event, dict):
                        _convert_data(event, source, parse)
    return answer


def _convert_data(event: dict[str, Any], text: str, parse: Parse) -> None:
    data = _members(text).get("data")
    if data is None:
        return
    try:
        event["data"] = parse(data)
    except Exception as error:  # noqa: BLE001 (an error of the application's function must not stop later events)
        event["data"] = Unparsed(data, error)


def _members(text: str) -> dict[str, str]:
    """Return the members of an object, as JSON text."""
    parts = _parts(text)
    return {json.loads(name): value for name, value in zip(parts[::2], parts[1::2], strict=True)}


def _items(text: str) -> list[str]:
    """Return the items of a list, as JSON text."""
    return _parts(text)


def _parts(text: str) -> list[str]:
    """Return the names and values of a valid object, or the items of a valid list, as JSON text."""
    parts, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{" | "[":
                depth += 1
                if depth == 1:
                    start = token.end()
                continue
            case "}" | "]":
                depth -= 1
                is_end = depth == 0
            case "," | ":":
                is_end = depth == 1
            case _:
                continue
        if is_end:
            if part := text[start : token.start()].strip(_SPACE):
                parts.append(part)
            start = token.end()
    return parts


def _integer(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        return Decimal(text)


def _real(text: str) -> float | Decimal:
    value = float(text)
    return value if math.isfinite(value) else Decimal(text)


_SCALARS: Final = json.JSONDecoder(parse_float=_real, parse_int=_integer)


def _decode_deep(text: str) -> Any:
    """Return the same as `decode`, without recursion but slower."""
    decoder = _Decoder()
    end = 0
    for token in _TOKEN.finditer(text):
        if text[end : token.start()].strip(_SPACE):
            raise ValueError("not JSON: text between two tokens")
        decoder.feed(token[0])
        end = token.end()
    if text[end:].strip(_SPACE):
        raise ValueError("not JSON: text after the last token")
    return decoder.result()


class _Decoder:
    """A parser without recursion: the stack of open lists and objects, and the expected token."""

    def __init__(self) -> None:
        self._open: list[list[Any] | dict[str, Any]] = []
        self._names: list[str] = []
        self._root: list[Any] = []
        self._wants = "value"

    def feed(self, sign: str) -> None:
        wants = self._wants
        if sign in ("{", "[") and wants in ("value", "value or end"):
            container: list[Any] | dict[str, Any] = {} if sign == "{" else []
            self._add(container)
            self._open.append(container)
            self._wants = "name or end" if sign == "{" else "value or end"
        elif sign in ("}", "]") and self._open and wants in ("name or end", "value or end", "comma or end"):
            if isinstance(self._open.pop(), dict) is not (sign == "}"):
                raise ValueError("not JSON: another kind of bracket is open")
            self._wants = "comma or end"
        elif sign == "," and self._open and wants == "comma or end":
            self._wants = "name" if isinstance(self._open[-1], dict) else "value"
        elif sign == ":" and wants == "colon":
            self._wants = "value"
        elif sign[0] == '"' and wants in ("name", "name or end"):
            self._names.append(json.loads(sign))
            self._wants = "colon"
        elif sign[0] not in "{}[],:" and wants in ("value", "value or end"):
            self._add(_SCALARS.decode(sign))
            self._wants = "comma or end"
        else:
            raise ValueError(f"not JSON: {sign[:20]} in place of a {wants}")

    def result(self) -> Any:
        if self._open or not self._root:
            raise ValueError("not JSON: the text ends too early")
        return self._root[0]

    def _add(self, value: Any) -> None:
        if not self._open:
            self._root.append(value)
        elif isinstance(parent := self._open[-1], dict):
            parent[self._names.pop()] = value
        else:
            parent.append(value)
