"""What every table of a cluster's spec shares. Knows no table."""

from typing import ClassVar


class Table:
    """Base of every table of a spec: pydantic refuses unknown keys, `_require` values that break a rule."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def _require(self, rule: bool, name: str, must: str) -> None:
        if not rule:
            raise ValueError(f"{name} = {getattr(self, name)!r}: {must}")
