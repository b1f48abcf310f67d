"""A first recipe as TOML, with a comment for each choice. Depends on no data set and no machine."""

import json
import re
from pathlib import Path

from orchestrator.scaffold.sizes import Sizes

TEMPLATE = """\
# antiphon run {file}
# Written by `antiphon init` for {clips} clips with {tags} tags in {folder}
# A small CNN and a small Transformer learn the tags and take turns as teacher and student.
# The CNN alone: --set 'edges=[]' --set 'schedule={{kind="mutual", burn_in=0, steps={steps}}}' and remove [models.vit].
# With an untaught control beside each model, to see what teaching did (twice the time): --compare
name = {name}

[data]
{data}
clip_seconds = {sizes.clip_seconds:g}  # {why_window}
val_share = {sizes.val_share:g}  # of the training folds: it chooses among weights, the test fold only gives the scores

[models.cnn]
arch = {{ family = "mn", width = {sizes.cnn_width:g}, strides = {strides}, bn_momentum = 0.1 }}
front_end = {{ kind = "{sizes.front_end}" }}  # {why_front_end}
optimizer = {{ lr = 3e-3 }}
average = {{ kind = "ema", decay = 0.98 }}  # the moving average of the weights is delivered, and teaches

[models.vit]
arch = {{ family = "vit", dim = {dim}, depth = 4, heads = 4, patch = {patch}, stride = {patch}, pool = "avg" }}
front_end = {{ kind = "{sizes.front_end}" }}
optimizer = {{ lr = 1e-3 }}
average = {{ kind = "ema", decay = 0.98 }}

[[edges]]
teacher = "cnn"
student = "vit"
weight = 0.5  # of what the teacher says; the labels weigh the rest
source = "ema"

[[edges]]
teacher = "vit"
student = "cnn"
weight = 0.2
source = "ema"

[schedule]
kind = "alternate"
burn_in = {burn_in}  # steps in which both learn from labels alone
period = {period}  # then the Transformer learns, then the CNN: {steps} steps each, {epochs:.3g} epochs
turns = 2
order = ["vit", "cnn"]

[augment]  # each view of a clip differs: shifted, louder or softer, mixed with another one, masked
roll = {sizes.roll:g}{why_roll}
gain_db = 6.0
mixup = 0.5
mask_time = 0.16
mask_mel = 0.2

[train]
device = "{sizes.device}"
threads = {sizes.threads}  # processor cores of this machine, at most 8
shard_size = {sizes.shard_size}  # clips of a step; lower it where memory is short
eval_every = {period}
checkpoint_every = {period}
"""


def recipe_text(
    sizes: Sizes,
    *,
    name: str,
    file: Path,
    folder: str,
    data: list[str],
    clips: int,
    tags: int,
    lengths: str,
    rates: str,
) -> str:
    """The recipe; `data` are the lines of its data set, `lengths` and `rates` say what the clips are like."""
    period = sizes.steps - sizes.burn_in
    return TEMPLATE.format(
        file=comment(str(file)),
        folder=comment(folder),
        name=quoted(name),
        clips=f"{clips:,}",
        tags=tags,
        data="\n".join(data),
        sizes=sizes,
        why_window=f"clips last {lengths}; longer ones are heard in windows",
        why_front_end=f"log-mels at {sizes.rate:,} Hz; the clips have {rates}",
        strides=list(sizes.cnn_strides),
        dim=sizes.vit_dim,
        patch=sizes.vit_patch,
        burn_in=sizes.burn_in,
        period=period,
        steps=sizes.steps,
        epochs=sizes.steps * sizes.shard_size / max(1, 0.7 * clips),
        why_roll="  # words lose their order when they are rolled around" if sizes.roll < 1 else "",
    )


def quoted(text: str) -> str:
    """A TOML string: JSON's basic strings are TOML's, but for the control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def comment(text: str) -> str:
    """Text in a comment of TOML, which ends with the line and holds no control characters: these as escapes."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: found[0].encode("unicode_escape").decode(), text)
