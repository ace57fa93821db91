"""Lists of QMP requests, good and bad, that emulator and QEMU must answer alike."""

import json
from typing import Any

FILE = {"transport": "file", "filename": "/proc/nonexistent/x", "offset": 0}


def request(name: str, **arguments: Any) -> str:
    """Return a request as JSON; ``a_b`` is the argument ``a-b``."""
    wire = {key.replace("_", "-"): value for key, value in arguments.items()}
    return json.dumps({"execute": name, "arguments": wire})


def capabilities(*on: str, off: tuple[str, ...] = ()) -> str:
    """Return ``migrate-set-capabilities``."""
    wanted = [{"capability": name, "state": True} for name in on]
    wanted += [{"capability": name, "state": False} for name in off]
    return request("migrate-set-capabilities", capabilities=wanted)


def main_channel(**addr: Any) -> list[dict[str, Any]]:
    """Return ``channels`` with one main channel to ``addr``."""
    return [{"channel-type": "main", "addr": addr}]


NEGOTIATION = [
    '{"execute":"query-status"}',
    '{"execute":"query-status","id":1}',
    '{"execute":"nope"}',
    "{bad}\n",
    '{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}',
    '{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}',
    '{"execute":"qmp_capabilities","arguments":{"x":1}}',
    '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":"i"}',
    '{"execute":"qmp_capabilities"}',
]

# A line break after each ends numbers and words, and what QEMU skips after a stray character.
SYNTAX = [
    '{"execute":"query-status"}',
    ' {"execute":"query-status"}',
    "{'execute':'query-status'}",
    '{"execute":"query-status","id":[1,{"a":null}]}',
    '{"execute":"query-status","id":null}',
    '{"id":7,"foo":1}',
    '{"execute":"nope","id":7}',
    '{"execute":"%s"}',
    '{"foo":1}',
    "{}",
    "[]",
    "1\n",
    '"a"',
    "'a\\'b'",
    '"\\u00e4"',
    '{"execute":"query-nam\\u0065"}',
    '{"execute":"n\\u00e4h"}',
    '{"execute":"\\ud83d\\ude00"}',
    "{bad}",
    "tru\n",
    "}",
    "]",
    "@",
    "#",
    '{"a" 1}',
    '{"a":1 "b":2}',
    "{1:2}",
    '{"a":nul}',
    "[1 2]",
    "[1,]",
    '{"a":1,}',
    '{"a":}',
    '"\\q"',
    '"\\u12"',
    '"\\ud800"',
    '"\x01"',
    "-\n",
    "01 ",
    "1.\n",
    "1e\n",
    '{"execute":"query-status","execute":"stop"}',
    '{"a":1,"a":{"b":[1,2]}}',
    '{"a":\n\t1 2}',
    '  {"\u00e4\u00e4":1 2}',
    "[1:2]",
    '{"a":1:2}',
    '{"a",1}',
    '{"a":,}',
    '{"a":1]}',
    "[1}]",
    '{"\\q":1}',
    "{nul:1}",
    "{[1]:2}",
    '{"a":"\\q","b":"\\q"}',
    '{"execute":1}',
    '{"execute":null}',
    '{"execute":"stop","foo":1}',
    '{"execute":"stop","arguments":[]}',
    '{"execute":"stop","arguments":null}',
    '{"execute":"stop","arguments":{"a":1}}',
    '{"exec-oob":"query-status"}',
    '{"execute":"stop","exec-oob":"stop"}',
]

OUT_OF_BAND = [
    '{"exec-oob":"query-status"}',
    '{"exec-oob":"nope"}',
    '{"exec-oob":"migrate-pause","id":3}',
    '{"exec-oob":"stop","execute":"stop"}',
    '{"execute":"query-status","exec-oob":"stop"}',
    '{"exec-oob":1}',
]

QUERIES = [
    request(name)
    for name in (
        "query-name",
        "query-uuid",
        "query-status",
        "query-kvm",
        "query-replay",
        "query-target",
        "query-current-machine",
        "query-memory-size-summary",
        "query-memory-devices",
        "query-memdev",
        "query-block",
        "query-blockstats",
        "query-block-jobs",
        "query-jobs",
        "query-block-exports",
        "query-cpus-fast",
        "query-named-block-nodes",
        "query-iothreads",
        "query-fdsets",
        "query-migrate",
        "query-migrate-capabilities",
        "query-migrate-parameters",
        "query-yank",
        "x-query-ramblock",
        "query-version",
    )
] + [
    request("x-query-ramblock", q=1),
    request("query-fdsets", a=1),
    request("qom-get"),
    request("qom-get", path="/machine"),
    request("qom-get", path="/machine", property=1),
    request("qom-get", path="/machine", property="type"),
    request("qom-get", path="machine", property="type"),
    request("qom-get", path="/machine", property="nope"),
    request("qom-get", path="/nope", property="type"),
    request("qom-get", path="", property="type"),
    request("pmemsave", val=0, size=10, filename="/proc/nonexistent/x"),
    request("pmemsave", val=0, size=10),
    request("pmemsave", val=0, filename="a"),
    request("pmemsave", val="a", size=1, filename="a"),
]

