"""What the driver of a search refuses before it connects to Ray."""

from orchestrator.recipes.loader import load_recipe, resolve
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
