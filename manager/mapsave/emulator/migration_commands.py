"""The QMP commands of migration, with their guards in QEMU's order; to import it registers them.

Source: QEMU's ``migration/migration.c`` (``qmp_migrate``, ``migrate_prepare``) of 10.0, observed.
"""

from mapsave.emulator import address, migration_options, schema
from mapsave.emulator.address import Address, Channel
from mapsave.emulator.commands import Arguments, Request, command, refusing
from mapsave.emulator.faults import QmpError
from mapsave.emulator.machine import RunState
from mapsave.emulator.migration_options import Value
from mapsave.emulator.versions import Version

_STATUSES = (
    *("none", "setup", "cancelling", "cancelled", "active", "postcopy-device"),
    *("postcopy-active", "postcopy-paused", "postcopy-recover-setup", "postcopy-recover"),
    *("completed", "failed", "colo", "pre-switchover", "device", "wait-unplug"),
)

command("query-migrate")(lambda request: request.incoming.query() | request.outgoing.query())
command("query-migrate-capabilities")(lambda request: request.machine.capabilities.listing())
command("query-migrate-parameters")(lambda request: request.machine.parameters.listing())


def _capabilities(version: Version) -> Arguments:
    one = schema.struct(capability=schema.enum(*version.capabilities), state=schema.boolean)
    return schema.struct(capabilities=schema.array(one))


@command("migrate-set-capabilities", by_version=_capabilities)
def _set_capabilities(request: Request, capabilities: list[dict[str, object]]) -> None:
    machine = request.machine
    if request.outgoing.in_progress:
        raise QmpError("There's a migration process in progress")
    wanted = {str(one["capability"]): bool(one["state"]) for one in capabilities}
    machine.capabilities.change(wanted, machine.parameters)


@command(
    "migrate-set-parameters",
    by_version=lambda version: schema.optional(migration_options.types(version)),
)
def _set_parameters(request: Request, **values: Value) -> None:
    wanted = {name.replace("_", "-"): value for name, value in values.items()}
    request.machine.parameters.change(wanted, request.machine.capabilities)


def _destination(version: Version) -> Arguments:
    detach = {"detach": schema.boolean} if version.has_detach else {}
    members = {"uri": schema.string, "channels": address.CHANNELS, **detach}
    return schema.optional({**members, "resume": schema.boolean})


@command("migrate", by_version=_destination)
def _migrate(
    request: Request,
    uri: str | None = None,
    channels: list[Channel] | None = None,
    detach: bool = False,
    resume: bool = False,
) -> None:
    machine = request.machine
    target = address.outgoing(uri, channels)
    address.check_transport(target, machine.capabilities)
    if resume:
        raise QmpError("Cannot resume if there is no paused migration")
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
    _check_file(target)
    request.outgoing.start(target)


def _check_file(target: Address) -> None:
    if target.transport != "file":
        raise QmpError(f"mapsave's emulator migrates to and from files, not '{target.transport}'")


@command(
    "migrate-incoming",
    schema.struct(uri_=schema.string, channels_=address.CHANNELS, exit_on_error_=schema.boolean),
)
def _migrate_incoming(
    request: Request,
    uri: str | None = None,
    channels: list[Channel] | None = None,
    exit_on_error: bool = True,
) -> None:
    request.incoming.check_possible()
    source = address.incoming(uri, channels)
    address.check_transport(source, request.machine.capabilities)
    _check_file(source)
    request.incoming.start(source, exit_on_error=exit_on_error)


command("migrate_cancel")(lambda request: request.outgoing.cancel())
command(
    "migrate-continue",
    by_version=lambda version: schema.struct(state=schema.enum(*_STATUSES, *version.statuses)),
)(lambda request, state: request.outgoing.proceed(state))
command("migrate-pause", oob=True)(
    refusing(
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
    )
)
command("migrate-recover", schema.struct(uri=schema.string), oob=True)(
    refusing("Migrate recover can only be run when postcopy is paused.")
)
command("migrate-start-postcopy")(
    refusing("Enable postcopy with migrate_set_capability before the start of migration")
)


@command("query-yank")
def _query_yank(request: Request) -> object:
    chardev = {"type": "chardev", "id": "compat_monitor0"}
    return [chardev, *([{"type": "migration"}] if request.outgoing.is_registered else [])]