DESCRIPTORS = [
    request("add-fd"),
    request("add-fd", fdset_id=-1),
    request("add-fd", fdset_id="a"),
    request("add-fd", fdset_id=1.5),
    request("add-fd", fdset_id=1 << 63),
    request("add-fd", opaque=1),
    request("add-fd", foo=1),
    request("remove-fd"),
    request("remove-fd", fdset_id=1),
    request("remove-fd", fdset_id=1, fd=3),
    request("remove-fd", fdset_id=-1),
    request("getfd"),
    request("getfd", fdname="a"),
    request("getfd", fdname="1"),
    request("closefd", fdname="a"),
]

RUN_STATES = [
    request("query-status"),
    request("stop"),
    request("query-status"),
    request("stop"),
    request("cont"),
    request("query-status"),
    request("cont"),
    request("stop"),
    request("query-status"),
    request("migrate_cancel"),
    request("migrate_cancel", a=1),
    request("migrate-continue"),
    request("migrate-continue", state="nope"),
    request("migrate-continue", state="pre-switchover"),
    request("migrate-pause"),
    request("migrate-recover", uri="file:/x"),
    request("migrate-start-postcopy"),
    request("system_powerdown"),
]

_PAIRS = [
    ("mapped-ram", "xbzrle"),
    ("mapped-ram", "postcopy-ram"),
    ("multifd", "postcopy-ram"),
    ("multifd", "xbzrle"),
    ("multifd", "background-snapshot"),
    ("background-snapshot", "mapped-ram", "multifd"),
    ("return-path", "switchover-ack"),
    ("zero-copy-send", "multifd"),
    ("zero-copy-send", "multifd", "mapped-ram"),
    ("postcopy-ram", "postcopy-preempt"),
    ("postcopy-ram", "x-ignore-shared"),
    ("dirty-limit", "auto-converge"),
    ("multifd", "mapped-ram", "pause-before-switchover", "events"),
]
_NAMES = (
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "dirty-limit",
    "mapped-ram",
)


def _then_off(*names: str) -> list[str]:
    return [capabilities(*names), capabilities(off=names)]


CAPABILITIES = [
    request("migrate-set-capabilities"),
    request("migrate-set-capabilities", capabilities=1),
    request("migrate-set-capabilities", capabilities=[1]),
    request("migrate-set-capabilities", capabilities=[{}]),
    request("migrate-set-capabilities", capabilities=[{"capability": "multifd"}]),
    request("migrate-set-capabilities", capabilities=[{"capability": "multifd", "state": 1}]),
    request(
        "migrate-set-capabilities", capabilities=[{"capability": "xbzrle", "state": True, "x": 1}]
    ),
    request("migrate-set-capabilities", capabilities=[]),
    capabilities("nope"),
    capabilities("compress"),
    *(line for names in _PAIRS for line in _then_off(*names)),
    *(line for name in _NAMES for line in _then_off(name)),
    # background-snapshot itself needs RAM that userfaultfd can protect, so the pairs come last.
    *(
        line
        for name in _NAMES
        if name not in ("background-snapshot", "dirty-limit", "x-ignore-shared", "mapped-ram")
        for line in _then_off("background-snapshot", name)
    ),
    request("query-migrate-capabilities"),
]

_NUMBERS = (
    "multifd-channels",
    "max-bandwidth",
    "downtime-limit",
    "xbzrle-cache-size",
    "cpu-throttle-initial",
    "cpu-throttle-increment",
    "max-cpu-throttle",
    "throttle-trigger-threshold",
    "x-checkpoint-delay",
    "max-postcopy-bandwidth",
    "avail-switchover-bandwidth",
    "announce-initial",
    "announce-max",
    "announce-rounds",
    "announce-step",
    "multifd-zlib-level",
    "multifd-zstd-level",
    "multifd-qatzip-level",
    "vcpu-dirty-limit",
    "x-vcpu-dirty-limit-period",
    "x-rdma-chunk-size",
)
_VALUES = [0, -1, 1, 9, 10, 20, 21, 99, 100, 255, 256, 1000, 1001, 4096, 100001, 2000001]
_VALUES += [10**12, 1 << 63, 1 << 64]
_OTHER: list[Any] = ["a", "", 1.5, True, None, [], {}]
_WORDS = [
    "none",
    "legacy",
    "zlib",
    "zstd",
    "qpl",
    "multifd",
    "normal",
    "cpr-reboot",
    "cpr-exec",
    "nope",
]

