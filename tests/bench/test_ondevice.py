"""The five on-device networks as PyTorch, ONNX and int8: size, multiply-adds, time, and what int8 loses: `make bench`.

Trains all five for a few minutes on soundscapes, and again on real audio where it is (ANTIPHON_ESC10), so that there is
a score to lose. Prints and asserts no time or score.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
SECONDS, REAL_SECONDS = 2.0, 5.0
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
REAL = f"""
name = "ondevice-esc10"
compare = false
[data]
format = "esc50"
labels = "single"
clip_seconds = {REAL_SECONDS}
[augment]
roll = 1.0
gain_db = 6.0
mask_time = 0.16
mask_mel = 0.2
[schedule]
kind = "mutual"
burn_in = 0
steps = 150
[train]
threads = 1
shard_size = 16
eval_every = 150
checkpoint_every = 150
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
    measure(tmp_path, capsys, RECIPE, NAMES, seconds=SECONDS, metric="mAP")


def test_five_networks_in_three_forms_on_real_audio(tmp_path, capsys, esc10):
    """Short: fold 1 is tested, one seed."""
    own = ("--set", f"data.root={esc10}")
    measure(tmp_path, capsys, REAL, NAMES, own=own, seconds=REAL_SECONDS, metric="accuracy")


def measure(
    folder: Path,
    capsys: Any,
    text: str,
    names: Sequence[str],
    *,
    seconds: float,
    metric: str,
    own: tuple[str, ...] = (),
) -> None:
    """Trains the networks, exports each as a user does, and prints what it takes and scores."""
    recipe = folder / "ondevice.toml"
    recipe.write_text(text + "".join(MODEL.format(name=name) for name in names))
    data = ("--set", f"data.cache={folder / 'cache'}", *own)
    command("run", recipe, "--local", "--tracking", "none", "--storage", folder, "--run-id", "one", *data)
    front_end = build_front_end("logmel40", clip_rate=16_000)
    x_BT = torch.zeros(1, round(16_000 * seconds)).uniform_(-0.1, 0.1)
    rows = [
        "CPU ms and millions of multiply-adds of a second of sound, without the front end: "
        + f"{milliseconds(partial(front_end, x_BT), seconds):.2f} ms",
        f"{'':10} {'params':>8} {'M MACs':>7} {'kB: torch, onnx, int8':>22} {'ms: torch, onnx, int8':>22}  "
        f"{metric}, int8",
    ]
    rows += [row_of(name, folder, recipe, data, front_end(x_BT), seconds=seconds, metric=metric) for name in names]
    with capsys.disabled():
        print("\n" + "\n".join(rows))


def row_of(
    name: str, folder: Path, recipe: Path, data: tuple[str, ...], mel_BMF: torch.Tensor, *, seconds: float, metric: str
) -> str:
    """Exports a model of the run and times what lies in the files."""
    file, model = folder / f"{name}.onnx", folder / "one" / "models" / name
    report = command("export", model, file, "--to", "onnx", "--front-end", "outside", "--int8", recipe, *data)
    tagger, _ = load_tagger(model)
    size = model_size(tagger.model, num_classes=len(tagger.tags), clip_seconds=seconds, clip_rate=16_000)
    files = [open_file(path, "onnx") for path in (file, file.with_suffix(".int8.onnx"))]
    calls = [partial(tagger, mel_BMF), *(partial(forward, mel_BMF.numpy()) for forward in files)]
    took = ", ".join(f"{milliseconds(call, seconds):.2f}" for call in calls)
    kb = ", ".join(f"{count / 1000:.0f}" for count in (size.weight_bytes, report["bytes"], report["int8"]["bytes"]))
    float_score, int8_score = (report["int8"]["scores"][form][metric] for form in ("float", "int8"))
    products = report["int8"]["products"]
    return (
        f"{name:10} {size.params:8,} {size.macs / 1e6 / seconds:7.2f} {kb:>22} {took:>22}  "
        f"{float_score:.3f}, {int8_score:.3f}; {products['int8']} of {sum(products.values())} products in int8"
    )


def milliseconds(call: Callable[[], object], seconds: float) -> float:
    """Of CPU time, for a second of sound."""
    return 1000 * median_seconds(call, repeats=15, clock=time.process_time) / seconds
