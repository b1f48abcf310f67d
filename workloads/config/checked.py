"""The base of every config value."""

from typing import ClassVar


class Checked:
    """Base of every config value: pydantic refuses unknown keys, `_require` words the user's mistakes."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def _require(self, rule: bool, field_name: str, must: str) -> None:
        if not rule:
            raise ValueError(f"{field_name} = {getattr(self, field_name)!r}: {must}")
