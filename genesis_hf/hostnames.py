"""Names under which a server of this machine may be asked."""

import ipaddress
import socket
from urllib.parse import urlsplit


def names_this_machine(header: str, host: str) -> bool:
    """Whether a Host header names this machine in a way that no other site's owner can: by number, or its name.

    Args:
        header: as a request holds it, with or without a port.
        host: what the server was told to listen on.
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return False
    if name in {"localhost", host.lower(), socket.gethostname().lower()}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
