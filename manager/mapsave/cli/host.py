"""Who does what a command is about: this process, or the service. Commands do not care which.

Both return what the command prints with ``--json``, and raise the same errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapsave import errors
    from mapsave.config import Guest
    from mapsave.evacuation import restore_all
    from mapsave.migration.progress import Report

    Result = dict[str, Any]
    # Options of the command line by name; those that were not given are None.
    Options = Mapping[str, Any]


class Host(Protocol):
    """What can be asked about the guests, images and jobs of a host.

    ``image`` is a path or a name in the image directory, ``job`` a file or a name in the jobs
    directory.
    """

    def save(self, guest: Guest, options: Options, report: Report) -> Result:
        """Save a guest. Raises as ``hooks.around.save`` does."""

    def restore(self, image: str, options: Options, report: Report) -> Result:
        """Restore an image. Raises as ``hooks.around.restore`` does."""

    def check(self, guest: Guest, options: Options) -> tuple[Result, errors.MapsaveError | None]:
        """Return the checks of a save, and the error of the first that failed."""

    def has_image(self, image: str) -> bool:
        """Return whether there is such an image, whatever its state."""

    def inspect(self, image: str) -> Result:
        """Return what an image holds. Raises as ``operations.inspect.inspect`` does."""

    def verify(self, image: str) -> Result:
        """Return the proof that an image is whole. Raises as ``operations.inspect.verify`` does."""

    def discard(self, image: str, *, unrestored: bool) -> Result:
        """Delete an image. Raises as ``operations.discard.discard`` does."""

    def images(self) -> Result:
        """Return the images of the image directory."""

    def recover(self, *, dry_run: bool) -> Result:
        """Finish or undo what was interrupted."""

    def restore_all(self, request: restore_all.Request, report: Report) -> Result:
        """Restore what save-all saved."""

    def run_job(self, job: str) -> Result:
        """Run a job. Raises UnknownJob, ConfigMissing, ConfigError, as the next two do."""

    def check_job(self, job: str) -> Result:
        """Return what would fail in a job."""

    def prune(self, job: str, *, dry_run: bool) -> tuple[Result, bool]:
        """Remove the images that a job does not keep; return also whether it keeps all."""

    def jobs(self) -> Result:
        """Return the jobs of the jobs directory, and the files in it that are not a job."""
