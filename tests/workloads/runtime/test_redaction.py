"""Which parts of a text are secrets, and what stays of the text."""

import json
import random

import pytest

from workloads.runtime.event_log import EventLog
from workloads.runtime.json_files import json_text
from workloads.runtime.redaction import RedactingStream, redacted, require_no_secret


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@there", "http://***@there"),
        ("https://secret@github.com/a", "https://***@github.com/a"),
        ("https://secret:x-oauth-basic@h:1/a", "https://***@h:1/a"),
        ("postgresql+psycopg2://mlflow:secret@127.0.0.1:5432/db", "postgresql+psycopg2://mlflow:***@127.0.0.1:5432/db"),
        ("postgresql://u:se@cret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:1/secret@h/db", "postgresql://u:***@h/db"),
        ("'--tracking=mysql://u:secret@h/d' --local", "'--tracking=mysql://u:***@h/d' --local"),
        ("s3://b/k?X-Amz-Signature=secret&X-Amz-Credential=secret%2Fe&v=1", "s3://b/k?X-Amz-Signature=***&X-Amz-Credential=***&v=1"),
        ("https://h/b?sv=2024&sig=secret#top", "https://h/b?sv=2024&sig=***#top"),
        ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?user=u&password=***"),
        ("Max retries exceeded with url: /?token=secret/api/2.0", "Max retries exceeded with url: /?token=***"),
        ("connecting to host=h password=secret dbname=d", "connecting to host=h password=*** dbname=d"),
        ("mysql://u:it's-\"secret\"@h/d, a@b", "mysql://u:***@h/d, a@b"),
        ("'http://h/?token=it's-secret' and more", "'http://h/?token=***' and more"),
        ("PGPASSWORD='a secret' antiphon run", "PGPASSWORD=*** antiphon run"),
        ("https://me@corp.com:S3cret@mlflow.corp.com", "https://***@mlflow.corp.com"),
        ("https://me@corp.com:8080/x@y", "https://***@corp.com:8080/x@y"),
        ("postgresql://me@corp:secret@h/db", "postgresql://me@corp:***@h/db"),
        ("postgresql://me@corp:se/cret@h:1/db", "postgresql://me@corp:***@h:1/db"),
        ("postgresql://u:p w@h/d, a@b", "postgresql://u:***@h/d, a@b"),
        ("https://u:p w@h/d", "https://***@h/d"),
        ("git+https://u:secret@h http://h:1/a@b redis://:secret@h", "git+https://***@h http://h:1/a@b redis://:***@h"),
        ("http://b:1,http://c:p w@h", "http://b:1,http://***@h"),
        ("password=ab#rest&more b=1", "password=*** b=1"),
        ("private_key=secret account_key=secret", "private_key=*** account_key=***"),
        ("{'password': 'secret', 'a': 'b'}", "{'password': '***', 'a': 'b'}"),
        ('{"api_key" : "se\\"cret", "a": "b"}', '{"api_key" : "***", "a": "b"}'),
        ('"{\\"token\\": \\"secret\\", \\"a\\": 1}"', '"{\\"token\\": \\"***\\", \\"a\\": 1}"'),
        ("the response began {'token': 'sec", "the response began {'token': '***"),
        ("AWS_SECRET_ACCESS_KEY=secret antiphon run", "AWS_SECRET_ACCESS_KEY=*** antiphon run"),
    ],
)  # fmt: skip
def test_secrets_are_replaced_once_and_for_all(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "URI 's3://b/k?token=***': holds one",
        "http://127.0.0.1:5000/x@y",
        "http://[::1]:5000/x@y",
        "http://h:5000, then a@b",
        "postgresql://mlflow@127.0.0.1:5432/db",
        "sqlite:////home/a@b:c/mlflow.db",
        "models.vit.arch.pool=token key=1",
        'models.vit.arch={family="vit", pool="token"}',
        "s3://bucket/a/b?versionId=7",
        "me@example.org: 12:30",
        "postgresql://h:5432, then a@b",
        "postgresql://h:5432/db is down, tell a@b",
        "at 'postgresql://h:port' for a@b",
        "{'pool': 'token', 'key': 'x'}",
        "a token: 'mean'",
    ],
)
def test_a_text_without_a_secret_stays(text):
    assert redacted(text) == text
    require_no_secret(text, "URI")


def test_what_must_stay_usable_is_refused():
    with pytest.raises(ValueError, match=r"data.root = 's3://k:\*\*\*@b': holds a password or token.*environment"):
        require_no_secret("s3://k:secret@b", "data.root =")


@pytest.mark.parametrize(
    "part",
    [
        "a://b:",
        "http://b:1/",
        "http://",
        "token",
        "token=",
        "a@",
        "://u:p w@h ",
        "'token': \\\"",
        "'token' ",
        "x://'a b:c ",
    ],
)
def test_time_is_proportional_to_length(part):
    """A text of this length would take minutes, and the suite's timeout, if each part were compared with the rest."""
    for text in (part * (400_000 // len(part)), part * (400_000 // len(part)) + "@"):
        once = redacted(text)
        assert redacted(once) == once


def test_redacting_again_changes_nothing():
    generator = random.Random(0)
    parts = [
        "http://",
        "x://",
        "a",
        "1",
        ":",
        "@",
        "/",
        " ",
        "'",
        '"',
        ",",
        "token=",
        "?sig=",
        "\n",
        "***",
        "#",
        "'key_token': '",
    ]
    for _ in range(20_000):
        text = "".join(generator.choices(parts, k=generator.randint(3, 14)))
        once = redacted(text)
        assert redacted(once) == once, text


def test_json_stays_json(tmp_path):
    value = {"error": 'at "http://h/?token=secret\\"', "n": [1.5, None, ("http://a:secret@h",)]}
    assert json.loads(json_text(value)) == {"error": 'at "http://h/?token=***"', "n": [1.5, None, ["http://***@h"]]}
    own = {"driver": {"token": "1f", "pid": 1}}  # a key is a name of ours
    assert json.loads(json_text(own)) == own
    with EventLog(tmp_path / "events.jsonl") as event_log:
        event_log.append({"kind": "end", "status": "failed", "error": "http://h/?token=secret", "mistake": False})
    assert json.loads((tmp_path / "events.jsonl").read_text())["error"] == "http://h/?token=***"


def test_a_stream_redacts_what_is_printed_to_it(tmp_path):
    with (tmp_path / "log").open("w") as file:
        print("tracked at http://u:secret@h", file=RedactingStream(file))
        assert RedactingStream(file).fileno() == file.fileno()
    assert (tmp_path / "log").read_text() == "tracked at http://***@h\n"
