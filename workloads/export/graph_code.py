"""Python source of an exported program: one line for each operation, which needs nothing but torch.

A reader sees what the network computes, and it runs with other versions of torch than the one that wrote it, as far as
these keep their operators (`torch.ops.aten`). Weights and constants are not in the source; it takes them by name. Does
not depend on taggers.
"""

import math
import operator
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

INDENT = "    "
INFIX = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//"}  # of numbers, not tensors
CHECK = torch.ops.aten._assert_tensor_metadata.default  # of what was exported; changes nothing
STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class NoSource(ValueError):
    """An operation for which no source can be written."""


def function_source(program: ExportedProgram, *, name: str, arguments: tuple[str, ...]) -> str:
    """Source of `name`(tensors, *arguments), the program's forward; `tensors` is a mapping from `stored_names`.

    Devices are that of the first argument. Where the program was exported in an autocast context that is off, so is it
    there. Raises NoSource for a program with other contexts, control flow, or several outputs.
    """
    names: dict[Node, str] = {}
    inputs = iter(arguments)
    for node, spec in zip(_placeholders(program.graph_module), program.graph_signature.input_specs, strict=True):
        names[node] = f"tensors[{_stored_name(spec.target)!r}]" if spec.kind in STORED else next(inputs)
    written = _Source(program.graph_module, names, device=f"{arguments[0]}.device")
    body = list(written.lines(INDENT))
    if len(written.outputs) != 1:
        raise NoSource(f"the program has {len(written.outputs)} outputs; one is expected")
    return "\n".join(
        [f"def {name}(tensors, {', '.join(arguments)}):", *body, f"{INDENT}return {written.outputs[0]}", ""]
    )


def stored_tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """The weights, buffers and constants of a program by the names that its source has for them."""
    found: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in STORED:
            assert spec.target is not None
            state = program.state_dict if spec.target in program.state_dict else program.constants
            found[_stored_name(spec.target)] = state[spec.target].detach()
    return found


def _stored_name(target: str | None) -> str:
    assert target is not None
    return target.removeprefix("tagger.")


def _placeholders(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


class _Source:
    """The lines of one graph; graphs within contexts are written in place."""

    def __init__(self, module: GraphModule, names: dict[Node, str], *, device: str, prefix: str = "") -> None:
        self._module, self._names, self._device, self._prefix = module, names, device, prefix
        self.outputs: list[str] = []

    def lines(self, indent: str) -> Iterator[str]:
        """Each value is deleted after its last use: a batch's values of all layers together would take gigabytes."""
        last_use = {used: node for node in self._module.graph.nodes for used in node.all_input_nodes}
        for node in self._module.graph.nodes:
            if node.op == "output":
                self.outputs = [self._text(value) for value in node.args[0]]
            elif node.op == "call_function" and node.target is not CHECK:
                yield from self._operation(node, indent)
                done = [self._names.get(used, "") for used in node.all_input_nodes if last_use[used] is node]
                own = [name for name in done if name.startswith(f"{self._prefix}v_")]
                if own:
                    yield f"{indent}del {', '.join(own)}"
            elif node.op not in ("placeholder", "get_attr", "call_function"):
                raise NoSource(f"{node.op} {node.target}: cannot be written as source")

    def _operation(self, node: Node, indent: str) -> Iterator[str]:
        target: Any = node.target
        if target is torch.ops.higher_order.wrap_with_autocast:
            yield from self._without_autocast(node, indent)
            return
        self._names[node] = f"{self._prefix}v_{node.name}"
        yield f"{indent}{self._names[node]} = {self._call(node)}"

    def _call(self, node: Node) -> str:
        target: Any = node.target
        if target is operator.getitem:
            value, index = node.args
            return f"{self._text(value)}[{self._text(index)}]"
        if target in INFIX:
            return f" {INFIX[target]} ".join(map(self._text, node.args))
        if not isinstance(target, torch._ops.OpOverload):
            raise NoSource(f"{target}: cannot be written as source")
        named = (f"{key}={self._text(value)}" for key, value in node.kwargs.items())
        overload = target.__name__.removesuffix(".default")
        return f"torch.ops.{target.namespace}.{overload}({', '.join(chain(map(self._text, node.args), named))})"

    def _without_autocast(self, node: Node, indent: str) -> Iterator[str]:
        _, _, enabled, _, graph, *values = node.args
        assert isinstance(graph, Node)
        if enabled:
            raise NoSource("autocast is on in a part of this program")
        inner_module = getattr(self._module, str(graph.target))
        inner_names = dict(zip(_placeholders(inner_module), map(self._text, values), strict=True))
        inner = _Source(inner_module, inner_names, device=self._device, prefix=f"{self._prefix}{node.name}_")
        yield f"{indent}with torch.autocast({self._device}.type, enabled=False):"
        yield from inner.lines(indent + INDENT)
        self._names[node] = f"{self._prefix}v_{node.name}"
        yield f"{indent}{self._names[node]} = ({', '.join(inner.outputs)},)"

    def _text(self, value: Any) -> str:
        """A value of a graph as source."""
        match value:
            case Node():
                return self._names[value]
            case torch.device():
                return self._device
            case torch.dtype() | torch.layout() | torch.memory_format():
                return str(value)
            case list() | tuple():
                return _bracketed(map(self._text, value), isinstance(value, list))
            case float() if not math.isfinite(value):
                return f'float("{value}")'
            case None | bool() | int() | float() | str():
                return repr(value)
        raise NoSource(f"{value!r}: cannot be written as source")


def _bracketed(texts: Iterable[str], is_list: bool) -> str:
    joined = ", ".join(texts)
    return f"[{joined}]" if is_list else f"({joined},)"
