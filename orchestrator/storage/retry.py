"""Waiting for a store that went away, and saying in words what it answered. Knows errors, not what was asked for."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tenacity

Value = TypeVar("Value")
PASSING = (errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT)  # s3fs's names for 409 and 503, 500, and taking too long
PASSING_STATUS = (408, 429, 502, 504)  # HTTP answers that s3fs has no name for
PROGRAMMING = (AssertionError, AttributeError, LookupError, TypeError)
MEANINGS = {
    "NoSuchBucket": "there is no such bucket, create it first",
    "InvalidAccessKeyId": "the store does not know this AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not belong to this AWS_ACCESS_KEY_ID",
    "AccessDenied": "these credentials may not do that",
    "QuotaExceeded": "no space left, the quota is used up",
}


def retry_while_unavailable(call: Callable[[], Value], *, what: str, patience_s: float) -> Value:
    """The call's value, tried again while the store is away, for at most `patience_s` seconds.

    What waiting cannot mend (no such bucket, forbidden, no space) is raised at once. Whatever a store raises becomes an
    OSError of one line.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_delay(patience_s),
        wait=tenacity.wait_exponential(multiplier=0.5, max=15),
        retry=tenacity.retry_if_exception(may_pass),
        before_sleep=lambda state: say(f"{what}: {describe_error(_raised(state))}; trying again"),
        reraise=True,
    )
    with _as_os_error(what):
        return retrying(call)


def may_pass(error: BaseException) -> bool:
    """Whether a store's error may be gone in a minute."""
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as NotReached
    from botocore.exceptions import HTTPClientError

    if isinstance(error, NotReached | HTTPClientError | ClientError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and (error.errno in PASSING or refusal(error)[1] in PASSING_STATUS)


def refusal(error: BaseException | None) -> tuple[str, int]:
    """The code and the HTTP status with which an S3 server refused; ("", 0) where nothing was answered."""
    from botocore.exceptions import ClientError

    cause = error.__cause__ if isinstance(error, OSError) else error
    if not isinstance(cause, ClientError):
        return "", 0
    return cause.response["Error"].get("Code", ""), cause.response["ResponseMetadata"].get("HTTPStatusCode", 0)


def _raised(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def describe_error(error: BaseException | None) -> str:
    code, _ = refusal(error)
    if code in MEANINGS:
        return f"{code}: {MEANINGS[code]}"
    return " ".join(str(error.__cause__ if code and error else error).split()) or type(error).__name__


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """Whatever a store raises (no credentials, no route) as an OSError of one line; a missing file stays one."""
    try:
        yield
    except (FileNotFoundError, RuntimeError, ValueError, *PROGRAMMING):  # but for the first our own, passing through
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # a local one, which says where itself
            raise
        raise OSError(f"{what}: {describe_error(error)}") from error
