"""A spec as the text of a target: the same spec gives the same text."""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from cluster.autoscaler import autoscaler_config
from cluster.kuberay import manifests
from cluster.slurm import batch_script
from cluster.spec import Spec
from cluster.work_command import option_words


class _Dumper(yaml.SafeDumper):
    """Keys in their order, lists indented, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def render(spec: Spec, target: str) -> str:
    """The text for one of `TARGETS`; ValueError, one line long, where the spec is not possible there."""
    if target not in TARGETS:
        raise ValueError(f"--to {target!r}: must be one of {', '.join(TARGETS)}")
    return TARGETS[target](spec)


def _kuberay(spec: Spec) -> str:
    head = "# kubectl apply -f FILE, with KubeRay 1.7 or newer in the cluster.\n"
    if spec.kind == "cron":
        head += "# RayCronJob is behind KubeRay's feature gate of that name.\n"
    if spec.kind == "cluster":
        head += f"# kubectl port-forward service/{spec.name}-head-svc 8265, and beside it\n" + _submit(spec)
    if spec.kind == "service":
        head += f"# kubectl port-forward service/{spec.name}-serve-svc 8000, then http://localhost:8000/ is the page.\n"
    return "---\n".join([head, *map(_yaml, manifests(spec))])


def _autoscaler(spec: Spec) -> str:
    if spec.kind == "service":
        raise ValueError("kind = 'service': a cluster file runs no service; use --to kuberay")
    head = "# ray up FILE; ray dashboard FILE forwards the port, and beside it\n"
    return head + _submit(spec) + _yaml(autoscaler_config(spec))


def _submit(spec: Spec) -> str:
    """How the work is submitted to a cluster that has no job of its own."""
    work = spec.work
    options = [f"--id {work.id}"] if work and work.id else []
    words = shlex.join([work.command, work.recipe, *option_words(work, spec.cache)]) if work else "RECIPE"
    return f"# {' '.join(['antiphon submit --address http://localhost:8265 --installed', *options, words])}\n"


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


TARGETS: dict[str, Callable[[Spec], str]] = {"kuberay": _kuberay, "autoscaler": _autoscaler, "slurm": batch_script}
