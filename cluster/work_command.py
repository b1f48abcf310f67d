"""The command line that a spec's job runs: words of `antiphon`, the same for every target."""

import shlex

from cluster.spec import ID_OPTIONS, ONCE_A_DAY, Cache, Work

PROGRAM = ("python", "-m", "orchestrator.cli.app")


def command_words(work: Work, cache: Cache | None) -> list[str]:
    """The words after `antiphon`: repeated, the command goes on with its run, search or store.

    Of kind "cron" the id lacks the day, which `shell_command` adds.
    """
    option = ID_OPTIONS.get(work.command)
    name = [option, work.id, "--resume", "auto"] if option else []
    return [work.command, work.recipe, *name, *option_words(work, cache)]


def option_words(work: Work, cache: Cache | None) -> list[str]:
    """The command's options but those that name what it goes on with."""
    words = ["--storage" if work.command in ID_OPTIONS else "--out", work.storage]
    words += ["--tracking", work.tracking] if work.tracking else []
    words += ["--set", f"data.cache={cache.path}"] if cache else []
    return [*words, *work.arguments]


def shell_command(work: Work, cache: Cache | None, *, daily: bool = False) -> str:
    """The command as a shell reads it, in one line.

    `daily` adds the day on which the schedule began the job to the id, in UTC: days are counted from the schedule's own
    time on, so that a job that is begun again after midnight goes on with its run.
    """
    words = [shlex.quote(word) for word in (*PROGRAM, *command_words(work, cache))]
    if daily:
        start = ONCE_A_DAY.fullmatch(work.schedule)
        assert start is not None, "checked by the spec"
        minutes = int(start[2]) * 60 + int(start[1])
        place = words.index(ID_OPTIONS[work.command]) + 1
        words[place] = f"\"{words[place]}-$(date -u -d '{minutes} minutes ago' +%Y-%m-%d)\""
    return " ".join(words)
