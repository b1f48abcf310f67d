"""What a server is told is checked before anything starts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.serving.options import ServeOptions
from tests.serving import publish_tagger

RIGHT = ServeOptions(models={"vit": "RUN/models/vit"}, url_prefixes=("https://example.org:8080/sounds/~me/",))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"models": {}}, "MODEL: name one published tagger or more"),
        ({"models": {"a b": "x"}}, "MODEL 'a b': a name must be letters"),
        ({"max_seconds": 0}, "max_seconds = 0: must be above 0"),
        ({"max_mb": float("inf")}, "max_mb = inf: must be finite"),
        ({"queued": -1}, "queued = -1: must be 0 or more"),
        ({"url_prefixes": ("https://example.org",)}, "must be http:// or https://, a host and a path that ends in /"),
        ({"url_prefixes": ("file:///etc/",)}, "must be http:// or https://"),
        ({"url_prefixes": ("https://user:secret@example.org/",)}, "must be http:// or https://"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        replace(RIGHT, **changed)


def test_wrong_models_are_refused_before_ray_starts(antiphon: Any, tmp_path: Path) -> None:
    vit = publish_tagger("vit", tmp_path)
    none = antiphon("serve", tmp_path)
    assert none.code == 2
    assert "does not exist or was never finished" in none.err
    twice = antiphon("serve", vit, vit)
    assert twice.code == 2
    assert "there is another one called 'vit'; give one of them as NAME=URI" in twice.err
    short = antiphon("serve", f"a={vit}", f"b={vit}", "--batch-seconds", "0.5")
    assert short.code == 2
    assert "batch_seconds = 0.5: must be 1 or more, the clip length of 'a'" in short.err


def test_a_port_that_is_taken_is_refused_before_ray_starts(antiphon: Any, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = antiphon("serve", publish_tagger("vit", tmp_path), "--port", taken.getsockname()[1])
    assert done.code == 2
    assert "cannot listen there" in done.err
