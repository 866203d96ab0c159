"""What stores and disks say, in this package's errors; and whether it may be gone in a moment."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore

from denoizarr.errors import (
    CorruptChunk,
    CredentialsExpired,
    DenoizarrError,
    ImageNotFound,
    NoSpace,
    PermissionDenied,
    StoreUnavailable,
    UnsupportedStore,
)

from .urls import is_remote, redact

# What a network or a network file system says while it is away; NFS says ESTALE of a file that was replaced.
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("ESTALE", "EIO", "EAGAIN", "EBUSY", "EINTR", "ETIMEDOUT", "EPIPE", "EREMOTEIO", "ENOTCONN"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ESHUTDOWN", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENFILE", "EMFILE", "ENOLCK", "ECOMM"),
    )
    if hasattr(errno, name)
)
_BUSY_STATUSES = frozenset({408, 425, 429})
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_HTTP_STATUS = re.compile(r"\b(?:status|HTTP(?:/[\d.]+)?)\D{0,12}([45]\d\d)\b|\b(4\d\d|5\d\d) [A-Z][a-z]+")
# S3's, and Azure's and Google's, which write XML as well: the one word of an answer that holds no secret.
_CODE = re.compile(r"<Code>([A-Za-z.]{1,64})</Code>|\(code: ([A-Za-z.]{1,64})\)")
_URL = re.compile(r"https?://\S+|for path .*?: |Object at location .*?: ")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
# Answered with 400 and 403 alike, by one service or another.
_REFUSED = frozenset(
    {
        *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"),
        *("AllAccessDisabled", "AccountProblem", "InvalidToken", "AuthenticationFailed", "NotSignedUp"),
    }
)
# Parts of the addresses where machines of Amazon, Google and Azure keep their own credentials.
_OF_THE_MACHINE = re.compile(
    r"https?://[^/\s]+/(latest/(api/token|meta-data)|computeMetadata|metadata/identity)"
)
_REFUSING_STATUSES, _NO_SUCH_RANGE = frozenset({401, 403}), 416


class ShortAnswerError(Exception):
    """Fewer bytes came than were asked for and are there."""


@contextmanager
def translated(url: str | Path) -> Iterator[None]:
    """Turn what a store raises into this package's errors; ours pass through."""
    where = redact(str(url))
    try:
        yield
    except DenoizarrError:
        raise
    except Exception as error:
        ours = translation(error, where)
        if ours is None:
            raise
        raise ours from (None if is_remote(where) else error)


def translation(error: Exception, where: str) -> DenoizarrError | None:
    """Return ours of a store's or disk's error; None for any other.

    Of a remote store's the text is not kept: servers repeat in it who asked.
    """
    if is_remote(where) and (isinstance(error, OSError | ShortAnswerError) or _is_obstores(error)):
        ours = _of_service(error, where)
        ours.passes = may_pass(error)
        return ours
    if isinstance(error, FileNotFoundError | NotADirectoryError | obstore.exceptions.NotFoundError):
        return ImageNotFound("nothing lies here", where=where, remedy="check the path")
    refusals = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)
    if isinstance(error, PermissionError | refusals[0] | refusals[1]):
        return PermissionDenied("the store refuses access", where=where, remedy="check the owner and mode")
    if isinstance(error, OSError):
        return _from_os_error(error, where)
    if isinstance(error, obstore.exceptions.BaseError):
        return _from_message(str(error), where)
    return None


