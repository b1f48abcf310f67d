"""Parameters for comparing runs are what was chosen: no defaults, nothing of one machine, nothing twice."""

from orchestrator.recipes.chosen import chosen_parameters
from orchestrator.recipes.loader import flatten, load_recipe, resolve


def test_of_the_demo_a_person_sees_what_the_recipe_says() -> None:
    recipe = load_recipe("demo", ["data.cache=/elsewhere"])
    found, everything = chosen_parameters(recipe), flatten(resolve(recipe))
    assert len(found) < len(everything) / 5
    assert found.items() <= everything.items()
    assert found["models.cnn.optimizer.lr"] == "0.005"
    assert found["schedule.kind"] == "alternate"
    assert found["edges.1.weight"] == "0.3"
    assert found["train.seed"] == "0"  # a default, but what runs are told apart by
    assert "train.label_smoothing" not in found
    assert not {"name", "about", "data.cache"} & found.keys()
    assert {name for name in found if name.startswith("models.cnn_untaught.")} == {"models.cnn_untaught.control_of"}


def test_two_runs_differ_in_what_was_set() -> None:
    one = chosen_parameters(load_recipe("demo", ["compare=false"]))
    other = chosen_parameters(load_recipe("demo", ["compare=false", "train.label_smoothing=0.1", "train.seed=3"]))
    assert other.items() - one.items() == {("train.label_smoothing", "0.1"), ("train.seed", "3")}
