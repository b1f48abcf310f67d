"""The questions of `antiphon init`, and how they are answered: by an option, by default, or by a person."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Question:
    """What is asked; `answers` are (value of the option, text for people), the default first."""

    text: str
    option: str
    answers: Sequence[tuple[str, str]]
    clear: bool  # whether the default is taken without asking


Ask = Callable[[Question], int]  # the number of the answer


def choose(question: Question, ask: Ask, given: str) -> int:
    """The number of the answer: that of the option where it was `given`, the default where it is clear, else asked.

    Raises ValueError for an option that is none of the answers.
    """
    values = [value for value, _ in question.answers]
    if given:
        if given not in values:
            raise ValueError(f"{question.option} {given!r}: must be one of {', '.join(values)}")
        return values.index(given)
    return 0 if question.clear or len(values) == 1 else ask(question)


def refuse_to_guess(question: Question) -> int:
    """An `Ask` for where nobody can be asked. Raises ValueError with the answers."""
    answers = ", ".join(f"{question.option} {value} ({text})" for value, text in question.answers)
    raise ValueError(f"{question.text} There is no terminal to ask on: give one of {answers}; or --yes for the first")
