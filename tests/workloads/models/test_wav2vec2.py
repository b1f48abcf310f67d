"""wav2vec 2.0: weights in other projects' names give their numbers; its profile is the first row of the rollout."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.models import wav2vec2_model
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from torchaudio.models.wav2vec2.utils.import_fairseq import _map_key

from orchestrator.recipes.loader import load_recipe
from tests.trained_runs import trained, values
from workloads.config.architectures import Wav2Vec2
from workloads.config.recipe import FrontEnd, Model
from workloads.export.export import export, takes_any_length
from workloads.models.buildable import require_buildable
from workloads.models.catalog import CATALOG
from workloads.models.families import build_backbone
from workloads.models.initial_weights import build_initial_tagger
from workloads.models.profiles import EPSILON, TimeGrid, outputs_and_profile, time_grid
from workloads.models.size import model_size
from workloads.models.tagger import Tagger, build_tagger
from workloads.models.wav2vec2 import adapt_weights, our_names
from workloads.runtime.opener import LocalFiles

SMALL: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "channels": 16}
ARCH = "{family='wav2vec2', dim=32, depth=2, heads=2, channels=16}"


def arch(**options: Any) -> Wav2Vec2:
    return Wav2Vec2(family="wav2vec2", **SMALL | options)


def drawn(network: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Weights that make every part matter: torch's first ones attend nearly evenly, and norms are 1 and 0."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
    return network.eval()


def waveforms(clips: int = 2, seconds: float = 1.0) -> Tensor:
    return 0.1 * torch.randn(clips, round(16_000 * seconds), generator=torch.Generator().manual_seed(1))


def of_torchaudio(norm: str, *, dim: int = 32, letters: int | None = None) -> torch.nn.Module:
    """torchaudio's own network of this size; with a head of `letters`, as in speech recognition."""
    sizes = [(16, kernel, stride) for kernel, stride in ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2)]
    options: dict[str, Any] = {"extractor_mode": f"{norm}_norm", "extractor_conv_bias": norm == "layer"}
    options |= {"encoder_pos_conv_kernel": 128, "encoder_pos_conv_groups": 16, "encoder_num_layers": 2}
    options |= {
        "encoder_num_heads": 2 if dim == 32 else dim // 64,
        "encoder_ff_interm_features": 4 * dim,
        "encoder_layer_norm_first": norm == "layer",
    }
    options |= {f"encoder_{name}": 0.0 for name in ("projection_dropout", "attention_dropout", "ff_interm_dropout")}
    network = wav2vec2_model(
        extractor_conv_layer_config=sizes,
        encoder_embed_dim=dim,
        encoder_dropout=0.0,
        encoder_layer_drop=0.0,
        aux_num_out=letters,
        **options,
    )
    return drawn(network)


