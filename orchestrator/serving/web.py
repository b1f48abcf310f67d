"""The HTTP interface: FastAPI's routes over whatever hears sounds. Knows neither Ray nor how sounds are batched."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, Protocol

from fastapi import Depends, FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route

from orchestrator.artifacts.tag import LoadedTagger, check_threshold, why_no_events
from orchestrator.serving.answers import (
    Event,
    EventsAnswer,
    Health,
    ModelFacts,
    Problem,
    ServerFacts,
    TagAnswer,
    TagProbability,
)
from orchestrator.serving.body_limit import BodyLimit
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.remote_sound import NotFetched, fetch_sound
from orchestrator.serving.timeline import along_time
from workloads.data.decode import BrokenClip, NotReadHere, Sound, TooLong
from workloads.evaluate.predict import BadNumbers
from workloads.evaluate.sounds import HeardSound
from workloads.runtime.version import VERSION

TOP, THRESHOLD = 5, 0.5
SHOWN = 40  # characters of what a client sent
# the page is one file that loads nothing; blob: is the sound that the reader has chosen
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; media-src blob:"
)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A form that cannot be read."},
    403: {"model": Problem, "description": "The address is not among those that this server fetches."},
    404: {"model": Problem, "description": "No such model."},
    413: {"model": Problem, "description": "Too many bytes, or too long a sound."},
    415: {"model": Problem, "description": "A container that this installation cannot decode."},
    422: {"model": Problem, "description": "No sound, a damaged one, or a parameter out of range."},
    503: {
        "model": Problem,
        "description": "Too many requests wait, or the process that worked on this one has ended: Retry-After says in "
        "how many seconds to try again.",
    },
}
FileField = Annotated[UploadFile | None, File(description="The sound: wav, flac, ogg, opus or mp3.")]
UrlQuery = Annotated[str | None, Query(description="Instead of a file: an address below one of `url_prefixes`.")]
ModelQuery = Annotated[str | None, Query(description="One of `GET /models`; default: the first.")]
TopQuery = Annotated[int, Query(ge=1, description="Number of tags.")]
TimelineQuery = Annotated[bool, Query(description="Also these tags' probabilities along time.")]
ThresholdQuery = Annotated[float, Query(description="The probability at which an event begins.")]


class Hearing(Protocol):
    """What the routes need: taggers by name, a place to decode, and a way to hear."""

    @property
    def options(self) -> ServeOptions: ...

    @property
    def loaded(self) -> Mapping[str, LoadedTagger]: ...

    @property
    def decoders(self) -> Executor: ...

    async def hear(self, name: str, sound: Sound, *, frames: bool) -> HeardSound: ...


class Chosen(NamedTuple):
    """The tagger that a request names, by its name here."""

    name: str
    loaded: LoadedTagger

    @property
    def why_no_events(self) -> str:
        reason = why_no_events(self.loaded.state)
        return f"model {self.name!r} {reason}" if reason else ""


def build_app(hearing: Hearing) -> FastAPI:
    """The application with all routes; of a hearing whose taggers are loaded."""
    # FastAPI's own pages of the interface load their scripts from the network
    app = FastAPI(title="Antiphon", version=VERSION, summary="Tags of sounds.", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=hearing.options.max_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hearing.options.hosts))
    page = (Path(__file__).with_name("templates") / "page.html").read_text(encoding="utf-8")
    _add_error_answers(app)

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/healthz")
    @app.head("/healthz", include_in_schema=False)  # some load balancers probe so
    async def healthz() -> Health:
        return Health(status="ok", models=list(hearing.loaded))

    @app.get("/models")
    async def models() -> ServerFacts:
        return _server_facts(hearing)

    @app.post("/tag", responses=PROBLEMS, dependencies=[Depends(_refuse_unread)])
    async def tag(
        file: FileField = None,
        url: UrlQuery = None,
        model: ModelQuery = None,
        top: TopQuery = TOP,
        timeline: TimelineQuery = False,
    ) -> TagAnswer:
        """The most probable tags of a sound."""
        chosen = _chosen(hearing, model)
        sound, heard = await _hear(hearing, chosen, file, url, frames=timeline and not chosen.why_no_events)
        return await _in_thread(hearing, _tag_answer, chosen, sound, heard, top, timeline)

    @app.post("/events", responses=PROBLEMS, dependencies=[Depends(_refuse_unread)])
    async def events(
        file: FileField = None,
        url: UrlQuery = None,
        model: ModelQuery = None,
        threshold: ThresholdQuery = THRESHOLD,
    ) -> EventsAnswer:
        """When tags sound, from onset to offset; of models whose facts say `events`."""
        chosen = _chosen(hearing, model)
        if chosen.why_no_events:
            raise HTTPException(422, chosen.why_no_events)
        check_threshold(threshold, "threshold =")
        sound, heard = await _hear(hearing, chosen, file, url, frames=True)
        return await _in_thread(hearing, _events_answer, chosen, sound, heard, threshold)

    return app


def _add_error_answers(app: FastAPI) -> None:
    """Every mistake is an answer in JSON with one line under `detail`."""

    def answer(status: int) -> Any:
        async def handle(_: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": str(error)}, status_code=status)

        return handle

    async def not_fetched(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, NotFetched)
        return JSONResponse({"detail": str(error)}, status_code=error.status)

    async def out_of_range(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse({"detail": _first_problem(error)}, status_code=422)

    async def no_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        by_framework = error.detail == HTTPStatus(error.status_code).phrase  # no route took it
        detail = _routes(app, request.url.path) if by_framework else error.detail
        return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)

    app.add_exception_handler(StarletteHTTPException, no_route)
    app.add_exception_handler(RequestValidationError, out_of_range)
    app.add_exception_handler(TooLong, answer(413))
    app.add_exception_handler(NotReadHere, answer(415))
    app.add_exception_handler(BrokenClip, answer(422))
    app.add_exception_handler(ValueError, answer(422))
    app.add_exception_handler(BadNumbers, answer(500))
    app.add_exception_handler(NotFetched, not_fetched)


def _routes(app: FastAPI, path: str) -> str:
    """What to say of a request that no route takes: the methods of its path, or all paths."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.methods != {"HEAD"}]
    methods = sorted({method for route in routes if route.path == path for method in route.methods or ()} - {"HEAD"})
    if methods:
        return f"{path[:SHOWN]}: takes {' or '.join(methods)}"
    known = ", ".join(f"{min(route.methods or ['GET'])} {route.path}" for route in routes)
    return f"{path[:SHOWN]!r}: no such address here; there are {known}"


