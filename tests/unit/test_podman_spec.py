"""From what Podman tells about a container to the request that makes it again; from forged requests to what they want."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.sources.podman.adapt import powers, renamed, with_volumes, without_addresses
from lab_backup.sources.podman.compare import differences
from lab_backup.sources.podman.spec import Unsaid, create_spec, environment, secrets_in_command, without_secrets

ID = "a" * 64


def _inspect(config: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    return {
        "Id": ID,
        "Name": "web",
        "Config": {"Hostname": ID[:12], **(config or {})},
        "HostConfig": {"NetworkMode": "bridge", **(host or {})},
        "NetworkSettings": {},
        **others,
    }


def _spec(inspect: dict[str, Any], **unsaid: Any) -> dict[str, Any]:
    return create_spec(inspect, image="localhost/web:1", unsaid=Unsaid(**unsaid))


def test_plain_container() -> None:
    """A container without any setting makes a request without any."""
    assert _spec(_inspect()) == {"name": "web", "image": "localhost/web:1", "netns": {"nsmode": "bridge"}}


@pytest.mark.parametrize(
    ("config", "host", "expected"),
    [
        ({"Cmd": ["a", "b c"]}, {}, {"command": ["a", "b c"]}),
        ({"StopSignal": "SIGUSR1"}, {}, {"stop_signal": 10}),
        ({"StopSignal": 15, "StopTimeout": 0}, {}, {"stop_signal": 15, "stop_timeout": 0}),
        ({"Hostname": "db"}, {}, {"hostname": "db"}),
        ({"Healthcheck": {"Test": ["CMD", "x"]}}, {}, {"healthconfig": {"Test": ["CMD", "x"]}}),
        ({"HealthcheckOnFailureAction": "kill"}, {}, {"health_check_on_failure_action": 2}),
        ({"HealthcheckOnFailureAction": "none"}, {}, {}),
        ({"Annotations": {"io.podman.annotations.init": "TRUE", "mine": "1"}}, {}, {"init": True, "annotations": {"mine": "1"}}),
        ({}, {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}, {"restart_policy": "on-failure", "restart_tries": 3}),
        ({}, {"Memory": 64, "CpuQuota": 5}, {"resource_limits": {"memory": {"limit": 64}, "cpu": {"quota": 5}}}),
        ({}, {"MemorySwappiness": 0, "PidsLimit": 7}, {"resource_limits": {"pids": {"limit": 7}}}),
        ({}, {"Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 1, "Hard": 2}]}, {"r_limits": [{"type": "nofile", "soft": 1, "hard": 2}]}),
        ({}, {"SecurityOpt": ["no-new-privileges", "label=disable"]}, {"no_new_privileges": True, "selinux_opts": ["disable"]}),
        ({}, {"PidMode": "host", "IpcMode": "container:x"}, {"pidns": {"nsmode": "host"}, "ipcns": {"nsmode": "container", "value": "x"}}),
        ({}, {"Tmpfs": {"/t": "size=1m"}}, {"mounts": [{"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}]}),
        ({}, {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}},
         {"portmappings": [{"container_port": 80, "protocol": "tcp", "host_ip": "", "host_port": 8080}]}),
        ({}, {"NetworkMode": "host"}, {"netns": {"nsmode": "host"}}),
        ({}, {"NetworkMode": "slirp4netns:mtu=9"}, {"netns": {"nsmode": "slirp4netns"}, "network_options": {"slirp4netns": ["mtu=9"]}}),
        ({}, {"NetworkMode": "container:db"}, {"netns": {"nsmode": "container", "value": "db"}}),
    ],
)  # fmt: skip
def test_each_setting(config: dict[str, Any], host: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every kind of setting is found where Podman tells it, and asked for as Podman wants it."""
    plain = {"name": "web", "image": "localhost/web:1", "netns": {"nsmode": "bridge"}}
    assert _spec(_inspect(config, host)) == plain | expected


def test_volume_never_changes_owner_again() -> None:
    """The option `U`, which would give restored files away, is dropped; the others stay, in both kinds of mounts."""
    mount = {"Destination": "/d", "Options": ["U", "nosuid"], "RW": False, "Propagation": "rprivate"}
    spec = _spec(_inspect(Mounts=[{**mount, "Type": "volume", "Name": "v"}, {**mount, "Type": "bind", "Source": "/s"}]))
    assert spec["volumes"] == [{"Name": "v", "Dest": "/d", "Options": ["nosuid", "ro", "rprivate"]}]
    assert spec["mounts"][0]["options"] == ["nosuid", "ro", "rprivate"]


