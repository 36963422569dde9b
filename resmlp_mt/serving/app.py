"""The server's interface: LibreTranslate's, and additions for the page."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

import resmlp_mt
from resmlp_mt.serving.alignment import between_words, words
from resmlp_mt.serving.interface import (
    BadRequestError,
    DetectedLanguage,
    DetectRequest,
    ErrorResponse,
    ExplainedHypothesis,
    ExplainedSegment,
    ExplainResponse,
    FrontendSettings,
    Health,
    LanguageInfo,
    MixingResponse,
    SourceWord,
    TranslateRequest,
    TranslateResponse,
    parse,
)
from resmlp_mt.serving.languages import AUTO, Pairs
from resmlp_mt.serving.limits import Limits
from resmlp_mt.serving.metrics import Metrics
from resmlp_mt.serving.requests import (
    ClientGoneError,
    ClientLimit,
    Watched,
    fields,
    while_connected,
)
from resmlp_mt.serving.scheduler import FailedError, Matrices, RefusedError, Scheduler
from resmlp_mt.serving.service import Part, TooLongError, TranslatedText, translate
from resmlp_mt.serving.workers import Languages, Worker, WorkerDiedError

PAGE = Path(__file__).parent / "page"


# Enough for sentences in any alphabet; the worker divides batches that have more tokens.
CHARACTERS_PER_TOKEN = 4
# The page consists of three files and connects only to its own server.
_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_STATUS: dict[type[Exception], int] = {
    BadRequestError: 400,
    TooLongError: 413,
    FailedError: 500,
    RefusedError: 503,
    ClientGoneError: 499,  # nginx's status; no client reads it
    ClientDisconnect: 499,  # before the request arrived
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "Not a request that can be answered",
        422: "A parameter of the address is wrong",
        408: "The request did not arrive in time",
        413: "Too long: the request, or one of its sentences",
        415: "The request is compressed",
        429: "Too many unanswered requests of this client",
        500: "Translating failed",
        503: "The server is busy",
    }.items()
}

_MIXING_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "No such layer, or fewer positions"},
    **{status: _ERRORS[status] for status in (400, 422, 429, 503)},
}


def _body(kind: type[BaseModel], **properties: dict[str, Any]) -> dict[str, Any]:
    """A request body in the OpenAPI description; FastAPI does not read it, since it may be a form.

    The ``properties`` are additions to the description of some fields.
    """
    schema = kind.model_json_schema()
    for name, more in properties.items():
        schema["properties"][name] = {**schema["properties"][name], **more}
    one = {
        **schema,
        "properties": {**_of_form(schema["properties"]), "q": {"type": "string", "minLength": 1}},
    }
    contents = {
        "application/json": {"schema": schema},
        "application/x-www-form-urlencoded": {"schema": one},
        "multipart/form-data": {"schema": one},
    }
    return {"requestBody": {"required": True, "content": contents}}


def _of_form(schema: Any) -> Any:
    """A description without null, which a form cannot hold."""
    if isinstance(schema, dict):
        return {key: _of_form(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_of_form(each) for each in schema if each not in (None, {"type": "null"})]
    return schema


def create_app(
    workers: Sequence[Worker],
    languages: Sequence[Languages],
    limits: Limits,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The application; the scheduler runs as long as the application.

    Args:
        workers: each translates one batch at a time, with a model for each pair of ``languages``.
        languages: at least one pair.
        cors_origins: sites whose pages may ask from a browser, such as ``https://example.org``.
    """
    metrics = Metrics()
    pairs = Pairs(languages)
    scheduler = Scheduler(
        workers,
        metrics,
        max_batch_characters=CHARACTERS_PER_TOKEN * limits.max_batch_tokens,
        max_batch_size=limits.max_batch_size,
        queue_size=limits.queue_size,
        max_wait=limits.max_wait,
    )
    metrics.watch_queue(scheduler.waiting)
    clients = ClientLimit(limits.client_requests)
    matrices = Matrices(workers)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await scheduler.stop()

    app: FastAPI = FastAPIOffline(  # the page of the interface, without files from elsewhere
        title="resmlp_mt",
        version=resmlp_mt.__version__,
        description="Machine translation with ResMLP; the interface is LibreTranslate's.",
        lifespan=running,
        redoc_url=None,
    )
    app.add_middleware(Watched, metrics=metrics, most=limits.max_body, seconds=limits.max_wait)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    for kind in _STATUS:
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _internal_error)

    served: dict[str, dict[str, Any]] = {
        "source": {"enum": [AUTO, *pairs.sources()]},
        "target": {"enum": pairs.targets()},
        "alternatives": {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": limits.beam - 1},
                {"enum": ["", None, *(str(count) for count in range(limits.beam))]},
            ]
        },
    }

    async def translated(
        request: Request, explained: bool = False
    ) -> tuple[TranslateRequest, list[TranslatedText], list[DetectedLanguage] | None]:
        asked = parse(TranslateRequest, await fields(request))
        if explained and not isinstance(asked.q, str):
            raise BadRequestError("Invalid request: q must be one text")
        if asked.alternatives >= limits.beam:
            raise BadRequestError(
                f"Invalid request: alternatives must be at most {limits.beam - 1}"
            )
        if len(asked.texts) > limits.queue_size:
            raise TooLongError(
                f"the request has {len(asked.texts)} texts, more than the server's queue of "
                f"{limits.queue_size}: send fewer at a time"
            )
        size = sum(map(len, asked.texts))
        if size > limits.char_limit:
            raise TooLongError(
                f"Invalid request: request ({size}) exceeds text limit ({limits.char_limit})"
            )

        def find() -> list[tuple[Languages | None, DetectedLanguage | None]]:
            return [pairs.find(asked.source, asked.target, text) for text in asked.texts]

        with clients.place(request):
            # the first detection of a language takes long, and other clients would wait
            found = await asyncio.to_thread(find) if asked.source == AUTO else find()
            meant = [pair for pair, _ in found]
            work = translate(asked.texts, meant, scheduler, metrics, explained)
            texts = await while_connected(request, work, metrics)
        detected = [language for _, language in found if language is not None]
        return asked, texts, detected or None

    @app.post(
        "/translate",
        openapi_extra=_body(TranslateRequest, **served),
        responses=_ERRORS,
        response_model_exclude_none=True,
    )
    async def translate_texts(request: Request) -> TranslateResponse:
        """Translate a text or several; white space and empty lines stay as they are."""
        asked, texts, detected = await translated(request)
        joined = [text.joined() for text in texts]
        others = [text.alternatives(asked.alternatives) for text in texts]
        is_one = isinstance(asked.q, str)
        return TranslateResponse(
            translatedText=joined[0] if is_one else joined,
            alternatives=None if not asked.alternatives else others[0] if is_one else others,
            detectedLanguage=None if detected is None else detected[0] if is_one else detected,
        )

    @app.post(
        "/explain",
        openapi_extra=_body(TranslateRequest, q={"type": "string", "minLength": 1}, **served),
        responses=_ERRORS,
        response_model=ExplainResponse,
    )
    async def explain(request: Request) -> Response:
        """Translate one text, with the translations, scores and attention of every sentence."""
        _, (text,), detected = await translated(request, explained=True)

        def written() -> str:
            return ExplainResponse(
                translatedText=text.joined(),
                segments=[_explained(part) for part in text.parts],
                detectedLanguage=None if detected is None else detected[0],
            ).model_dump_json(exclude_none=True)

        # in a thread: a long text has millions of numbers, and other clients would wait
        return Response(await asyncio.to_thread(written), media_type="application/json")

    @app.get("/mixing", responses=_MIXING_ERRORS, response_model=MixingResponse)
    async def mixing(
        source: Annotated[str, Query(json_schema_extra={"enum": pairs.sources()})],
        target: Annotated[str, Query(json_schema_extra=served["target"])],
        request: Request,
        layer: Annotated[int, Query(ge=0)] = 0,
        length: Annotated[int, Query(ge=1)] = 1,
    ) -> Response:
        """The mixing matrix of a layer of the encoder, for sentences of ``length`` tokens."""
        pair = None if source == AUTO else pairs.find(source, target, "")[0]
        if pair is None:
            raise BadRequestError(f"{target} is not available as a target language from {source}")
        try:
            with clients.place(request):
                async with asyncio.timeout(limits.max_wait):
                    found = await matrices.answer(pair, layer, length)
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        except (TimeoutError, WorkerDiedError) as error:
            raise RefusedError("the server is busy: try again later") from error
        headers = {"Cache-Control": "max-age=3600"}
        return Response(found, headers=headers, media_type="application/json")

    @app.post("/detect", openapi_extra=_body(DetectRequest), responses=_ERRORS)
    async def detect(request: Request) -> list[DetectedLanguage]:
        """The likeliest languages of a text, best first, among those that the server translates."""
        text = parse(DetectRequest, await fields(request)).q
        with clients.place(request):
            return await asyncio.to_thread(pairs.detect, text)

    @app.post("/suggest", include_in_schema=False)
    @app.post("/translate_file", include_in_schema=False)
    async def not_offered() -> None:
        raise HTTPException(
            403, "this server takes neither files nor suggestions: it translates text alone"
        )

    @app.get("/languages")
    async def languages_listed() -> list[LanguageInfo]:
        """The languages, with what each can be translated into."""
        return pairs.listed()

    @app.get("/health", responses={503: _ERRORS[503]})
    async def health() -> Health:
        """Whether the server answers, and a worker can translate."""
        scheduler.check_workers()
        return Health()

    @app.get("/frontend/settings")
    async def frontend_settings() -> FrontendSettings:
        """What a client shows before anything is typed."""
        return FrontendSettings(charLimit=limits.char_limit, language=pairs.defaults())

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus(request: Request) -> Response:
        """Counters for Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"Content-Type": content_type})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _POLICY})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.openapi()  # which does not describe HEAD: it is answered as GET, without the body
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            route.methods = {"GET", "HEAD"}
    return app


def _explained(part: Part) -> ExplainedSegment:
    segment, answer = part
    source = words(answer.pieces) if answer else []
    hypotheses = []
    for found in answer.translations if answer else []:
        target = words(found.pieces)
        hypotheses.append(
            ExplainedHypothesis(
                text=found.text,
                score=found.score,
                words=[word.text for word in target],
                attention=between_words(found.attention, target, source) if found.attention else [],
            )
        )
    return ExplainedSegment(
        text=segment.text,
        start=segment.start,
        words=[SourceWord(**word._asdict()) for word in source],
        translations=hypotheses,
    )


async def _refused(request: Request, error: Exception) -> Response:
    status = _STATUS[type(error)]
    headers = {"Retry-After": "1"} if status == 503 else None
    message = str(error).encode(errors="replace").decode()  # may cite half a surrogate pair
    return JSONResponse({"error": message}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"Invalid request: {first['loc'][-1]}: {first['msg']}"}, 422)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed: see its log"}, 500)
