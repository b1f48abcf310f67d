"""Retries while a store is unavailable, and descriptions of its errors in one line.

Works on exceptions alone: does not depend on what was requested, nor on how it is addressed.
"""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tenacity

Value = TypeVar("Value")
# How s3fs maps 409 and 503, 500, and a timeout. macOS has no EREMOTEIO: s3fs takes EIO there.
TRANSIENT_ERRNOS = (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT)
TRANSIENT_STATUSES = (408, 429, 502, 504)  # HTTP statuses that s3fs maps to no errno
PROGRAMMING_ERRORS = (AssertionError, AttributeError, LookupError, TypeError)
MEANINGS = {
    "NoSuchBucket": "there is no such bucket, create it first",
    "InvalidAccessKeyId": "the store does not know this AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not belong to this AWS_ACCESS_KEY_ID",
    "AccessDenied": "these credentials do not permit this request",
    "QuotaExceeded": "no space left, the quota is used up",
}


class Unavailable(OSError):
    """A store, a server or a cluster does not answer now; the same command, run again later, may succeed."""


def retry_while_unavailable(call: Callable[[], Value], *, what: str, patience_s: float) -> Value:
    """Return the call's value; call again after transient errors until `patience_s` seconds have passed.

    Calls at least once, in the calling thread, and sleeps there between attempts (exponential backoff up to 15 s), so
    `call` must be safe to repeat. Each retry prints one line that begins with `what` to stderr. Errors that waiting
    does not fix (no such bucket, forbidden, no space) are raised at once. Whatever exception a store raises becomes an
    OSError of one line, after transient ones Unavailable; FileNotFoundError, RuntimeError, ValueError and programming
    errors pass unchanged.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_delay(patience_s),
        wait=tenacity.wait_exponential(multiplier=0.5, max=15),
        retry=tenacity.retry_if_exception(is_transient),
        before_sleep=lambda state: print_status(f"{what}: {describe_error(_last_error(state))}; trying again"),
        reraise=True,
    )
    with _as_os_error(what):
        return retrying(call)


def is_transient(error: BaseException) -> bool:
    """Whether a store's error may be gone in a minute: no connection, a timeout, a server that is busy."""
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as NotReached
    from botocore.exceptions import HTTPClientError

    if isinstance(error, NotReached | HTTPClientError | ClientError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and (error.errno in TRANSIENT_ERRNOS or s3_error(error)[1] in TRANSIENT_STATUSES)


def s3_error(error: BaseException | None) -> tuple[str, int]:
    """The error code and the HTTP status of an S3 server's refusal; ("", 0) where the server sent no answer."""
    from botocore.exceptions import ClientError

    cause = error.__cause__ if isinstance(error, OSError) else error
    if not isinstance(cause, ClientError):
        return "", 0
    return cause.response["Error"].get("Code", ""), cause.response["ResponseMetadata"].get("HTTPStatusCode", 0)


def _last_error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def describe_error(error: BaseException | None) -> str:
    """An error in one line: the meaning of a known S3 error code, else its message, else the name of its type."""
    code, _ = s3_error(error)
    if code in MEANINGS:
        return f"{code}: {MEANINGS[code]}"
    return " ".join(str(error.__cause__ if code and error else error).split()) or type(error).__name__


def print_status(text: str) -> None:
    """Print one line to stderr, which keeps stdout for results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """Raise whatever a store raises (no credentials, no route) as an OSError of one line; a missing file stays one."""
    try:
        yield
    except (FileNotFoundError, RuntimeError, ValueError, *PROGRAMMING_ERRORS):  # all but the first are our own
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # a local one, whose message names the file
            raise
        kind = Unavailable if is_transient(error) else OSError
        raise kind(f"{what}: {describe_error(error)}") from error
