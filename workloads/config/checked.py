"""The base of every config value and the checks that several of them share."""

from typing import ClassVar


class Checked:
    """Base of every config value: pydantic refuses unknown keys, the `_require` methods refuse values out of range.

    They raise ValueError with the field, its value and the rule; the recipe loader puts the table's path in front.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def _require(self, rule: bool, field_name: str, must: str) -> None:
        if not rule:
            raise ValueError(f"{field_name} = {getattr(self, field_name)!r}: {must}")

    def _require_positive(self, *field_names: str) -> None:
        for name in field_names:
            self._require(getattr(self, name) > 0, name, "must be above 0")

    def _require_non_negative(self, *field_names: str) -> None:
        for name in field_names:
            self._require(getattr(self, name) >= 0, name, "must be 0 or more")

    def _require_at_most(self, most: float, *field_names: str) -> None:
        """For lists that this many values would make, and tensors of this size: refused before they are built."""
        for name in field_names:
            self._require(getattr(self, name) <= most, name, f"must be at most {most:,}")

    def _require_0_to_1(self, *field_names: str) -> None:
        """At least 0 and at most 1."""
        for name in field_names:
            self._require(0 <= getattr(self, name) <= 1, name, "must be between 0 and 1")

    def _require_below_1(self, *field_names: str) -> None:
        """At least 0 and below 1."""
        for name in field_names:
            self._require(0 <= getattr(self, name) < 1, name, "must be 0 up to 1")

    def _require_distinct(self, field_name: str, item: str) -> None:
        """No value of the tuple twice; `item` is what the message calls one of them."""
        values = getattr(self, field_name)
        self._require(len(set(values)) == len(values), field_name, f"must name each {item} once")
