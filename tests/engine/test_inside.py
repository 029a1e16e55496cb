from testing.engine.inside import ControlGroups, control_groups

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_hierarchies_are_found_with_what_mounts_them_again() -> None:
    assert control_groups(HYBRID) == [
        ControlGroups("/sys/fs/cgroup/cpu", "cgroup", "cpu,cpuacct"),
        ControlGroups("/sys/fs/cgroup/systemd", "cgroup", "none,name=systemd"),
        ControlGroups("/sys/fs/cgroup/unified", "cgroup2", ""),
    ]


def test_version_2_alone() -> None:
    line = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
    assert control_groups(line) == [ControlGroups("/sys/fs/cgroup", "cgroup2", "")]
