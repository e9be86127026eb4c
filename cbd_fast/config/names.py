"""Settings that are names of a registry."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cbd_fast.registry import Registry


@dataclass(frozen=True)
class NameIn:
    """Annotation of a text that must be the name of something registered, by us or by the user."""

    registry: Registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.registry.check, handler(source))
