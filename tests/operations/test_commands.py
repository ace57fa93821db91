"""How often a save asks QEMU for what does not change."""

from mapsave import config as configuration
from mapsave.monitor import qmp
from mapsave.operations import restore, save, save_request
from mapsave.operations.restore_request import Request

from tests.kit import cli, commands, emulated


async def test_a_save_and_a_restore_ask_for_no_fact_twice(site: cli.Site) -> None:
    with emulated.guest(site, "web"):
        found = configuration.load(site.config, {})
        request = save_request.request(found, found.guest("web"), image="image")
        with commands.counted(qmp.QmpSession) as saving:
            await save.save(found.guest("web"), found, request)
        assert commands.asked_twice(saving) == []
        assert saving['["query-cpus-fast", null]'] == 1
        assert saving['["query-migrate-capabilities", null]'] <= 3
        with commands.counted(qmp.QmpSession) as restoring:
            await restore.restore(found, Request(image="image"))
        assert commands.asked_twice(restoring) == []
        assert restoring['["query-cpus-fast", null]'] == 1
