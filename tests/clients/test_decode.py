"""The decoder of the Python client: every value of jsonb, and data that a function of the application converts."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest

from userrealtime_client.decode import Unparsed, _decode_deep, decode, decode_answer, decode_message

DEEP = 6_000
EVENT = '{"type":"event","id":7,"event":"x","at":"","data":%s}'


def depth(value: Any) -> int:
    levels = 0
    while isinstance(value, list):
        levels, value = levels + 1, value[0] if value else None
    return levels


def test_ordinary_numbers_have_the_types_of_json_loads() -> None:
    assert repr(decode("[0, -1, 1.5, 9007199254740993, 1e3, 123456789012345678901234567890]")) == repr(
        [0, -1, 1.5, 9007199254740993, 1000.0, 123456789012345678901234567890]
    )


@pytest.mark.parametrize("text", ["1" + "0" * 131_071, "-1" + "2" * 5_000, "9" * 400 + ".25"])
def test_a_number_that_is_too_big_is_a_decimal(text: str) -> None:
    [value] = decode(f"[{text}]")
    assert isinstance(value, Decimal)
    assert str(value) == text


def test_nesting_is_not_limited() -> None:
    assert depth(decode("[" * DEEP + "]" * DEEP)) == DEEP
    assert depth(decode_message(EVENT % ("[" * DEEP + "]" * DEEP), None)["data"]) == DEEP


def test_without_recursion_the_result_is_that_of_json_loads() -> None:
    dice = random.Random(1)  # noqa: S311

    def value(levels: int) -> Any:
        kind = dice.randrange(8 if levels else 5)
        if kind >= 6:
            return [value(levels - 1) for _ in range(dice.randrange(4))]
        if kind == 5:
            return {text(): value(levels - 1) for _ in range(dice.randrange(4))}
        return [None, True, dice.randrange(-9, 9), dice.random(), text()][kind]

    def text() -> str:
        return "".join(dice.choice('a"\\/{}[],: \n\té\u2028😀') for _ in range(dice.randrange(6)))

    for _ in range(500):
        sample = value(4)
        for written in (json.dumps(sample), json.dumps(sample, indent=1, ensure_ascii=False)):
            assert _decode_deep(written) == sample


@pytest.mark.parametrize(
    "text",
    ["", " ", "[", "]", "[}", "{]", "[1,]", "[,1]", "{1:2}", '{"a"}', '{"a":}', '{"a":1,}', "1 2", "[1 2]", "[1]]",
     '"a', '["\\x"]', "nul", "[1],", ":", '{"a":1:2}', "[01]", "\u00a0[1]"],
)  # fmt: skip
def test_text_that_is_no_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(text)
    with pytest.raises(ValueError, match=r"\w"):
        _decode_deep(text)


def test_the_application_converts_the_text_of_the_data() -> None:
    text = EVENT % '{"a":"}\\"]", "n": 12345678901234567890.10 }'
    assert decode_message(text, str)["data"] == '{"a":"}\\"]", "n": 12345678901234567890.10 }'
    assert decode_message(text, lambda text: json.loads(text, parse_float=Decimal))["data"]["n"] == Decimal(
        "12345678901234567890.10"
    )


def test_the_application_converts_the_events_of_a_poll() -> None:
    events = [EVENT % "[1,[2]]", EVENT % '"a,b"', '{"type":"event","id":9}']
    text = f'{{"cursor":9,"epoch":"e","events":[{",".join(events)}]}}'
    assert [event.get("data") for event in decode_answer(text, str)["events"]] == ["[1,[2]]", '"a,b"', None]
    assert decode_answer('{"cursor":9,"epoch":"e","events":[]}', str)["events"] == []


def test_data_that_the_application_cannot_convert_is_marked() -> None:
    def parse(text: str) -> Any:
        raise KeyError(text)

    unparsed = decode_message(EVENT % "[1]", parse)["data"]
    assert isinstance(unparsed, Unparsed)
    assert unparsed.text == "[1]"
    assert isinstance(unparsed.error, KeyError)


def test_other_messages_are_not_converted() -> None:
    assert decode_message('{"type":"connected","cursor":1,"data":[1]}', str)["data"] == [1]
    assert decode_message("[1]", str) == [1]
    assert decode_answer("[1]", str) == [1]
