"""Which finished runs of a study can be compared, and what one of them cost."""

import pytest

from orchestrator.study.finished import FinishedMember, complete_block


@pytest.mark.parametrize(
    ("cells", "block"),
    [
        ([], ((), ())),
        ([(1, 0)], ((1,), (0,))),
        ([(1, 0), (2, 0), (1, 1)], ((1, 2), (0,))),  # of equal blocks the one with the first seed alone
        ([(1, 0), (2, 0), (1, 1), (2, 1), (3, 1)], ((1, 2), (0, 1))),
        ([(1, 0), (2, 0), (3, 0), (1, 1)], ((1, 2, 3), (0,))),
        ([(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2)], ((1, 2), (1, 2))),
        ([(1, 0), (2, 1)], ((1,), (0,))),
        (  # three folds share 0 to 2, two of them always one more: 3 x 3 cells, and 2 x 4
            [(fold, seed) for fold, own in enumerate(("01234", "01235", "01245"), 1) for seed in map(int, own)],
            ((1, 2, 3), (0, 1, 2)),
        ),
    ],
)
def test_the_largest_block_in_which_every_fold_has_every_seed(cells, block):
    assert complete_block(cells) == block


def cost(step, seconds, part="training"):
    return {
        "kind": "cost",
        "step": step,
        "part": part,
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "gpu_seconds": 0.0,
    }


def test_the_cost_of_a_run_is_that_of_the_steps_that_count():
    """A killed attempt's checkpoint after step 20 was not committed: the next one trained from step 10 on."""
    records = [cost(10, 1.0), cost(20, 8.0), cost(20, 2.0), cost(30, 4.0), cost(30, 0.5, "scoring")]
    assert FinishedMember("", records).cost() == {"seconds": 7.5, "cpu_seconds": 15.0, "gpu_seconds": 0.0}


def test_validations_are_those_of_one_model_and_score():
    values = {"vit/val/mAP": 0.3, "vit/val/log_loss": 0.6, "cnn/val/mAP": 0.4}
    records = [{"kind": "metrics", "step": 5, "values": values}, {"kind": "metrics", "step": 9, "values": {}}]
    assert FinishedMember("", records).validations("vit", "mAP") == {5: 0.3}
