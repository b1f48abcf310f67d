"""The bodies of the server's answers, with the meaning of every field: OpenAPI's schema is made from them."""

from pydantic import BaseModel, Field


class TagProbability(BaseModel):
    tag: str
    probability: float


class Event(BaseModel):
    tag: str
    onset: float = Field(description="Seconds from the sound's start.")
    offset: float = Field(description="Seconds from the sound's start.")
    probability: float = Field(description="The largest within the event.")


class Timeline(BaseModel):
    """The answer along time, for pictures: how loud the sound is, and how probable each listed tag, in each step."""

    step_begins: list[float] = Field(description="Seconds.")
    step_ends: list[float] = Field(description="Seconds.")
    probabilities: dict[str, list[float]] = Field(description="By tag, one value for each step.")
    peaks: list[float] = Field(description="The largest amplitude, 0 to 1, in equal parts of the whole sound.")


class Answer(BaseModel):
    model: str
    seconds: float = Field(description="How long the sound lasts.")
    notes: list[str] = Field(description="What was mended in the sound before it was heard.")


class TagAnswer(Answer):
    labels: str = Field(description="single: one tag a sound, probabilities sum to 1; multi: any number.")
    tags: list[TagProbability] = Field(description="The most probable tags, best first.")
    timeline: Timeline | None = Field(description="Only where it is asked for.")


class EventsAnswer(Answer):
    threshold: float
    events: list[Event] = Field(description="By onset, then by tag.")


class ModelFacts(BaseModel):
    name: str
    family: str
    labels: str
    tags: list[str]
    rate: int = Field(description="Hz; sounds are resampled to it.")
    clip_seconds: float = Field(description="The length of a window: what is longer is heard in several.")
    events: bool = Field(description="Whether it says when tags sound.")


class ServerFacts(BaseModel):
    version: str
    max_seconds: float
    max_bytes: int
    url_prefixes: list[str]
    models: list[ModelFacts] = Field(description="The first one is heard where a request names none.")


class Health(BaseModel):
    status: str
    models: list[str]


class Problem(BaseModel):
    detail: str = Field(description="What is wrong, the rule, and what to do.")
