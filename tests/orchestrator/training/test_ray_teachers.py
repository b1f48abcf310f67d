"""Actors of teachers that do not answer: workers do not wait for them for ever.

In a process of its own, which may import Ray. The actors are stand-ins, of which no answer ever comes; real ones:
tests/integration/test_placements.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json
from types import SimpleNamespace as Some
import ray
from ray.exceptions import GetTimeoutError
from orchestrator.recipes.loader import load_recipe
from orchestrator.storage.retry import Unavailable
from orchestrator.training import ray_teachers

limits = []

def get(references, *, timeout):  # without a limit: a TypeError here
    limits.append(timeout)
    raise GetTimeoutError("no answer")

ray.get, ray.put = get, lambda value: value
method = Some(remote=lambda *_: "on its way")
actors = [Some(fingerprint=method, teach=method, answer=method)] * 2
teachers = ray_teachers.RayTeachers(load_recipe("demo"), rank=1, gather=lambda _: [actors])
said = []
for call in (teachers.fingerprints, lambda: teachers.teach([]), lambda: teachers.ask(0, 0).result()):
    try:
        call()
    except Unavailable as error:
        said.append(str(error))
print(json.dumps([said, limits]))
"""
FIX = "repeat the command, or give the teachers more actors or other resources (service.actors, service.resources)"


def test_a_teacher_that_does_not_answer_ends_the_wait_with_what_to_do() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, limits = json.loads(done.stdout.splitlines()[-1])
    assert limits == [600, 900, 900]
    assert said == [
        f"the cluster has not started the 2 actors of the teachers within 600 s; {FIX}",
        f"the 2 actors of the teachers have not loaded the weights of a phase within 900 s; {FIX}",
        f"one of the actors of the teachers has not answered within 900 s; {FIX}",
    ]