def of_fairseq(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that fairseq gives the tensors of torchaudio's network, fine-tuned, with what it keeps beside them."""
    renamed = {}
    layer = r"encoder\.transformer\.layers\.(\d+)\."
    rules = (
        (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
        (r"encoder\.feature_projection\.projection\.", "post_extract_proj."),
        (r"encoder\.feature_projection\.layer_norm\.", "layer_norm."),
        (r"encoder\.transformer\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
        (r"encoder\.transformer\.layer_norm\.", "encoder.layer_norm."),
        (layer + r"attention\.", r"encoder.layers.\1.self_attn."),
        (layer + r"layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
        (layer + r"feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
        (layer + r"feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
        (layer + r"final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
        (r"parametrizations\.weight\.original0", "weight_g"),
        (r"parametrizations\.weight\.original1", "weight_v"),
    )
    for name, tensor in state.items():
        own = name
        for ours, theirs in rules:
            own = re.sub(f"^{ours}" if ours[0] != "p" else ours, theirs, own)
        is_group = "conv_layers.1.layer_norm.weight" not in " ".join(state)
        own = re.sub(
            r"conv_layers\.(\d+)\.layer_norm\.", r"conv_layers.\1.2." if is_group else r"conv_layers.\1.2.1.", own
        )
        renamed[own] = tensor
    beside = {"mask_emb": torch.ones(32), "quantizer.vars": torch.ones(1, 4, 8), "final_proj.weight": torch.ones(8, 32)}
    return {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in (renamed | beside).items()}


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_names_of_torchaudio_and_fairseq_give_torchaudio_s_numbers(norm: Any) -> None:
    theirs, x_BT = of_torchaudio(norm), waveforms()
    with torch.no_grad():
        expected_BPD, _ = theirs(x_BT)
    assert expected_BPD.std() > 0.1
    fairseq = of_fairseq(theirs.state_dict())
    for name in fairseq:  # torchaudio's importer agrees that these are fairseq's names
        own = _map_key(name.removeprefix("w2v_encoder."))
        if own is not None:
            own = own.replace("weight_g", "parametrizations.weight.original0")
            assert own.replace("weight_v", "parametrizations.weight.original1") in theirs.state_dict()
    for state in (theirs.state_dict(), fairseq):
        model = build_backbone(arch(norm=norm), bands=1, frames=16_000, num_classes=3).eval()
        weights, dropped = adapt_weights(state, model)
        assert {"head.weight", "head.bias"} <= set(dropped)
        model.load_state_dict(model.state_dict() | weights)
        with torch.no_grad():
            outputs = model.outputs(x_BT.unsqueeze(1))
        torch.testing.assert_close(outputs.sequence_BPD, expected_BPD, rtol=0, atol=1e-4)
        assert torch.equal(outputs.embedding_BD, outputs.sequence_BPD[:, 0]), "the first context vector"
        assert torch.equal(outputs.logits_BC, model.head(outputs.embedding_BD))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_names_of_transformers_give_transformers_numbers(norm: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers to compare with it")
    config = transformers.Wav2Vec2Config(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
        **{"conv_dim": [16] * 7, "feat_extract_norm": norm, "conv_bias": norm == "layer", "vocab_size": 5},
        do_stable_layer_norm=norm == "layer",
    )
    theirs, x_BT = drawn(transformers.Wav2Vec2ForCTC(config)), waveforms()
    model = build_backbone(arch(norm=norm), bands=1, frames=16_000, num_classes=3).eval()
    weights, dropped = adapt_weights(theirs.state_dict(), model)
    assert "lm_head.weight" in dropped
    model.load_state_dict(model.state_dict() | weights)
    with torch.no_grad():
        expected_BPD = theirs.wav2vec2(x_BT).last_hidden_state
        found_BPD = model.outputs(x_BT.unsqueeze(1)).sequence_BPD
        again_BPD, _ = import_huggingface_model(theirs.wav2vec2).eval()(x_BT)
    assert expected_BPD.std() > 0.1
    torch.testing.assert_close(found_BPD, expected_BPD, rtol=0, atol=1e-4)
    torch.testing.assert_close(again_BPD, expected_BPD, rtol=0, atol=1e-4)


def test_weights_of_another_network_are_refused_by_name() -> None:
    model = build_backbone(arch(), bands=1, frames=16_000, num_classes=3)
    with pytest.raises(ValueError, match=r"unknown: feature_extractor.conv_layers.0.conv.bias"):
        adapt_weights(of_torchaudio("layer").state_dict(), model)
    with pytest.raises(ValueError, match=r"unknown: other.weight"):
        adapt_weights(of_torchaudio("group").state_dict() | {"w2v_encoder.other.weight": torch.ones(2)}, model)
    twice = {"post_extract_proj.bias": torch.ones(32), "feature_projection.projection.bias": torch.ones(32)}
    with pytest.raises(ValueError, match=r"two tensors are named for encoder.feature_projection.projection.bias"):
        our_names(twice)


def test_published_sizes() -> None:
    """torchaudio's counts: 94,370,944, 315,437,696; and our head of 527 tags."""
    for name, dim, network in (("wav2vec2_base", 768, 94_370_944), ("wav2vec2_xlsr53", 1024, 315_437_696)):
        size = model_size(CATALOG[name], num_classes=527, clip_seconds=10.0, clip_rate=16_000)
        assert size.params == network + 527 * (dim + 1)


def tagger_of(clip_rate: int = 16_000, kind: str = "waveform16k", seconds: float = 1.0, **options: Any) -> Tagger:
    shape: dict[str, Any] = {"tags": ("a", "b"), "labels": "multi", "clip_seconds": seconds, "clip_rate": clip_rate}
    model = Model(arch=arch(**options), front_end=FrontEnd(kind=kind))
    return drawn(build_tagger(model, name="one", seed=0, **shape), scale=2.0)


def by_matrices(tagger: Tagger, x_BT: Tensor) -> Tensor:
    """Row 1 of the rollout as reference/tkd.md section 2 writes it, from whole matrices of every block and head."""
    net: Any = tagger.backbone
    features, _ = net.feature_extractor(x_BT, None)
    x_BLD = net.encoder.transformer._preprocess(net.encoder.feature_projection(features))
    rollout_BLL = torch.eye(x_BLD.shape[1], dtype=torch.float64)
    for block in net.encoder.transformer.layers:
        inner = block.layer_norm(x_BLD) if block.layer_norm_first else x_BLD
        query, key = (
            projection(inner).unflatten(2, (2, 16)).transpose(1, 2)
            for projection in (block.attention.q_proj, block.attention.k_proj)
        )
        attention_BLL = (query @ key.transpose(2, 3) / 16**0.5).softmax(3).mean(1).double()
        rollout_BLL = (attention_BLL + torch.eye(len(attention_BLL[0]))) / 2 @ rollout_BLL
        x_BLD, _ = block(x_BLD)
    p_BP = rollout_BLL[:, 0] + EPSILON
    return (p_BP / p_BP.sum(1, keepdim=True)).float()


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_its_profile_is_row_1_of_the_rollout(norm: str) -> None:
    tagger, x_BT = tagger_of(norm=norm, depth=3), waveforms()
    with torch.no_grad():
        outputs, p_BP = outputs_and_profile(tagger, tagger.front_end(x_BT))
        expected_BP = by_matrices(tagger, x_BT)
        assert torch.equal(outputs.logits_BC, tagger(tagger.front_end(x_BT))), "it only listens"
    assert p_BP.shape == (2, 49)
    assert p_BP[:, 1:].std() > 1e-4, "not even"
    torch.testing.assert_close(p_BP, expected_BP, rtol=0, atol=1e-5)


def test_a_first_context_vector_that_attends_to_itself_alone_is_one_hot() -> None:
    """reference/tkd.md 9.6: queries and keys are the normalised vectors, all of one length, each nearest to itself."""
    tagger, x_BT = tagger_of(norm="layer", heads=1), waveforms()
    layers: Any = tagger.backbone.encoder.transformer.layers
    with torch.no_grad():
        for layer in layers:
            layer.layer_norm.weight.fill_(1.0)
            layer.layer_norm.bias.zero_()
            for projection in (layer.attention.q_proj, layer.attention.k_proj):
                projection.weight.copy_(1_000 * torch.eye(32))
                projection.bias.zero_()
        _, p_BP = outputs_and_profile(tagger, tagger.front_end(x_BT))
    expected_P = (torch.arange(49) == 0).float() + EPSILON
    torch.testing.assert_close(p_BP, (expected_P / expected_P.sum()).expand(2, 49), rtol=0, atol=1e-6)


def test_steps_lie_around_what_their_convolutions_hear() -> None:
    """reference/tkd.md section 2: 50 a second, 2, 4, 6 and 8 s are 99, 199, 299 and 399; step k hears from 20 k ms on,
    25 ms long, so it is from 20 k + 2.5 to 20 k + 22.5 ms."""
    for seconds, steps in ((2.0, 99), (4.0, 199), (6.0, 299), (8.0, 399)):
        tagger = tagger_of(seconds=seconds)
        with torch.no_grad():
            assert tagger.outputs(torch.zeros(1, 1, tagger.num_frames)).sequence_BPD.shape[1] == steps
        assert time_grid(tagger, steps) == TimeGrid(0.0025, 0.02, steps)
    convolutions: Any = tagger_of().backbone.feature_extractor
    x_BT = waveforms(1).requires_grad_()
    features = x_BT.unsqueeze(1)
    for layer in convolutions.conv_layers:
        features = layer.conv(features)
    (gradient_BT,) = torch.autograd.grad(features[0, :, 7].sum(), x_BT)
    heard = gradient_BT[0].nonzero().flatten()
    assert (heard.min(), heard.max()) == (7 * 320, 7 * 320 + 399)


def test_waveforms_reach_it_as_they_are_or_with_variance_1() -> None:
    """Of a padded clip mean and variance are those of its sound; fairseq and torchaudio call layer_norm."""
    x_BT = waveforms() + 0.05
    plain, normalised = tagger_of().front_end, tagger_of(kind="waveform16k_norm").front_end
    assert torch.equal(plain(x_BT), x_BT.unsqueeze(1))
    torch.testing.assert_close(normalised(x_BT)[:, 0], F.layer_norm(x_BT, x_BT.shape[1:]), rtol=0, atol=1e-5)
    sound_BT = torch.arange(16_000).expand(2, -1) < 6_000
    padded = normalised(x_BT * sound_BT, sound_BT)[:, 0]
    torch.testing.assert_close(padded[:, :6_000], F.layer_norm(x_BT[:, :6_000], (6_000,)), rtol=0, atol=1e-5)
    assert not padded[:, 6_000:].any()
    loud = tagger_of(kind="waveform16k_norm", clip_rate=32_000)
    assert loud.tag(0.1 * torch.randn(1, 32_000)).shape == (1, 2), "clips of another rate are resampled"


def test_a_log_mel_is_no_waveform() -> None:
    shape = f"models.cnn.arch={ARCH}"
    for settings, message in (
        ([shape], r"wav2vec2 hears waveforms; set front_end.kind to one of waveform16k, waveform16k_norm"),
        (["models.vit.front_end.kind=waveform16k"], r"vit hears log-mels; set front_end.kind to one of logmel64"),
    ):
        with pytest.raises(ValueError, match=message):
            require_buildable(load_recipe("demo", settings))
    with pytest.raises(ValueError, match=r"dim = 40: must be a multiple of heads = 2 and of 16"):
        arch(dim=40)


def test_it_learns_and_teaches_when_beside_networks_over_log_mels(tiny: Any, start: Any) -> None:
    """Masked, rolled and mixed clips; frozen convolutions do not move; its profile teaches a CNN of 50 steps."""
    run = start(
        tiny(
            "demo",
            f"models.vit={{arch={ARCH}, front_end={{kind='waveform16k_norm'}}}}",
            "augment={roll=0.3, mask_time=0.2, mask_mel=0.4, mixup=0.5}",
            "schedule={kind='one_way', teachers=['vit'], teacher_steps=3, steps=6}",
            "edges=[{teacher='vit', student='cnn'}, {teacher='vit', student='cnn', carries='temporal', weight=1.0}]",
        )
    )
    before = {name: tensor.clone() for name, tensor in run.pool.train_state("vit").tagger.state_dict().items()}
    trained(run)
    after = run.pool.train_state("vit").tagger.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("backbone.feature_extractor.") for name in moved)
    assert {name for name in before if ".layers." in name} <= moved | {n for n in before if "k_proj.bias" in n}
    taught = [step["vit-to-cnn-temporal/kd_loss"] for step in values(run) if "vit-to-cnn-temporal/kd_loss" in step]
    assert len(taught) == 6
    assert min(taught) > 0


@pytest.mark.parametrize("head", ["w2v_encoder.proj", "w2v_encoder.w2v_model.final_proj"])
def test_a_recipe_starts_from_a_file_in_fairseq_s_names(head: str, tmp_path: Any) -> None:
    """Also where it was fine-tuned with CTC: its head for letters lies beside the network."""
    from safetensors.torch import save_file

    theirs = of_torchaudio("group")
    state = of_fairseq(theirs.state_dict()) | {f"{head}.weight": torch.ones(32, 32), f"{head}.bias": torch.ones(32)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    settings = f"models={{w={{arch={ARCH}, front_end={{kind='waveform16k'}}, init='{tmp_path}/w.safetensors'}}}}"
    recipe = load_recipe(
        "demo", [settings, "edges=[]", "compare=false", "schedule={kind='mutual', burn_in=0, steps=2}"]
    )
    tagger = build_initial_tagger(recipe, "w", tags=("a", "b"), files=LocalFiles())
    own = tagger.backbone.state_dict()
    assert torch.equal(
        own["encoder.transformer.layers.1.attention.k_proj.weight"],
        theirs.state_dict()["encoder.transformer.layers.1.attention.k_proj.weight"],
    )
    assert {"head.weight", "head.bias"} <= set(tagger.newly_initialised)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_it_is_exported_for_waveforms_of_any_length(to: Any, tmp_path: Any) -> None:
    """`export` compares the file's logits with the tagger's, of waveforms shorter and longer than its clips."""
    tagger = tagger_of(kind="waveform16k_norm", norm="layer")
    assert not takes_any_length(tagger)
    assert export(tagger, tmp_path / f"w.{to}", to=to, front_end_inside=True) < 1e-4
