"""`antiphon doctor` on this machine; on a cluster: tests/integration/test_nodes.py."""

import json

from cluster.process_registry import free_ports


def test_this_machine_is_looked_at_and_nothing_is_left_behind(antiphon, tmp_path):
    done = antiphon("doctor", "demo", "--storage", tmp_path / "runs", "--set", f"data.cache={tmp_path}/clips", "--json")
    assert done.code == 0
    found = {finding["check"]: finding for finding in json.loads(done.out)["findings"]}
    assert set(found) == {"versions", "storage", "shared memory", "cache"}
    assert "written, read and removed" in found["storage"]["said"]
    assert list((tmp_path / "runs").iterdir()) == []
    assert not (tmp_path / "clips").exists()


def test_problems_are_in_the_table_and_in_the_exit_code(antiphon, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "file").write_text("")
    tracking = f"http://u:secret@127.0.0.1:{free_ports(1)[0]}"
    data = ["folders", "--set", f"data.root={tmp_path}/none"]
    done = antiphon("doctor", *data, "--storage", tmp_path / "file", "--tracking", tracking)
    assert done.code == 1
    assert "write: [Errno 20] Not a directory" in done.out or "write: [Errno 17] File exists" in done.out
    assert "this machine: data.root: it is not there" in done.out
    assert "Connection refused" in done.out
    assert "secret" not in done.out + done.err


def test_settings_need_a_recipe(antiphon):
    done = antiphon("doctor", "--set", "train.threads=1")
    assert (done.code, "--set train.threads=1: changes a recipe; name one" in done.err) == (2, True)
