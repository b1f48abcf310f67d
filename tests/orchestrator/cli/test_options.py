"""What commands share: the command that is recorded, and commands that messages suggest."""

import shlex
import sys

from orchestrator.cli.options import command_line, report_may_fail


def test_the_recorded_command_has_no_secret(monkeypatch):
    tracking = "postgresql://u:it's a secret@h/db"
    monkeypatch.setattr(
        sys, "argv", ["antiphon", "run", "demo", f"--tracking={tracking.replace(' ', '%20')}", "--local"]
    )
    assert shlex.split(command_line()) == ["antiphon", "run", "demo", "--tracking=postgresql://u:***@h/db", "--local"]


def test_a_suggested_command_is_quoted(capsys):
    with report_may_fail("/runs/a;touch ran"):
        raise OSError("no space")
    assert "`antiphon report '/runs/a;touch ran'` writes it again" in capsys.readouterr().err
