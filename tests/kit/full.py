"""A configuration and a policy with every key."""

CONFIGURATION = """\
images: images
state: /srv/state
socket: run/mapsave.sock
jobs: jobs.d
policies: ../policies
launch_environment: [PATH, LANG, TZ]
guests:
  web01:
    qmp: /run/qemu/web01.qmp
    launch: [qemu-system-x86_64, -name, web01, -m, 4096, -sandbox, on, -append, ""]
    launch_environment: [PATH, DISPLAY]
    policy: selinux-svirt
    priority: 5
  db01:
    libvirt: {uri: "qemu+ssh://host/system", domain: db-1}
  toy:
    emulator: {memory: 64M, pattern: sparse, writer: true}
save:
  then: resume
  live: yes
  format: libvirt
  managed: off
  direct_io: on
  zero_pages: legacy
  channels: 4
  preallocate: false
  prefer: space
  max_file_bytes: 8G
  digests: before
  policy: none
service:
  operators: [ops, wheel]
  readers: [monitoring]
  on_stop: cancel
  stop_timeout: 5m
  concurrency: 8
  per_file_system: 3
  bandwidth: 2G
  history: 30d
  log: json
  textfile: metrics/mapsave.prom
  listen:
    address: "[::1]:8443"
    certificate: tls/service.pem
    key: tls/service.key
    clients: /etc/pki/clients.pem
    crl: tls/revoked.pem
    operators: [alice]
    readers: [grafana]
fleet:
  host: rack1-a
  dsn_file: fleet.dsn
  tls: require
  ca: tls/ca.pem
  certificate: tls/agent.pem
  key: tls/agent.key
  state: /srv/fleet
hooks:
  directory: hooks.d
  timeout: 30s
  before_save: [freeze]
  after_save: [thaw, tell]
  on_failure: [tell]
  before_restore: [check]
  after_restore: [clock]
notify:
  - url: http://127.0.0.1:9/hook
    on: [failure, success]
    timeout: 5s
  - url: https://example.org/
"""


POLICY = """\
module: auto
description: for the second rack
directories: [/srv/a, /srv/b]
owner: backup
group: "107"
mode: "640"
selinux: {image_type: virt_t, at_rest: "system_u:object_r:virt_content_t:s0"}
apparmor: {profiles: [{match: "vm-*", rules_file: "/r/{profile}", profile_file: /p}]}
smack: {label: Guests, at_rest: keep}
"""


JOB = """\
job: nightly-web
kind: save
guests: [web01, "db*"]
save:
  image: "{guest}-{time:%Y%m%dT%H%M%SZ}.mapsave"
  then: resume
  live: true
  format: libvirt
  direct_io: off
  zero_pages: multifd
  channels: auto
  preallocate: on
  policy: selinux-svirt
  replace: yes
  in_use: yes
schedule: {cron: "30 2 * *   mon-fri", time_zone: Europe/Berlin, persistent: no, jitter: 10m}
keep: {last: 3, daily: 7}
concurrency: 2
timeout: 15m
retries: {times: 3, wait: 90s}
hooks: {before_save: [freeze], after_save: [thaw, copy], on_failure: [thaw]}
"""


SCRUB = """\
job: weekly-scrub
kind: scrub
images: ["*.mapsave"]
guests: [web01, "db*"]
every: 30d
rate: 100M
limit: 2T
timeout: 4h
schedule: {cron: "0 1 * *   sat", time_zone: Europe/Berlin, persistent: no, jitter: 10m}
"""


FLEET = """\
database: {dsn: "host=db dbname=mapsave"}
targets:
  nas1: {saves: 4, bandwidth: 2G}
hosts:
  rack1-a: {target: nas1, saves: 1}
  "rack1-*": {target: nas1}
jobs:
  nightly:
    guests: ["web*@rack1-*", "db*"]
    save:
      image: "{guest}-{time:%Y}.mapsave"
      then: resume
      policy: selinux-svirt
      prove: load
      note: by the fleet
    schedule: {cron: "30 1 * * *", time_zone: Europe/Berlin, persistent: no, jitter: 10m}
    window: "22:00-05:00"
    priority: 5
    max_failures: 20
    timeout: 30m
may:
  alice: {run: ["nightly*"], evacuate: ["rack1-*"], return: [rack1-b], cancel: yes}
metrics: {textfile: metrics/fleet.prom}
silent_after: 5m
history: 30d
"""
