"""The types of the settings in the operator's configuration file. Pure.

Each section of the file is a pydantic dataclass. Names in the file are in camel case, without the unit: `rotateAfter`
sets `rotate_after_s`. An empty value means the default. A setting that becomes a variable of users' pods (`Variable`)
is validated by the relay's own rules, so no configuration that the operator accepts stops a pod.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from userrealtime_core.auth.sealed_keys import SEAL_KEY
from userrealtime_core.environment import Reader
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.kube.duration import DURATION, parse_duration

Json = dict[str, Any]

YEAR_S: Final = 366 * 86400
DATABASE_URL: Final = "DATABASE_URL"
BROKER_URL: Final = "BROKER_URL"
NAMES_KEY: Final = "NAMES_KEY"
FROM_ENVIRONMENT: Final = (DATABASE_URL, BROKER_URL, NAMES_KEY, SEAL_KEY)
"""Settings that are not in the file, because they are secret."""

FILE: Final = ConfigDict(
    alias_generator=lambda name: to_camel(name.removesuffix("_s")),
    validate_by_name=True,
    extra="forbid",
    use_attribute_docstrings=True,
)
"""How pydantic reads a section."""


@dataclasses.dataclass(frozen=True, slots=True)
class Duration:
    """A duration in the file, such as 90s, with its limits in seconds. Code passes a number of seconds instead."""

    least: float = 0
    most: float = 100 * YEAR_S

    def parse(self, value: Any, info: ValidationInfo) -> Any:
        """Return the seconds of a duration.

        Raises:
            ValueError: not a duration, or outside the limits.
        """
        if not isinstance(value, str):
            if info.context is None:
                return value
            raise ValueError("must be a duration in quotes, such as '90s'")
        seconds = parse_duration(value)
        if not self.least <= seconds <= self.most:
            raise ValueError(f"must be from {self.least:.12g} to {self.most:.12g} seconds")
        return seconds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {"type": "string", "pattern": f"^{DURATION}$"}


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """The variable of the relay that a setting becomes. The relay's rule for the variable validates the setting."""

    name: str

    def text(self, value: Any) -> str:
        """Return the value of the variable. It is empty for the relay's default."""
        match value:
            case None:
                return ""
            case bool():
                return "true" if value else "false"
            case float() | int():
                return f"{value:.6f}".rstrip("0").rstrip(".")
            case tuple():
                return ",".join(value)
        return str(value)

    def check(self, value: Any) -> Any:
        """Return the value.

        Raises:
            ValueError: the relay would reject it.
        """
        by_rule(self.name, self.text(value), RelaySettings.read)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def by_rule(variable: str, value: str, rule: Callable[[Reader], object]) -> None:
    """Apply a rule of the relay to one variable. Problems of other variables are ignored.

    Raises:
        ValueError: with the message of the rule.
    """
    read = Reader({variable: value})
    rule(read)
    prefix = f"{variable}: "
    for problem in read.problems:
        if problem.startswith(prefix):
            raise ValueError(problem.removeprefix(prefix))


Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Limit = Annotated[int | None, Strict(), Field(ge=0), AfterValidator(lambda value: value or None)]
"""A number, of which 0 in the file means no limit."""
Interval = Annotated[float | None, Duration(), AfterValidator(lambda value: value or None)]
"""A duration, of which 0 in the file means never."""
Name = Annotated[str, Field(min_length=1)]
Strings = dict[str, str]


def fault(field: str, message: str) -> PydanticCustomError:
    """Return an error about one field of a section, for validators of the whole section."""
    return PydanticCustomError("section", "{message}", {"field": field, "message": message})


@dataclass(frozen=True, config=FILE)
class Section:
    """A mapping in the file."""

    @model_validator(mode="before")
    @classmethod
    def _use_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # An empty variable of the environment does not mean the default: it is a fault.
        return {k: value for k, value in values.items() if k in FROM_ENVIRONMENT or value not in ("", [], {}, None)}


def fields_of(section: type[Section]) -> dict[str, FieldInfo]:
    """Return the fields of a section, by attribute."""
    fields: dict[str, FieldInfo] = section.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def variables(sections: Iterable[Section]) -> Iterator[tuple[str, str]]:
    """Yield the variables that sections set in the environment of the relay, each with its value."""
    for section in sections:
        for name, field in fields_of(type(section)).items():
            for each in field.metadata:
                if isinstance(each, Variable) and (text := each.text(getattr(section, name))):
                    yield each.name, text
