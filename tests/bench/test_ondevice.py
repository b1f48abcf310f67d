"""The five on-device networks as PyTorch, ONNX and int8: size, multiply-adds, time, and what int8 loses: `make bench`.

Trains all five for a few minutes on soundscapes, so that there is a score to lose. Prints and asserts no time or score.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from workloads.evaluate.predict import load_tagger
from workloads.export.export import open_file
from workloads.models.front_end import build_front_end
from workloads.models.size import median_seconds, model_size

pytestmark = pytest.mark.bench

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
NAMES = ("lstm_p", "tc_resnet", "crnn", "att_rnn", "mhatt_rnn")
SECONDS = 2.0
RECIPE = f"""
name = "ondevice"
compare = false
[data]
format = "synthetic"
labels = "multi"
clip_seconds = {SECONDS}
synthetic_clips = 600
[schedule]
kind = "mutual"
burn_in = 0
steps = 300
[train]
threads = 1
eval_every = 300
checkpoint_every = 300
"""
MODEL = """
[models.{name}]
arch = {{ family = "ondevice", variant = "{name}" }}
front_end = {{ kind = "logmel40" }}
optimizer = {{ lr = 2e-3 }}
"""


def command(*arguments: Any) -> dict[str, Any]:
    done = subprocess.run([ANTIPHON, *map(str, arguments), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_five_networks_in_three_forms(tmp_path, capsys):
    recipe = tmp_path / "ondevice.toml"
    recipe.write_text(RECIPE + "".join(MODEL.format(name=name) for name in NAMES))
    data = ("--set", f"data.cache={tmp_path / 'cache'}")
    run = (recipe, "--local", "--tracking", "none", "--storage", tmp_path, "--run-id", "one", *data)
    command("run", *run)
    print_table(tmp_path / "one", recipe, tmp_path, data, capsys)


def print_table(run: Path, recipe: Path, folder: Path, data: tuple[str, ...], capsys: Any) -> None:
    """Exports each model of the run, as a user does, and times what lies in the files."""
    front_end = build_front_end("logmel40", clip_rate=16_000)
    x_BT = torch.zeros(1, round(16_000 * SECONDS)).uniform_(-0.1, 0.1)
    rows = [
        "CPU ms and millions of multiply-adds of a second of sound, without the front end: "
        + f"{milliseconds(partial(front_end, x_BT)):.2f} ms",
        f"{'':10} {'params':>8} {'M MACs':>7} {'kB: torch, onnx, int8':>22} {'ms: torch, onnx, int8':>22}  mAP, int8",
    ]
    mel_BMF = front_end(x_BT)
    for name in NAMES:
        file = folder / f"{name}.onnx"
        options = ("--to", "onnx", "--front-end", "outside", "--int8", recipe, *data)
        report = command("export", run / "models" / name, file, *options)
        tagger, _ = load_tagger(run / "models" / name)
        size = model_size(tagger.model, num_classes=len(tagger.tags), clip_seconds=SECONDS, clip_rate=16_000)
        files = [open_file(path, "onnx") for path in (file, file.with_suffix(".int8.onnx"))]
        calls = [partial(tagger, mel_BMF), *(partial(forward, mel_BMF.numpy()) for forward in files)]
        took = ", ".join(f"{milliseconds(call):.2f}" for call in calls)
        kb = ", ".join(f"{count / 1000:.0f}" for count in (size.weight_bytes, report["bytes"], report["int8"]["bytes"]))
        float_score, int8_score = (report["int8"]["scores"][form]["mAP"] for form in ("float", "int8"))
        products = report["int8"]["products"]
        rows.append(
            f"{name:10} {size.params:8,} {size.macs / 1e6 / SECONDS:7.2f} "
            + f"{kb:>22} {took:>22}  "
            + f"{float_score:.3f}, {int8_score:.3f}; {products['int8']} of {sum(products.values())} products in int8"
        )
    with capsys.disabled():
        print("\n" + "\n".join(rows))


def milliseconds(call: Callable[[], object]) -> float:
    """Of CPU time, for a second of sound."""
    return 1000 * median_seconds(call, repeats=15, clock=time.process_time) / SECONDS
