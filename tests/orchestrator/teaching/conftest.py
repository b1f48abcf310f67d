"""Two teachers, clips, and the recipe of a store of both; stores of a teacher of the demo's clips, and students."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from orchestrator.recipes.loader import load_recipe, load_teach_recipe
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import TeachRequest
from tests import small
from tests.orchestrator.artifacts.test_tag import publish
from tests.teachers import CLIPS, RATE, SECONDS, TAGS
from workloads.config.architectures import MN, ViT
from workloads.config.recipe import FrontEnd, Model, Recipe, restore
from workloads.data.synthetic import synthetic_clips
from workloads.models.tagger import build_tagger

VIEWS = 3
AUGMENT = ["augment.roll=0.3", "augment.gain_db=6.0", "augment.mask_time=0.2", "augment.mask_mel=0.2"]
STUDENT = ["schedule={kind='mutual', burn_in=0, steps=30}", f"models={{student={{arch={small.VIT}}}}}", *AUGMENT]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers with the same tags in another order, and clips without tags: short, long, and a broken one."""
    folder = tmp_path_factory.mktemp("teach")
    archs = {
        "cnn": MN(family="mn", width=0.1, bn_momentum=0.1),
        "vit": ViT(family="vit", dim=16, depth=1, heads=2, pool="avg"),
    }
    for name, arch in archs.items():
        tags, front_end = (TAGS, FrontEnd(mean=-6.0)) if name == "cnn" else (TAGS[::-1], FrontEnd(kind="kaldi128"))
        shape: dict[str, Any] = {"tags": tags, "labels": "multi", "clip_seconds": SECONDS, "clip_rate": RATE}
        publish(build_tagger(Model(arch=arch, front_end=front_end), name=name, seed=1, **shape).eval(), folder / name)
    rng = np.random.default_rng(0)
    for number, clip_id in enumerate(CLIPS):
        soundfile.write(folder / f"{clip_id}.wav", 0.1 * rng.standard_normal(4_000 + 2_000 * number), RATE)
    (folder / "broken.wav").write_bytes(b"no sound")
    lines = "\n".join(f"{clip_id},{clip_id}.wav" for clip_id in ["broken", *CLIPS])
    (folder / "clips.csv").write_text(f"clip_id,path\n{lines}\n")
    (folder / "mine.toml").write_text(
        f'[data]\nformat = "manifest"\nmanifest = "{folder}/clips.csv"\nroot = "{folder}"\nlabels = "multi"\n'
        f'clip_seconds = {SECONDS}\nmax_broken_share = 0.1\ncache = "{folder}/cache"\n'
        "[augment]\nview_seed = 3\nroll = 0.5\ngain_db = 6.0\nmask_time = 0.3\nmask_mel = 0.3\n"
        "[teach]\nviews = 3\nclips_per_shard = 4\nbatch_size = 3\nthreads = 1\n"
        f'[teachers]\ncnn = {{ uri = "{folder}/cnn" }}\nvit = {{ uri = "{folder}/vit" }}\n'
    )
    return folder


@pytest.fixture
def teach(folder: Path) -> Callable[..., dict[str, Any]]:
    def call(out: str | Path, *settings: str, on_shard: Any = lambda *_: None, **options: Any) -> dict[str, Any]:
        recipe = load_teach_recipe(str(folder / "mine.toml"), list(settings))
        request = TeachRequest(recipe, str(out), **({"local": True} | options))
        return fill_store(request, on_shard=on_shard, warn=lambda line: None)

    return call


@pytest.fixture
def offline(tiny) -> Callable[..., Recipe]:
    """A student of the demo's clips with these edges; an epoch has 8 steps, and there are four."""

    def make(edges: str, *settings: str) -> Recipe:
        return tiny("demo", *STUDENT, f"edges={edges}", *settings)

    return make


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published CNN with drawn weights that knows the demo's tags."""
    tags = tuple(sorted({tag for clip in synthetic_clips(load_recipe("demo").data) for tag in clip.tags}))
    folder = tmp_path_factory.mktemp("teacher") / "cnn"
    model = restore(Model, {"arch": {"family": "mn", "width": 0.1, "bn_momentum": 0.1}})
    shape: dict[str, Any] = {"tags": tags, "labels": "multi", "clip_seconds": 1.0, "clip_rate": 16_000}
    publish(build_tagger(model, name="cnn", seed=7, **shape).eval(), folder)
    return folder


@pytest.fixture(scope="session")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What that teacher says of the demo's clips, in as many views; made once for each set of settings, or at `out`."""
    made: dict[tuple[str, ...], Path] = {}

    def fill(*settings: str, out: str = "") -> Path:
        if settings in made and not out:
            return made[settings]
        base = tmp_path_factory.getbasetemp()
        own = ["data.synthetic_clips=100", "data.clip_seconds=1.0", f"data.cache={base}/clips"]
        own += [f"teachers={{cnn={{uri='{teacher}'}}}}", f"teach.views={VIEWS}", *AUGMENT, *settings]
        place = out or str(tmp_path_factory.mktemp("stores") / "store")
        request = TeachRequest(load_teach_recipe("teach-demo", own), place, local=True)
        assert fill_store(request, on_shard=lambda *_: None, warn=lambda line: None)["status"] == "done"
        return made.setdefault(settings, Path(place)) if not out else Path(out)

    return fill
