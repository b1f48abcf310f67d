"""Settings of the smallest complete run: clips of one second, models of a few thousand weights, no controls."""

MN = '{family="mn", width=0.1, bn_momentum=0.1}'
FRAME_MN = '{family="frame_mn", width=0.1, bn_momentum=0.1}'
VIT = '{family="vit", dim=16, depth=1, heads=2, pool="avg"}'
SIZES = [
    "compare=false",
    "data.synthetic_clips=100",
    "data.clip_seconds=1.0",
    "train.threads=1",
    "train.shard_size=8",
    "train.log_every=1",
    "train.eval_every=4",
]
TWO_MODELS = [f"models.cnn.arch={MN}", f"models.vit.arch={VIT}"]
