"""``mapsave``: its list of commands, and how errors become exit codes; ``start`` runs it."""

import sys
from typing import NoReturn

import click

from mapsave import __version__, errors, open_files
from mapsave.cli import interruption, options, output, streams

COMMANDS = {
    "save": "Save a running guest to an image.",
    "checkpoint": "Save a running guest, paused for milliseconds only.",
    "restore": "Restore a guest from an image.",
    "clone": "Start several guests from one image.",
    "save-all": "Save all guests before the host goes down.",
    "restore-all": "Restore what save-all saved.",
    "check": "Report what would fail: a guest's save, or an image's restore.",
    "plan": "Show how a guest would be saved, and why.",
    "probe": "Measure how fast a directory takes data.",
    "inspect": "Show the contents of an image.",
    "diff": "Show which pages differ between images.",
    "verify": "Verify that an image is complete.",
    "prove": "Prove that an image can be loaded.",
    "core": "Write a core of an image, for gdb, drgn or crash.",
    "export": "Export an image, for another host or an archive.",
    "import": "Import an image that was exported.",
    "guests": "List the guests, how each is, and its last image.",
    "list": "List the images of a directory.",
    "discard": "Delete images.",
    "guard": "Report whether a guest may be started afresh.",
    "pin": "Keep images: they are neither deleted nor replaced.",
    "unpin": "Let pinned images be deleted again.",
    "warm": "Read the pages that a guest needs first into memory.",
    "recover": "Complete or roll back interrupted operations.",
    "fleet": "Save guests of many hosts that share a database.",
    "job": "Run, check or list save jobs, or remove their expired images.",
    "serve": "Run the service.",
    "status": "Show the state of the service, and what it does.",
    "reload": "Have the service reload its configuration and the jobs.",
    "ps": "List the operations of the service.",
    "wait": "Wait for operations of the service.",
    "cancel": "Cancel an operation of the service.",
    "logs": "Show the steps of an operation of the service.",
    "events": "Print what happens in the service.",
    "completion": "Print a script for the completion of a shell.",
    "config": "Show the configuration, or its schema.",
    "setup": "Install units, an AppArmor profile or SELinux rules.",
    "emulate": "Run an emulated QEMU to try things out.",
}
_MODULES = {
    "list": "list_images",
    "import": "import_image",
    "job": "jobs",
    "config": "configuration",
    "save-all": "save_all",
    "restore-all": "restore_all",
}


@click.group(
    cls=options.Group,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    no_args_is_help=False,
    lazy={
        name: (f"mapsave.cli.{_MODULES.get(name, name)}", text) for name, text in COMMANDS.items()
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="mapsave")
@click.pass_context
def mapsave(context: click.Context, /) -> None:
    """Save running QEMU guests to disk and restore them.

    GUEST is a name from the configuration or qmp:/path/to/socket. IMAGE is a path, or a name in the
    image directory.

    \b
    Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 refused by preflight (guest untouched),
    4 save failed (guest as before), 5 restore failed (image as before), 6 image invalid,
    7 not permitted, 8 busy, 9 interrupted (guest as before, or left to 'mapsave recover', as said).
    """
    if context.invoked_subcommand is None:
        output.say(context.get_help() + "\n")


def _suggest_domain(error: errors.UnknownGuest, given: options.Globals) -> None:
    """Have the error suggest the libvirt domain that was meant, if there is one."""
    from mapsave.key_types import ADDRESSES

    name = error.data.get("guest")
    if given.host is not None or not isinstance(name, str) or name.startswith(ADDRESSES):
        return
    from mapsave.cli import local
    from mapsave.evacuation import guest_list

    if (address := local.run(guest_list.domain_named(name), given)) is not None:
        error.hint = f"did you mean {address!r}?"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and raise SystemExit; see ``interruption`` for what signals do."""
    given = options.Globals()
    words = sys.argv[1:] if arguments is None else arguments

    def work() -> object:
        try:
            return mapsave.main(words, prog_name="mapsave", standalone_mode=False, obj=given)
        except errors.UnknownGuest as error:
            _suggest_domain(error, given)
            raise

    try:
        open_files.allow_many()
        open_files.check()
        code = interruption.run(work, given.stop)
        if given.in_main_thread is not None:
            if given.stop.name is not None:
                raise errors.Interrupted(f"interrupted by {given.stop.name} before the start")
            code = given.in_main_thread()
    except interruption.Abandoned as abandoned:
        interruption.end_soon(abandoned.error.exit_code)
        streams.leave(output.failure(abandoned.error, given))
    except BaseException as error:
        if isinstance(error, click.UsageError | errors.TooLittleLeft):
            # A command line that was not parsed, or cannot be, may have set no option yet.
            given.json = given.json or "--json" in words
        code = output.failure(error, given)
    sys.exit(code if isinstance(code, int) else 0)