def test_entrypoint_with_blanks() -> None:
    """An entrypoint that an old service joins with blanks is told apart again by the image's, or read as a shell would."""
    joined = _inspect({"Entrypoint": "/my program -x"})
    assert _spec(joined, image_entrypoint=["/my program", "-x"])["entrypoint"] == ["/my program", "-x"]
    assert _spec(joined)["entrypoint"] == ["/my", "program", "-x"]
    assert _spec(_inspect({"Entrypoint": "it's"}))["entrypoint"] == ["it's"]
    assert _spec(_inspect({"Entrypoint": ["a b"]}))["entrypoint"] == ["a b"]


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(max_size=20)))
def test_environment_is_kept(variables: dict[str, str]) -> None:
    """Whatever was set is asked for, except what the image sets alike; values may hold anything, also an equals sign."""
    inspect = _inspect({"Env": [f"{name}={value}" for name, value in variables.items()]})
    assert environment(inspect, Unsaid()) == variables
    assert environment(inspect, Unsaid(image_environment=inspect["Config"]["Env"])) == {}


def test_secrets_stay_out() -> None:
    """The value of a secret, which Podman shows among the variables, is neither in the request nor in what is kept."""
    command = ["podman", "run", "--secret", "key,type=env,target=PASSWORD", "--secret=file,target=/etc/key", "web"]
    said = secrets_in_command(command)
    inspect = _inspect(
        {"Env": ["PASSWORD=hunter2", "A=b"], "Secrets": [{"Name": "file", "UID": 1, "GID": 2, "Mode": 256}]}
    )
    spec = create_spec(inspect, image="web", unsaid=said)
    assert "hunter2" not in str(spec)
    assert "hunter2" not in str(without_secrets(inspect, said.secret_environment))
    assert spec["secret_env"] == {"PASSWORD": "key"}
    assert spec["secrets"] == [{"Source": "file", "Target": "/etc/key", "UID": 1, "GID": 2, "Mode": 256}]


def test_second_container() -> None:
    """A second container keeps all but its ports, addresses and host name, and the user is told."""
    spec = {
        "name": "web", "hostname": "web", "portmappings": [{}], "env": {"A": "b"},
        "networks": {"n": {"aliases": ["www"], "static_ips": ["10.0.0.1"], "static_mac": "x"}},
    }  # fmt: skip
    again, lost = renamed(spec, "web2")
    assert again == {"name": "web2", "env": {"A": "b"}, "networks": {"n": {"aliases": ["www"]}}}
    assert len(lost) == 3
    assert spec["name"] == "web"


def test_taken_address() -> None:
    """An address that another container has by now is given up, and only that one."""
    spec = {"networks": {"n": {"static_ips": ["10.0.0.1"], "static_mac": "x"}, "m": {"static_ips": ["10.1.0.1"]}}}
    changed, lost = without_addresses(spec, {"10.0.0.1"})
    assert changed["networks"] == {"n": {}, "m": {"static_ips": ["10.1.0.1"]}}
    assert len(lost) == 1
    assert without_addresses(spec, set()) == (spec, [])


def test_other_volumes() -> None:
    """Volumes get other names where they have them; all else about a mount stays."""
    spec = {"volumes": [{"Name": "a", "Dest": "/a"}, {"Name": "b", "Dest": "/b"}]}
    assert with_volumes(spec, {"a": "a2"})["volumes"] == [{"Name": "a2", "Dest": "/a"}, {"Name": "b", "Dest": "/b"}]


@pytest.mark.parametrize(
    "wanted",
    [
        {"privileged": True},
        {"cap_add": ["CAP_SYS_ADMIN"]},
        {"devices": [{"path": "/dev/sda"}]},
        {"mounts": [{"type": "bind", "source": "/", "destination": "/host"}]},
        {"mounts": [{"type": "devpts", "destination": "/x"}]},
        {"pidns": {"nsmode": "host"}},
        {"netns": {"nsmode": "path", "value": "/proc/1/ns/net"}},
        {"seccomp_profile_path": "unconfined"},
        {"selinux_opts": ["disable"]},
        {"unmask": ["ALL"]},
        {"cgroup_parent": "/"},
        {"sysctl": {"net.ipv4.ip_forward": "1"}},
    ],
)
def test_powers_are_seen(wanted: dict[str, Any]) -> None:
    """Whatever a forged request wants of the host is told; a plain container wants nothing."""
    plain = {"netns": {"nsmode": "bridge"}, "mounts": [{"type": "tmpfs", "destination": "/t"}]}
    assert powers(plain) == []
    assert len(powers({**plain, **wanted})) == 1


def test_differences_are_settings() -> None:
    """Two containers made alike do not differ; one with another setting does, in that one."""
    first = _inspect({"Env": ["A=b", f"HOSTNAME={ID[:12]}"]}, {"Binds": ["v:/d:rw,nosuid"]})
    second = _inspect({"Env": ["HOSTNAME=" + "b" * 12, "A=b"]}, {"Binds": ["v:/d:nosuid,rw"]})
    second = {**second, "Id": "b" * 64, "Config": {**second["Config"], "Hostname": "b" * 12}}
    assert differences(first, second) == []
    second["HostConfig"]["Memory"] = 5
    assert differences(first, second) == ["HostConfig.Memory"]
