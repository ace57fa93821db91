import subprocess
import sys
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.labels import policy

from tests.kit import tree
from tests.kit.full import POLICY


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_shipped_policies_are_the_promised_ones() -> None:
    names = {"auto", "none", "selinux-svirt", "apparmor-qemu", "smack", "dac-private"}
    assert names <= set(policy.shipped())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", policy.Policy("auto", name="auto")),
        ("none", policy.Policy("none", name="none")),
        ("dac-private", policy.Policy("dac", mode=0o600, name="dac-private")),
        ("selinux-svirt", policy.Policy("selinux", mode=0o600, name="selinux-svirt")),
        ("apparmor-qemu", policy.Policy("apparmor", mode=0o600, name="apparmor-qemu")),
        ("smack", policy.Policy("smack", mode=0o600, name="smack")),
    ],
)
def test_shipped_files_say_what_is_built_in(name: str, expected: policy.Policy) -> None:
    # By path: the file is read even where the policy is built in.
    assert policy.load(str(tree.ROOT / "policies" / f"{name}.yaml")) == expected
    assert policy.load(name) == expected


def test_own_directory_wins_over_built_in(tmp_path: Path) -> None:
    (tmp_path / "auto.yaml").write_text('module: dac\nmode: "0640"\n')
    assert policy.load("auto", [tmp_path]) == policy.Policy("dac", mode=0o640, name="auto")


def test_every_key(tmp_path: Path) -> None:
    assert policy.load(written(tmp_path, POLICY)) == policy.Policy(
        "auto",
        name="mine",
        description="for the second rack",
        directories=("/srv/a", "/srv/b"),
        owner="backup",
        group="107",
        mode=0o640,
        selinux=policy.SelinuxOptions(
            image_type="virt_t", at_rest="system_u:object_r:virt_content_t:s0"
        ),
        apparmor=policy.ApparmorOptions((policy.ProfileFiles("vm-*", "/r/{profile}", "/p"),)),
        smack=policy.SmackOptions("Guests", "keep"),
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("module: dac\nmdoe: '0600'\n", 2, "unknown key 'mdoe': did you mean 'mode'?"),
        ("module: dac\nmodule: dac\n", 2, "duplicate key 'module': also in line 1"),
        (
            "module: selinux\nselinux:\n  image_typ: a_t\n",
            3,
            "unknown key 'image_typ': did you mean 'image_type'?",
        ),
        ("module: dac\nmode: 0600\n", 2, "mode: must be text: put it in quotes"),
        (
            "module: dac\nmode: '0900'\n",
            2,
            "mode: '0900' is not a mode: write three octal digits, as in \"0600\"",
        ),
        ("mode: '0600'\n", 1, "the key 'module' is missing"),
        ("module: dac\ndirectories: [images]\n", 2, "'images' is not an absolute path"),
        (
            "module: smack\nselinux: {at_rest: keep}\n",
            2,
            "the section 'selinux' does not apply to module: smack",
        ),
        ("module: selinux\nselinux: {label: svirt}\n", 2, "'svirt' is not a context"),
        ("module: selinux\nselinux: {image_type: a:b}\n", 2, "'a:b' is not a type"),
        ("module: selinux\nselinux: {at_rest: later}\n", 2, "'later' is not a context"),
        ("module: smack\nsmack: {label: a/b}\n", 2, "'a/b' is not a Smack label"),
        (
            "module: apparmor\napparmor: {profiles: [{match: a, rules_file: '/{pid}', "
            "profile_file: /p}]}\n",
            2,
            "{profile} is the only placeholder",
        ),
        (
            "module: grsecurity\n",
            1,
            "module: must be 'auto', 'selinux', 'apparmor', 'smack', 'dac' or 'none', not",
        ),
        ('module: dac\nowner: "99999999999"\n', 2, "not the number of a user or group"),
        ('module: dac\ngroup: "4294967295"\n', 2, "at most 4294967294"),
        ('module: dac\nowner: "a\\0b"\n', 2, "owner: must not contain a NUL"),
        ("module: dac\ngroup: ''\n", 2, "group: must not be empty"),
        ('module: dac\ndirectories: ["/a\\0b"]\n', 2, "must not contain a NUL"),
        (
            'module: apparmor\napparmor: {profiles: [{match: a, rules_file: "/a\\0b", '
            "profile_file: /p}]}\n",
            2,
            "rules_file: must not contain a NUL",
        ),
        (
            "module: apparmor\napparmor: {profiles: [{match: a, rules_file: /r, "
            'profile_file: "/a\\0b"}]}\n',
            2,
            "profile_file: must not contain a NUL",
        ),
    ],
)
def test_bad_files_are_told_with_their_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(errors.ConfigError) as caught:
        policy.load(file)
    assert f"{file}:{line}:" in caught.value.message
    assert message in caught.value.message


def test_a_file_beside_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own.yaml", "own.yml"):
        (tmp_path / name).write_text("module: dac\n")
        assert policy.is_path(name)
        assert policy.load(name) == policy.Policy("dac", name="own")
    assert not policy.is_path("own")


def test_the_highest_number_of_a_user_is_one(tmp_path: Path) -> None:
    found = policy.load(written(tmp_path, 'module: dac\nowner: "4294967294"\n'))
    assert found.owner == "4294967294"


def test_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "rack-two.yaml").write_text("module: dac\n")
    with pytest.raises(errors.UnknownPolicy) as caught:
        policy.load("selinux-svrt", [tmp_path])
    assert caught.value.message == (
        "there is no label policy 'selinux-svrt': did you mean 'selinux-svirt'?"
    )
    assert "rack-two" in (caught.value.hint or "")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigMissing, match=r"nothing\.yaml: No such file"):
        policy.load(str(tmp_path / "nothing.yaml"))


def test_auto_and_none_import_no_yaml() -> None:
    code = (
        "import sys; from mapsave.labels import labelling, policy\n"
        "for name in ('auto', 'none'):\n"
        "    labelling.Labelling(policy.load(name)).check('/tmp', None, 'save')\n"
        "print(sorted({'yaml', 'subprocess'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tree.ROOT
    )
    assert said.stdout == "[]\n", said.stderr
