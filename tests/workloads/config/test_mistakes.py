"""Plain values that are no config value are named in one line, wherever they come from."""

import pytest

from workloads.config.data import Data
from workloads.config.recipe import Augment, Model, restore


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            Augment,
            {"view_seed": 0, "blur": 1.0},
            "blur: unknown key; the keys of Augment are view_seed, roll, gain_db, mixup, mixup_alpha, mixup_on, "
            "mask_time, mask_mel",
        ),
        (Augment, {"roll": 3.0}, "roll = 3.0: must be between 0 and 1"),
        (Augment, {"roll": "x" * 900}, f"roll = '{'x' * 199}...: input should be a valid number, unable to parse"),
        (Model, {"arch": {"family": "mn", "width": -1.0}}, "arch.width = -1.0: must be above 0"),
        (Model, {"arch": {"family": "cnn"}}, "arch.family = 'cnn': must be one of 'mn', 'dymn', "),
        (Model, {}, "arch: is missing; "),
        (Data, {"train_folds": 3}, "train_folds = 3: must be a list, such as [3]"),
        (Model, {"arch": {"family": "mn"}, "optimizer": 3}, "optimizer = 3: must be a table, { key = value, ... }"),
    ],
)
def test_the_first_mistake_is_one_line(kind, values, message):
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the whole message is compared
        restore(kind, values)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
