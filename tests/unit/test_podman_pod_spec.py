"""What makes a pod again: ids of what goes with the old pod do not survive."""

from lab_backup.sources.podman.pod_spec import differences, member_name, member_spec, pod_spec

POD = {
    "Name": "web",
    "InfraContainerID": "infra-id",
    "CgroupPath": "/libpod_parent/pod-id",
    "CgroupParent": "/libpod_parent",
    "CreateCgroup": True,
    "SharedNamespaces": ["uts", "ipc", "net"],
    "Containers": [{"Id": "infra-id", "Name": "pod-infra"}, {"Id": "db-id", "Name": "db"}],
    "memory_limit": 1 << 20,
}


def test_a_member_says_what_it_shares_without_ids() -> None:
    """Namespaces of the infra container become the pod's; others stay; needs are told by name."""
    spec = {
        "name": "app",
        "netns": {"nsmode": "container", "value": "infra-id"},
        "pidns": {"nsmode": "container", "value": "db-id"},
        "cgroup_parent": "/libpod_parent/pod-id",
        "dependencyContainers": ["infra-id", "db-id"],
    }
    assert member_spec(spec, POD) == {
        "name": "app",
        "netns": {"nsmode": "pod"},
        "pidns": {"nsmode": "container", "value": "db-id"},
        "dependencyContainers": ["db"],
    }


def test_a_pod_without_infra_shares_nothing() -> None:
    """It is asked for without; limits are translated, and usual places among the control groups left out."""
    assert pod_spec(POD, None) == {
        "name": "web",
        "no_infra": True,
        "resource_limits": {"memory": {"limit": 1 << 20}},
    }


def test_what_differs_and_names() -> None:
    """Addresses do not count as settings; containers are called after their pod, once."""
    assert differences({"networks": {"n": {"static_ips": ["10.0.0.1"]}}}, {"networks": {"n": {}}}) == []
    assert differences({"hostname": "a"}, {"networks": {"n": {}}}) == ["hostname", "networks"]
    assert [member_name(name, "web", "new") for name in ("web-db", "cache")] == ["new-db", "new-cache"]
