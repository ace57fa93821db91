"""The QMP commands of migration, with their guards in QEMU's order.

Source: QEMU's ``migration/migration.c`` (``qmp_migrate``, ``migrate_prepare``) of 10.0, observed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapsave.emulator import address, migration_options, schema
from mapsave.emulator.commands import Request, command
from mapsave.emulator.faults import QmpError
from mapsave.emulator.run_state import RunState

if TYPE_CHECKING:
    from mapsave.emulator.address import Address

_STATUSES = (
    "none",
    "setup",
    "cancelling",
    "cancelled",
    "active",
    "postcopy-device",
    "postcopy-active",
    "postcopy-paused",
    "postcopy-recover-setup",
    "postcopy-recover",
    "completed",
    "failed",
    "colo",
    "pre-switchover",
    "device",
    "wait-unplug",
)
_CAPABILITY = schema.struct(capability=schema.enum(*migration_options.NAMES), state=schema.boolean)


@command("query-migrate")
def _query_migrate(request: Request) -> Any:
    return request.incoming.query() | request.outgoing.query()


@command("query-migrate-capabilities")
def _query_capabilities(request: Request) -> Any:
    return request.machine.capabilities.listing()


@command("query-migrate-parameters")
def _query_parameters(request: Request) -> Any:
    return request.machine.parameters.listing()


@command("migrate-set-capabilities", schema.struct(capabilities=schema.array(_CAPABILITY)))
def _set_capabilities(request: Request) -> Any:
    machine = request.machine
    if request.outgoing.in_progress:
        raise QmpError("There's a migration process in progress")
    wanted = {one["capability"]: one["state"] for one in request.arguments["capabilities"]}
    machine.capabilities.change(wanted, machine.parameters)
    return {}


@command("migrate-set-parameters", schema.optional(migration_options.TYPES))
def _set_parameters(request: Request) -> Any:
    request.machine.parameters.change(request.arguments, request.machine.capabilities)
    return {}


@command(
    "migrate",
    schema.struct(
        uri_=schema.string,
        channels_=address.CHANNELS,
        detach_=schema.boolean,
        resume_=schema.boolean,
    ),
)
def _migrate(request: Request) -> Any:
    machine = request.machine
    target = address.outgoing(request.arguments)
    address.check_transport(target, machine.capabilities)
    if request.arguments.get("resume"):
        raise QmpError("Cannot resume if there is no paused migration")
    _check_source(request)
    _check_file(target)
    request.outgoing.start(target)
    return {}


def register() -> None:
    """Do nothing: to import this module registers its commands, to call this says so."""


def _check_source(request: Request) -> None:
    machine = request.machine
    if request.outgoing.in_progress:
        raise QmpError("There's a migration process in progress")
    if machine.run_state is RunState.INMIGRATE:
        raise QmpError("Guest is waiting for an incoming migration")
    if machine.run_state is RunState.POSTMIGRATE:
        raise QmpError("Can't migrate the vm that was paused due to previous migration")
    if machine.capabilities["mapped-ram"]:
        if machine.parameters.compressed:
            raise QmpError("Cannot use compression with mapped-ram")
        if machine.parameters.encrypted:
            raise QmpError("Cannot use TLS with mapped-ram")


def _check_file(target: Address) -> None:
    if target.transport != "file":
        raise QmpError(f"mapsave's emulator migrates to and from files, not '{target.transport}'")


@command(
    "migrate-incoming",
    schema.struct(uri_=schema.string, channels_=address.CHANNELS, exit_on_error_=schema.boolean),
)
def _migrate_incoming(request: Request) -> Any:
    machine = request.machine
    request.incoming.check_possible()
    source = address.incoming(request.arguments)
    address.check_transport(source, machine.capabilities)
    _check_file(source)
    exit_on_error = request.arguments.get("exit-on-error", True)
    request.incoming.start(source, exit_on_error=exit_on_error)
    return {}


@command("migrate_cancel")
def _migrate_cancel(request: Request) -> Any:
    request.outgoing.cancel()
    return {}


@command("migrate-continue", schema.struct(state=schema.enum(*_STATUSES)))
def _migrate_continue(request: Request) -> Any:
    request.outgoing.proceed(request.arguments["state"])
    return {}


@command("migrate-pause", oob=True)
def _migrate_pause(request: Request) -> Any:
    raise QmpError(
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
    )


@command("migrate-recover", schema.struct(uri=schema.string), oob=True)
def _migrate_recover(request: Request) -> Any:
    raise QmpError("Migrate recover can only be run when postcopy is paused.")


@command("migrate-start-postcopy")
def _start_postcopy(request: Request) -> Any:
    raise QmpError("Enable postcopy with migrate_set_capability before the start of migration")


@command("query-yank")
def _query_yank(request: Request) -> Any:
    chardev = {"type": "chardev", "id": "compat_monitor0"}
    return [chardev, *([{"type": "migration"}] if request.outgoing.is_registered else [])]
