"""Runs of several workers without Ray: processes that exchange over gloo, on one machine; and what runs have left."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from orchestrator.recipes.loader import parse, resolve
from tests.killed import start_process
from workloads.config.recipe import Recipe
from workloads.runtime.event_log import EventLog, read_event_log

HANGS = timedelta(minutes=5)  # after which workers that wait for each other fail, instead of the test


def train(folder: Path, recipes: Mapping[str, Recipe], *, workers: int, **options: Any) -> list[int | None]:
    """Train recipes one after the other, each in a folder of its name; returns the exit codes by rank.

    Options: `until` a step; `kill` = {rank: the number of the optimizer step before which that worker kills itself}. A
    run that is there already is resumed. Each worker leaves a file with the bytes that it has sent and received in the
    last phase, `bytes-RANK`.
    """
    processes = start(folder, recipes, workers=workers, **options)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def start(folder: Path, recipes: Mapping[str, Recipe], *, workers: int, **options: Any) -> list[BaseProcess]:
    folder.mkdir(exist_ok=True)
    meet = folder / f"meet-{len(list(folder.glob('meet-*')))}"
    values = {name: resolve(recipe) for name, recipe in recipes.items()}
    return [
        start_process(_train, rank, workers, str(folder), str(meet), json.dumps(values), options)
        for rank in range(workers)
    ]


def _train(rank: int, workers: int, folder: str, meet: str, values: str, options: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    from workloads.runtime.opener import LocalFiles

    errors = os.open(f"{meet}-errors-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    if rank in (kill := options.get("kill", {})):
        _kill_at(kill[rank])
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=workers, timeout=HANGS)
    for name, recipe in json.loads(values).items():
        run = run_here(parse(recipe), Path(folder) / name, rank, workers, LocalFiles(), until=options.get("until"))
        exchange = run.pool.exchange  # of the last phase
        (Path(folder) / f"bytes-{rank}").write_text(f"{exchange.bytes_sent} {exchange.bytes_received}")
    dist.destroy_process_group()


def run_here(
    recipe: Recipe, folder: Path, rank: int, workers: int, files: Any, *, until: int | None = None, teachers: Any = None
) -> Any:
    """Train in this process, as worker `rank`, to the end or to a step; returns the run.

    `teachers` are the servers under placement = "service".
    """
    from workloads.run import set_up
    from workloads.runtime.checkpoint_store import LocalCheckpointStore
    from workloads.runtime.session import LocalSession
    from workloads.train import loop

    own = folder if rank == 0 else folder / f"rank-{rank}"  # only rank 0 claims attempts and writes checkpoints
    store = LocalCheckpointStore(own)
    with EventLog(own / "events.jsonl") as event_log:
        session = LocalSession(work_dir=own / f"scratch-{store.attempt}", event_log=event_log, store=store)
        session.rank, session.world_size = rank, workers
        session.teachers = teachers
        session.fetch = lambda name: folder / "checkpoints" / name  # type: ignore[method-assign]
        run = set_up(recipe, session, files=files)
        loop(run, until=until)
    return run


def _kill_at(count: int) -> None:
    from workloads.distill.train_state import TrainState

    real: Callable[..., None] = TrainState.step
    calls = 0

    def counted(state: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        real(state, **named)

    TrainState.step = counted  # type: ignore[method-assign]


class ServersHere:
    """Servers of teachers in threads of this process, as a `TeacherService`; counts how far ahead they are asked."""

    def __init__(self, recipe: Recipe) -> None:
        import torch

        from workloads.distill.teacher_server import TeacherServer
        from workloads.runtime.opener import LocalFiles

        number = recipe.service.actors
        self.servers = [TeacherServer(recipe, torch.device("cpu"), LocalFiles()) for _ in range(number)]
        self._threads = [ThreadPoolExecutor(1) for _ in range(number)]
        self.asked: list[tuple[int, int]] = []
        self.taught: list[list[str]] = []  # by phase

    def fingerprints(self) -> list[str]:
        return [server.fingerprint for server in self.servers]

    def teach(self, models: Any) -> None:
        self.taught.append([model.key.teacher for model in models])
        for server in self.servers:
            server.teach(models)

    def ask(self, step: int, index: int) -> Any:
        self.asked.append((step, index))
        number = len(self.asked) % len(self.servers)
        return self._threads[number].submit(self.servers[number].answer, step, index)


class ServersInProcesses:
    """One server in a process of its own, for benches."""

    def __init__(self, recipe: Recipe) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin_server, (json.dumps(resolve(recipe)),))

    def fingerprints(self) -> list[str]:
        return [self._pool.submit(_of_server, "fingerprint").result()]

    def teach(self, models: Any) -> None:
        self._pool.submit(_call_server, "teach", models).result()

    def ask(self, step: int, index: int) -> Any:
        return self._pool.submit(_call_server, "answer", step, index)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_server: Any = None


def _begin_server(recipe: str) -> None:
    import torch

    from workloads.distill.teacher_server import TeacherServer
    from workloads.runtime.opener import LocalFiles

    global _server
    _server = TeacherServer(parse(json.loads(recipe)), torch.device("cpu"), LocalFiles())


def _of_server(name: str) -> Any:
    return getattr(_server, name)


def _call_server(name: str, *arguments: Any) -> Any:
    return getattr(_server, name)(*arguments)


def records(folder: Path) -> list[dict[str, Any]]:
    """What training said: of metrics, phases, bad steps and the result, without times and paths."""
    kept = [record for record in read_event_log(folder / "events.jsonl") if record["kind"] in KINDS]
    for record in kept:
        record.pop("t")
        for row in record.get("models", {}).values() if record["kind"] == "result" else ():
            row.pop("checkpoint")
    return kept


KINDS = ("metrics", "phase", "bad", "result")


def tensor_files(folder: Path) -> dict[str, str]:
    """SHA-256 by file of all checkpoints and delivered taggers that hold tensors."""
    found = {}
    for marker in [*folder.glob("checkpoints/*/COMMITTED.json"), *folder.glob("models/*/COMMITTED.json")]:
        digests = json.loads(marker.read_text())["files"].items()
        found |= {f"{marker.parent.name}/{name}": digest for name, digest in digests if name.endswith(".safetensors")}
    return found