def _first_problem(error: RequestValidationError) -> str:
    """One line for the first parameter that is none."""
    first = error.errors()[0]
    place, name = first["loc"][0], first["loc"][-1]
    if place == "body":
        return f"the form's field {name} must hold a file; with curl: -F file=@clip.wav"
    return f"{name} = {str(first['input'])[:SHOWN]!r}: {first['msg'].removeprefix('Input ')}"


async def _refuse_unread(request: Request) -> None:
    """422 for what would else be ignored: parameters that are misspelt, twice or in the form, and a second file."""
    known = [each.alias for each in request.scope["route"].dependant.query_params]
    sent = [name for name, _ in request.query_params.multi_items()]
    if unknown := [name for name in sent if name not in known]:
        raise HTTPException(422, f"{unknown[0][:SHOWN]!r}: no such parameter here; there are {', '.join(known)}")
    fields = [name for name, _ in (await request.form()).multi_items()]
    if unknown := [name for name in fields if name != "file"]:
        raise HTTPException(
            422,
            f"the form's field {unknown[0][:SHOWN]!r} is not read: the sound is its field file, and parameters belong "
            "into the address, as /tag?top=3",
        )
    if twice := next((name for names in (sent, fields) for name in names if names.count(name) > 1), ""):
        raise HTTPException(422, f"{twice!r}: is sent twice; send one sound, and each parameter once")


def _chosen(hearing: Hearing, model: str | None) -> Chosen:
    name = model or next(iter(hearing.loaded))
    if name not in hearing.loaded:
        raise HTTPException(404, f"model {name[:SHOWN]!r}: no such model here; there are {', '.join(hearing.loaded)}")
    return Chosen(name, hearing.loaded[name])


async def _hear(
    hearing: Hearing, chosen: Chosen, upload: UploadFile | None, url: str | None, *, frames: bool
) -> tuple[Sound, HeardSound]:
    if (upload is None) == (url is None):
        raise HTTPException(422, "send one sound: as the form's field file, or its address as url")
    file = upload.file if upload else None
    sound = await _in_thread(hearing, _load, chosen.loaded, file, url, hearing.options)
    return sound, await hearing.hear(chosen.name, sound, frames=frames)


def _load(loaded: LoadedTagger, file: BinaryIO | None, url: str | None, options: ServeOptions) -> Sound:
    if file is None:
        assert url is not None, "one of the two is there"
        file = fetch_sound(url, options.url_prefixes, max_bytes=options.max_bytes)
    return loaded.load(file, max_seconds=options.max_seconds)


async def _in_thread(hearing: Hearing, call: Any, *arguments: Any) -> Any:
    """What takes CPU time runs beside the event loop, which goes on taking requests."""
    return await asyncio.get_running_loop().run_in_executor(hearing.decoders, call, *arguments)


def _about(chosen: Chosen, sound: Sound) -> dict[str, Any]:
    seconds = len(sound.x_T) / chosen.loaded.tagger.clip_rate
    return {"model": chosen.name, "seconds": round(seconds, 3), "notes": list(sound.notes)}


def _tag_answer(chosen: Chosen, sound: Sound, heard: HeardSound, top: int, with_timeline: bool) -> TagAnswer:
    tagger, tags = chosen.loaded.tagger, chosen.loaded.tags(heard, top=top)
    return TagAnswer(
        **_about(chosen, sound),
        labels=tagger.labels,
        tags=[TagProbability(tag=tag, probability=value) for tag, value in tags],
        timeline=along_time(tagger, heard, [tag for tag, _ in tags]) if with_timeline else None,
    )


def _events_answer(chosen: Chosen, sound: Sound, heard: HeardSound, threshold: float) -> EventsAnswer:
    events = [Event(**asdict(each)) for each in chosen.loaded.events(heard, threshold=threshold)]
    return EventsAnswer(**_about(chosen, sound), threshold=threshold, events=events)


def _server_facts(hearing: Hearing) -> ServerFacts:
    options = hearing.options
    models = [
        ModelFacts(
            name=name,
            family=loaded.tagger.model.arch.family,
            labels=loaded.tagger.labels,
            tags=list(loaded.tagger.tags),
            rate=loaded.tagger.clip_rate,
            clip_seconds=loaded.tagger.clip_seconds,
            events=not why_no_events(loaded.state),
        )
        for name, loaded in hearing.loaded.items()
    ]
    return ServerFacts(
        version=VERSION,
        max_seconds=options.max_seconds,
        max_bytes=options.max_bytes,
        url_prefixes=list(options.url_prefixes),
        models=models,
    )
