"""What the driver of a search refuses before it connects to Ray, and which search a repeated command means."""

from contextlib import nullcontext
from typing import Any

import pytest

from orchestrator.recipes.loader import load_recipe, resolve
from orchestrator.search import driver
from orchestrator.search.store import SearchStore


def test_a_resumed_search_is_given_the_password_of_its_tracking_again(antiphon, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = "postgresql://u:secret@h/db"
    definition = {"search_id": "s", "created": 0.0, "command": "antiphon search search-demo", "tracking": tracking}
    definition["recipe"] = resolve(load_recipe("search-demo"))
    assert SearchStore(str(tmp_path / "s")).create(definition)
    assert "secret" not in (tmp_path / "s" / "search.json").read_text()
    resume = ("search", "search-demo", "--storage", tmp_path, "--resume", "s")
    missing = antiphon(*resume)
    assert missing.code == 2
    assert "tracking 'postgresql://u:***@h/db': the secret in this URI is not stored; give the URI again" in missing.err
    elsewhere = antiphon(*resume, "--tracking", "http://u:secret@h")
    assert "--tracking 'http://***@h': search s was started with 'postgresql://u:***@h/db'" in elsewhere.err
    assert "secret@" not in missing.err + elsewhere.err


def test_a_repeated_command_creates_a_search_or_continues_the_one_of_its_id(antiphon, tmp_path, monkeypatch):
    went_on: list[str] = []

    def stop(job: Any, _: Any) -> None:
        went_on.append(job.location.uri)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "_run_on_ray", stop)
    command = ("search", "search-demo", "--storage", tmp_path, "--tracking", "none", "--search-id", "nightly")
    first, second = antiphon(*command, "--resume", "auto"), antiphon(*command, "--resume", "auto")
    assert (first.code, second.code) == (75, 75)
    assert went_on == [str(tmp_path / "nightly")] * 2
    assert "to continue, repeat the command" in second.err
    assert "--resume nightly" not in second.err
    assert "this search exists already" in antiphon(*command).err
    changed = antiphon(*command, "--resume", "auto", "--set", "train.seed=5")
    assert changed.code == 2
    assert "--resume 'nightly': the search was started with train.seed = 0" in changed.err


def test_a_search_that_another_process_drives_is_left_to_it(antiphon, tmp_path, monkeypatch):
    command = ("search", "search-demo", "--storage", tmp_path, "--tracking", "none", "--search-id", "nightly")
    monkeypatch.setattr(driver, "_run_on_ray", lambda *_: pytest.fail("it has begun"))
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_run_on_ray", lambda *_: {"search_id": "nightly", "status": "preempted"})
        patch.setattr(driver, "beating", lambda *_: nullcontext())  # as if killed: no note of its end
        antiphon(*command, "--resume", "auto")
    busy = antiphon(*command, "--resume", "auto")
    assert busy.code == 75
    assert "is still working on it" in busy.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume", "auto"), "--resume auto: needs --search-id"),
        (("--resume", "a", "--search-id", "b"), "--search-id 'b': names a new search, --resume an old one"),
        (("--address", "http://h:8265"), "--address 'http://h:8265' (or RAY_ADDRESS): is a dashboard's"),
        (("--address", "ray://h:10001"), "--address 'ray://h:10001': Ray Client connections break long runs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(antiphon, tmp_path, options, message):
    done = antiphon("search", "search-demo", "--storage", tmp_path, "--tracking", "none", *options)
    assert done.code == 2
    assert message in done.err
