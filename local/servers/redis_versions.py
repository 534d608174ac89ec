"""Versions of Redis and Valkey with known vulnerabilities, and the version of a server."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int, int]

#: The first release of each series with the fixes of CVE-2025-21605 (a client without a password fills the memory) and
#: CVE-2025-49844 (a client with one runs code by Lua). A series that is not here and older than the newest one here got
#: none from its authors; a newer one has had them from its beginning.
LEAST_PATCHED: dict[str, tuple[Version, ...]] = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}
HOLES = "CVE-2025-21605, CVE-2025-49844"
_SAID = re.compile(r"(Redis|Valkey)\s+server\s+v=(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)
ASK_LIMIT_S = 10


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server program."""

    path: Path
    #: `Redis` or `Valkey`.
    product: str
    version: Version

    @property
    def patched(self) -> bool:
        """Whether its version has the fixes; a distribution may have backported them to an older one."""
        return is_patched(self.product, self.version)

    @property
    def knows_client_eviction(self) -> bool:
        """Whether it knows ``maxmemory-clients``."""
        return self.version >= (7, 0, 0)

    @property
    def title(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.version))}"


def is_patched(product: str, version: Version) -> bool:
    """Whether a release has the fixes of ``HOLES``."""
    least = LEAST_PATCHED[product]
    if version[:2] > least[-1][:2]:
        return True
    return any(version[:2] == series[:2] and version >= series for series in least)


def patched_releases() -> str:
    """The first releases that have the fixes, for people."""
    products = []
    for product, releases in LEAST_PATCHED.items():
        products.append(f"{product} {', '.join('.'.join(map(str, release)) for release in releases)}")
    return " and ".join(products)


def read_server(path: Path) -> Server | None:
    """Read a server's version; None if the program does not run or is no Redis."""
    try:
        said = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _SAID.search(said)
    if found is None:
        return None
    product, *numbers = found.groups()
    major, minor, patch = map(int, numbers)
    return Server(path=path, product=product.capitalize(), version=(major, minor, patch))