PARAMETERS = [
    *(
        request("migrate-set-parameters", **{name: value})
        for name in _NUMBERS
        for value in _VALUES + _OTHER
    ),
    *(
        request("migrate-set-parameters", **{name: value})
        for name in ("direct-io", "cpu-throttle-tailslow")
        for value in (True, 0, "a", None, False)
    ),
    *(
        request("migrate-set-parameters", **{name: value})
        for name in ("tls-creds", "tls-hostname", "tls-authz")
        for value in ("a", 1, None, "")
    ),
    *(
        request("migrate-set-parameters", **{name: value})
        for name in ("zero-page-detection", "multifd-compression", "mode")
        for value in [*_WORDS, 1, None, "none", "normal"]
    ),
    request("migrate-set-parameters"),
    *(
        request("migrate-set-parameters", cpr_exec_command=value)
        for value in ([], ["a"], [1], "a", None)
    ),
    request("migrate-set-parameters", x_rdma_chunk_size=3 << 20),
    request("migrate-set-parameters", nosuch=1),
    request("migrate-set-parameters", multifd_channels=0, nosuch=1),
    request("migrate-set-parameters", multifd_channels=0, direct_io=0),
    request("migrate-set-parameters", direct_io=True, multifd_channels=0),
    request("query-migrate-parameters"),
]

COMPRESSION_TRAP = [
    request("migrate", uri="file:/proc/nonexistent/x"),
    request("query-migrate"),
    capabilities("mapped-ram", "multifd"),
    request("migrate-set-parameters", multifd_compression="zlib"),
    request("migrate-set-parameters"),
    request("migrate-set-parameters", multifd_compression="none"),
    request("migrate", uri="file:/proc/nonexistent/x"),
    request("query-migrate"),
    capabilities(off=("mapped-ram",)),
    request("migrate-set-parameters", multifd_compression="none", tls_creds="a"),
    request("migrate", uri="file:/proc/nonexistent/x"),
    capabilities("mapped-ram"),
    capabilities("zero-copy-send"),
    request("migrate-set-parameters", tls_creds=""),
    request("migrate", uri="file:/proc/nonexistent/x"),
    request("query-migrate"),
    request("query-migrate-parameters"),
]


def migrations(verb: str) -> list[str]:
    """Return requests to migrate that cannot succeed; ``verb`` is a command's name."""
    uris: list[Any] = [
        "nope",
        "nope:1",
        "",
        "file:",
        "file:/proc/nonexistent/x",
        1,
        "file:/dev/fdset/7",
        "file:/dev/fdset/x",
        "file:/dev/fdset/",
        "file:/dev/fdset/7,offset=0x20M",
        "file:/tmp/x,offset=-1",
        "file:/tmp/x,offset=",
        "file:/tmp/x,offset=1x",
        "file:/tmp/x,offset=0x",
        "file:/tmp/x,offset=x",
        "file:/tmp/x,offset=1.5",
        "file:/tmp/x,offset=16E",
        "file:/tmp/x,offset=1P1",
        "file:/tmp/x,offset=99999999999999999999",
        "file:/proc/nonexistent/x,offset=1.5M",
        "file:/proc/nonexistent/x,offset=5,offset=6",
        "file:/proc/nonexistent/x,foo=6",
    ]
    channels: list[Any] = [
        1,
        [1],
        [{}],
        [],
        main_channel(transport="file"),
        main_channel(transport="file", filename="/proc/nonexistent/x"),
        main_channel(**FILE),
        main_channel(**{**FILE, "offset": "1M"}),
        main_channel(**{**FILE, "foo": 1}),
        main_channel(transport="nope"),
        main_channel(),
        [{"channel-type": "nope"}],
        [{"channel-type": "main"}],
        main_channel(**FILE) * 2,
    ]
    return [
        request(verb),
        *(request(verb, uri=uri) for uri in uris),
        *(request(verb, channels=value) for value in channels),
        request(verb, uri="file:/proc/nonexistent/x", channels=main_channel(**FILE)),
        request(verb, uri="file:/proc/nonexistent/x", channels=[]),
        request(verb, uri="file:/proc/nonexistent/x", foo=1),
        request(verb, uri="file:/proc/nonexistent/x", detach=1),
        request(verb, uri="file:/proc/nonexistent/x", resume=True),
        request(verb, uri="file:/proc/nonexistent/x", exit_on_error=1),
        request("query-migrate"),
    ]


OTHER_TRANSPORTS = [
    request("migrate", uri=uri)
    for uri in ("unix:/x", "exec:true", "fd:nope", "rdma:1:1", "tcp:127.0.0.1:1", "file:/no/x")
]
