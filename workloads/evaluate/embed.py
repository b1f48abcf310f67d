"""Embeddings of a data set's clips by a trained tagger, and a linear model on them: how good a network's features are.

The network stays as it is. Axes: N clips of a set, D features, C tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from workloads.data.batches import evaluation_batches
from workloads.data.clips import Clip
from workloads.data.prepare import PreparedData
from workloads.evaluate import metrics
from workloads.evaluate.predict import BadNumbers
from workloads.models.tagger import Tagger

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse weights of the L2 penalty, from which each fold chooses
HELD_OUT = 0.2  # of the training recordings, on which it chooses
MOST_STEPS = 1000  # of the solver
ABSENT = -50.0  # the log odds of a tag that no training clip has


def embed_clips(tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData) -> NDArray[np.float32]:
    """embedding_ND of clips, in their order: of one that is heard in several windows their mean.

    The tagger is in eval mode. The embedding is what its head reads. Raises BadNumbers where one is not finite.
    """
    sums: list[Tensor | None] = [None] * len(clips)
    windows = [0] * len(clips)
    at_once = prepared.recipe.train.shard_size
    for rows, shard in evaluation_batches(
        clips, prepared.dataset, prepared.cache, prepared.recipe.data, at_once=at_once
    ):
        with torch.no_grad():
            mel_BMF = tagger.front_end(shard.x_BT, shard.sound(tagger.front_end))
            embedding_BD = tagger.outputs(mel_BMF).embedding_BD
        for row, embedding_D in zip(rows, embedding_BD, strict=True):
            before = sums[row]
            sums[row] = embedding_D if before is None else before + embedding_D
            windows[row] += 1
    means = [each / count for each, count in zip(sums, windows, strict=True) if each is not None]
    mean_ND = torch.stack(means).float()
    bad = [clip.clip_id for clip, finite in zip(clips, mean_ND.isfinite().all(1), strict=True) if not finite]
    if bad:
        raise BadNumbers(
            f"the features of {len(bad)} of {len(clips)} clips are not finite ({bad[0]} is the first): the model's "
            "weights have diverged or are damaged, or these clips are broken; take another checkpoint"
        )
    embedding_ND: NDArray[np.float32] = mean_ND.numpy()
    return embedding_ND


@dataclass(frozen=True)
class ProbedFold:
    """The scores of a fold's clips by a linear model that was trained on the clips of all others."""

    fold: int
    clips: int
    strength: float  # that it chose
    scores: dict[str, float]


@dataclass(frozen=True)
class Probe:
    """The scores of every clip, each by the model that has not seen its fold, and of each fold."""

    scores: dict[str, float]
    folds: tuple[ProbedFold, ...]


def probe(embedding_ND: NDArray[np.float32], y_NC: Tensor, clips: Sequence[Clip], labels: str) -> Probe:
    """Cross-validate a linear model on embeddings over the folds of the clips.

    Logistic regression on features of zero mean and unit variance, one model with "single" labels, one for each tag
    with "multi", on the clips whose label is known. Its L2 penalty is chosen on a fifth of the training recordings
    (clips of one `source` stay together). Nothing is drawn but that fifth, from a fixed seed. Raises ValueError for
    fewer than two folds, and where a fold's clips give no score.
    """
    fold_N = np.array([clip.fold for clip in clips])
    source_N = np.array([clip.source for clip in clips])
    numbers = np.unique(fold_N).tolist()
    if len(numbers) < 2:
        raise ValueError(f"--probe: the data set has {len(numbers)} fold, and is cross-validated over at least two")
    logits_NC, folds = torch.zeros(y_NC.shape, dtype=torch.float64), []
    for number in numbers:
        test_N = fold_N == number
        strength = _chosen_strength(embedding_ND[~test_N], y_NC[~test_N], source_N[~test_N], labels)
        predict = _fit(embedding_ND[~test_N], y_NC[~test_N], labels, strength)
        own_NC = predict(embedding_ND[test_N])
        logits_NC[test_N] = own_NC
        try:
            scores = metrics.score(own_NC, y_NC[test_N], labels)
        except ValueError as error:
            raise ValueError(
                f"--probe: fold {number} gives no score ({error}); give it clips with and without a tag"
            ) from None
        folds.append(ProbedFold(int(number), int(test_N.sum()), strength, scores))
    return Probe(metrics.score(logits_NC, y_NC, labels), tuple(folds))


def _chosen_strength(x_ND: NDArray[np.float32], y_NC: Tensor, source_N: NDArray[Any], labels: str) -> float:
    """The strength whose model scores best on held-out recordings; of equal ones the stronger penalty."""
    splitter = GroupShuffleSplit(n_splits=1, test_size=HELD_OUT, random_state=0)
    try:
        train_N, held_N = next(splitter.split(x_ND, groups=source_N))
        found = {
            strength: metrics.score(
                _fit(x_ND[train_N], y_NC[train_N], labels, strength)(x_ND[held_N]), y_NC[held_N], labels
            )
            for strength in STRENGTHS
        }
    except ValueError as error:
        raise ValueError(
            f"--probe: too few recordings to choose a penalty on ({error}); use a larger data set"
        ) from None
    return max(STRENGTHS, key=lambda strength: found[strength][metrics.primary(labels)])


def _fit(x_ND: NDArray[np.float32], y_NC: Tensor, labels: str, strength: float) -> Any:
    """Train; returns a function from embedding_ND to logits_NC."""
    models = _fit_single(x_ND, y_NC, strength) if labels == "single" else _fit_multi(x_ND, y_NC, strength)

    def predict(own_ND: NDArray[np.float32]) -> Tensor:
        logits_NC = torch.full((len(own_ND), y_NC.shape[1]), ABSENT, dtype=torch.float64)
        for columns, model in models:
            if isinstance(model, float):
                logits_NC[:, columns] = model
            else:
                scores_NK = np.asarray(model.decision_function(own_ND), np.float64).reshape(len(own_ND), -1)
                if labels == "single":
                    scores_NK = _log_probabilities(scores_NK)
                logits_NC[:, columns] = torch.from_numpy(scores_NK)
        return logits_NC

    return predict


def _log_probabilities(scores_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a model's decision function; scikit-learn's own are -inf where a probability is too small for a float32."""
    if scores_NK.shape[1] == 1:  # of two tags it scores the second
        scores_NK = np.hstack([np.zeros_like(scores_NK), scores_NK])
    return log_softmax(scores_NK, axis=1)


def _linear(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_STEPS))


def _fit_single(x_ND: NDArray[np.float32], y_NC: Tensor, strength: float) -> list[tuple[list[int], Any]]:
    """One model of all tags that a training clip has; ABSENT of the others."""
    tag_N = y_NC.argmax(1).numpy()
    columns = np.unique(tag_N).tolist()
    if len(columns) < 2:
        raise ValueError("only one tag is there")
    return [(columns, _linear(strength).fit(x_ND, tag_N))]


def _fit_multi(x_ND: NDArray[np.float32], y_NC: Tensor, strength: float) -> list[tuple[list[int], Any]]:
    """A model of each tag that is on some training clips and not on others; of others always the same answer."""
    models: list[tuple[list[int], Any]] = []
    for column in range(y_NC.shape[1]):
        known_N = ~y_NC[:, column].isnan().numpy()
        y_N = y_NC[:, column].numpy()[known_N]
        has_both = len(np.unique(y_N)) == 2
        always = -ABSENT if len(y_N) and y_N.all() else ABSENT
        models.append(([column], _linear(strength).fit(x_ND[known_N], y_N) if has_both else always))
    return models
