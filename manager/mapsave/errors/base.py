"""The base of all errors, and those that belong to no operation."""

from typing import Any, ClassVar, TypedDict


class ErrorDict(TypedDict):
    """An error as ``--json`` and the service print it."""

    id: str
    exit_code: int
    message: str
    hint: str | None
    data: dict[str, Any]


class MapsaveError(Exception):
    """An unexpected failure, most likely a bug in mapsave."""

    id: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init_subclass__(
        cls, *, id: str, exit_code: int | None = None, http_status: int | None = None
    ) -> None:
        """Set what is said of the class: its id, and code and status if not those of its base."""
        cls.id = id
        cls.exit_code = cls.exit_code if exit_code is None else exit_code
        cls.http_status = cls.http_status if http_status is None else http_status

    def __init__(self, message: str, *, hint: str | None = None, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

    def __str__(self) -> str:
        return self.message  # which a caller that knows the file or guest may have completed

    def as_dict(self) -> ErrorDict:
        """Return the error as the object that ``--json`` and the service print."""
        return {
            "id": self.id,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
            "data": self.data,
        }


def as_ours(error: BaseException) -> MapsaveError:
    """Return ``error`` if it is one of ours, else one that reports it as a bug."""
    if isinstance(error, MapsaveError):
        return error
    return MapsaveError(f"unexpected {type(error).__name__}: {error}")


class OutputFailed(MapsaveError, id="output.failed"):
    """The result could not be printed because the disk is full; what the command did remains
    done."""


class ServiceLost(MapsaveError, id="service.lost"):
    """The service died during the operation and has not come back; the operation continues when
    it does."""
