"""Which models of a recipe get an untaught control, worked out on plain values, before they are checked."""

from typing import Any

from orchestrator.recipes.merge import merge
from workloads.config.recipe import require_students

SUFFIX = "_untaught"


def expand_controls(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a recipe with a control for every student where `compare` is set, and with none where it is not.

    A control has its student's settings; a table with `control_of` holds what differs from them. Values that make no
    recipe stay as they are, so that the recipe's checks name the mistake. Raises ValueError where `compare` is neither
    true nor false, where another model has a control's name, and for a `control_of` that is no student's name.
    """
    models, compare = values.get("models"), values.get("compare", False)
    if not isinstance(compare, bool):
        raise ValueError(f"compare = {compare!r}: must be true or false")
    if not isinstance(models, dict) or not all(isinstance(model, dict) for model in models.values()):
        return values
    named = {name: model["control_of"] for name, model in models.items() if model.get("control_of")}
    taught = {name: model for name, model in models.items() if name not in named}
    if not compare:
        return values | {"models": taught}
    students = [student for student in taught if student in _students(values.get("edges"))]
    require_students(named, students)
    names = {student: name for name, student in named.items()}
    controls = {}
    for student in students:
        name = names.get(student, student + SUFFIX)
        if name in taught:
            raise ValueError(
                f"models.{name}: compare = true calls the control of {student} so; rename this model, or make it that "
                f"control with control_of = {student!r}"
            )
        controls[name] = merge(taught[student], models.get(name, {}) | {"control_of": student})
    return values | {"models": taught | controls}


def _students(edges: Any) -> list[Any]:
    return [edge.get("student") for edge in edges if isinstance(edge, dict)] if isinstance(edges, list) else []