def _of_service(error: Exception, where: str) -> DenoizarrError:
    text = str(error)
    code, status = _code(text), status_in(text)
    if code in _NO_BUCKET:
        return ImageNotFound("no such bucket", where=where, got=code, remedy="check its name and endpoint")
    if code in _EXPIRED:
        return CredentialsExpired(
            "the credentials have expired",
            where=where,
            got=code,
            remedy="renew them and run the same job again; what is done is kept",
        )
    if _no_credentials(text):
        return PermissionDenied(
            "no credentials",
            where=where,
            remedy="set them in the environment, name a profile, or read with storage anonymous: true",
        )
    refusals = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)
    if isinstance(error, refusals) or code in _REFUSED or status in _REFUSING_STATUSES:
        return PermissionDenied(
            "the store refuses access",
            where=where,
            got=code or status,
            remedy="check the credentials and the bucket's policy",
        )
    if isinstance(error, FileNotFoundError | obstore.exceptions.NotFoundError):
        return ImageNotFound("nothing lies here", where=where, remedy="check the URL")
    if code == "InvalidRange" or status == _NO_SUCH_RANGE:
        return CorruptChunk(
            "an object is shorter than what describes it says", where=where, remedy="restore the object"
        )
    if isinstance(error, obstore.exceptions.NotSupportedError):
        return UnsupportedStore(
            "this server sends no parts of objects",
            where=where,
            remedy="copy the image to a bucket or a disk",
        )
    if "error sending request" in text:
        said = "no answer"
    elif isinstance(error, ShortAnswerError):
        said = "fewer bytes than asked for"
    elif "error decoding response body" in text or "interrupted" in text:
        said = "an answer that broke off"
    else:
        said = code or (f"status {status}" if status else type(error).__name__)
    return StoreUnavailable("the store failed", where=where, got=said)


def is_no_bucket(error: Exception) -> bool:
    """Tell whether what is absent is the bucket, and not an object in it; answers to a HEAD do not say."""
    return _code(str(error)) in _NO_BUCKET


def _no_credentials(text: str) -> bool:
    """Tell whether what failed was asking the machine's own metadata service who it is."""
    return _OF_THE_MACHINE.search(text) is not None


def _code(text: str) -> str | None:
    found = _CODE.search(text)
    return None if found is None else found[1] or found[2]


def _is_obstores(error: BaseException) -> bool:
    return type(error).__module__.startswith("obstore")


def _from_os_error(error: OSError, where: str) -> DenoizarrError:
    if error.errno == errno.EROFS:
        return PermissionDenied(
            "the store refuses access",
            where=where,
            got="a read-only disk",
            remedy="choose another destination",
        )
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(
            "the disk or quota is full", where=where, remedy="free some space and run the same job again"
        )
    return StoreUnavailable("the store failed", where=where, got=str(error).splitlines()[0])


def _from_message(message: str, where: str) -> DenoizarrError:
    # obstore wraps the operating system's error in text only.
    # Not any quota: servers say it of too many requests as well, and those pass.
    if "No space left" in message or "quota exceeded (os error" in message:
        return NoSpace(
            "the disk or quota is full", where=where, remedy="free some space and run the same job again"
        )
    if "Permission denied" in message or "Read-only file system" in message:
        return PermissionDenied("the store refuses access", where=where, remedy="check the owner and mode")
    if "No such file" in message:
        return ImageNotFound("nothing lies here", where=where, remedy="check the path")
    return StoreUnavailable("the store failed", where=where, got=(message.splitlines() or [message])[0])


def may_pass(error: BaseException) -> bool:
    """Tell whether what a store said may be gone in a moment.

    Text may be all that is left of it: doubt speaks for another try. What is no store's and no disk's error
    is a mistake in a program.
    """
    if isinstance(error, ShortAnswerError):
        return True
    if not (isinstance(error, OSError) or _is_obstores(error)):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING
    if isinstance(error, FileNotFoundError | PermissionError):
        return False  # obstore's, without a number
    if _is_obstores(error) and type(error).__name__ != "GenericError":
        return False  # not permitted, not modified, not supported: obstore has a name for each
    text = str(error)
    if found := _OS_ERROR.search(text):
        return int(found[1]) in PASSING
    if _code(text) in _NO_BUCKET | _EXPIRED | _REFUSED or _no_credentials(text):
        return False
    status = http_status(error) or status_in(text)
    return status is None or is_busy(status)


def http_status(error: BaseException) -> int | None:
    """Return the status that an HTTP library keeps with its error, if one does."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def status_in(text: str) -> int | None:
    """Return the HTTP status that a message names, if it does."""
    # Not in the names of objects: "488 Alexa" is a dye.
    found = _HTTP_STATUS.search(_URL.sub("", text))
    return None if found is None else int(found[1] or found[2])


def is_busy(status: int) -> bool:
    """Tell whether a status says that another try may do."""
    return status >= 500 or status in _BUSY_STATUSES
