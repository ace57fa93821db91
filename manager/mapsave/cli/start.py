"""Where a process of mapsave begins and ends.

Little is imported before signals and streams are set: the rest takes most of a tenth of a second.
"""

from __future__ import annotations

import errno
import gc
import sys

TYPE_CHECKING = False  # that of ``typing``, which takes milliseconds to load, as ``signal`` does
if TYPE_CHECKING:
    import signal
    from typing import NoReturn
else:
    import _signal as signal

_NEW_OBJECTS = 100_000
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_COMPLETE = "__complete"  # what the scripts of ``mapsave completion`` run
_REFUSED = 3  # the exit code of errors.TooLittleLeft


def command(*before: str) -> NoReturn:
    """Run the words ``before`` and the command line; leave without taking Python's modules down.

    That would take some 15 ms. By then every operation has rolled back and closed what it
    opened, and nothing here leaves work to the end of the process.
    """
    # Loading modules makes many objects and no garbage: looking for it after every 700 new ones, as
    # Python would, took a tenth of the time until QEMU is first asked.
    gc.set_threshold(_NEW_OBJECTS)
    try:
        run([*before, *sys.argv[1:]])
    except SystemExit as ended:
        from mapsave.cli import streams

        streams.leave(ended.code if isinstance(ended.code, int) else 1)


def run(arguments: list[str]) -> NoReturn:
    """Set signals and streams, run the command line and raise SystemExit."""
    # Until ``interruption`` takes it, which Python's handler would report by a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from mapsave.cli import streams

        streams.prepare()
        if arguments[:1] == [_COMPLETE]:
            from mapsave.cli import complete

            complete.run(arguments[1:])
            sys.exit(0)
        from mapsave.cli import main
    except OSError as error:
        if error.errno not in _NO_DESCRIPTORS:
            raise
        print(f"mapsave: cannot start: {error.strerror} [check.limits]", file=sys.stderr)
        sys.exit(_REFUSED)
    main.main(arguments)
