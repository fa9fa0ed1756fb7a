"""Two nodes on one machine: two network namespaces joined by a virtual cable."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

ADDRESSES = ("10.213.47.1", "10.213.47.2")
CABLE = "cable"


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[list[str], list[str]]]:
    """For each node, the words before a command that is to run on it; skips where that needs rights we lack."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux, root and `ip`")
    word = secrets.token_hex(4)
    names = [f"genesis-{word}-{end}" for end in "ab"]
    added = []
    try:
        for name in names:
            result = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if result.returncode:
                pytest.skip(f"ip netns add: {result.stderr.strip()}")
            added.append(name)
        ends = [["name", CABLE, "netns", names[0]], ["name", CABLE, "netns", names[1]]]
        result = subprocess.run(
            ["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], capture_output=True, text=True
        )
        if result.returncode:
            pytest.skip(f"ip link add: {result.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            for command in (
                ["address", "add", f"{address}/24", "dev", CABLE],
                ["link", "set", CABLE, "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *command], check=True)
        yield tuple(["ip", "netns", "exec", name] for name in names)
    finally:
        for name in added:
            subprocess.run(["ip", "netns", "delete", name], check=True)  # and the cable with it
