"""Copy the page's libraries out of their npm packages, at pinned versions: `python web/vendor.py`.

The page loads these files as they are: there is no build step. A package whose checksum differs is refused, and
``--check`` changes nothing and fails if a stored file differs from its package's. Needs npm.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VENDOR = Path(__file__).parent / "vendor"


class Package(NamedTuple):
    """Files of an npm package, and where they are stored."""

    name: str
    version: str
    sha256: str
    #: Folder below ``vendor/``.
    folder: str
    #: Path in the package -> path below ``folder``.
    files: dict[str, str]


def _same(*paths: str) -> dict[str, str]:
    return {path: path for path in ("LICENSE", *paths)}


#: The module "lit" is lit-element.js, which exports lit-html and reactive-element too: web/index.html.
PACKAGES = (
    Package(
        "lit-html",
        "3.3.3",
        "ae004138a6327c362fee8e48db2a8ee9619a6ca3014c802857395e6ac447a0eb",
        "lit-html",
        _same(
            "lit-html.js",
            "directive.js",
            "directive-helpers.js",
            "async-directive.js",
            "directives/class-map.js",
            "directives/if-defined.js",
            "directives/live.js",
            "directives/ref.js",
            "directives/repeat.js",
        ),
    ),
    Package(
        "lit-element",
        "4.2.2",
        "436004379d2f0ce912435c9cbcf9cabb28a3cfd9fb6823c7a7c6d686124b162e",
        "lit-element",
        _same("lit-element.js"),
    ),
    Package(
        "@lit/reactive-element",
        "2.1.2",
        "1fdaf29e5284fc7ffeab352c51edb3c017d73c4e98f0cd3dc53fb8dd555775e5",
        "reactive-element",
        _same("reactive-element.js", "css-tag.js"),
    ),
    Package(
        "tus-js-client",
        "4.3.1",
        "919f46808b2c689be9214df5c0f21879bee4a4599b34e212ada8f14de1db9bc0",
        "tus-js-client",
        {"LICENSE": "LICENSE", "dist/tus.min.js": "tus.min.js"},
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the stored files, and change nothing")
    check = parser.parse_args().check
    differing = []
    for package in PACKAGES:
        for path, content in _unpacked(package).items():
            stored = VENDOR / package.folder / path
            if stored.is_file() and stored.read_bytes() == content:
                continue
            differing.append(stored)
            if not check:
                stored.parent.mkdir(parents=True, exist_ok=True)
                stored.write_bytes(content)
    for stored in differing:
        sys.stdout.write(f"{'differs' if check else 'written'}: {stored.relative_to(VENDOR.parent)}\n")
    return 1 if check and differing else 0


def _unpacked(package: Package) -> dict[str, bytes]:
    """Return the package's files by the path at which they are stored."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "npm",
            "pack",
            "--silent",
            "--pack-destination",
            folder,
            f"{package.name}@{package.version}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (tarball,) = Path(folder).iterdir()
        found = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if found != package.sha256:
            sys.exit(f"{package.name} {package.version} has the SHA-256 {found}, not {package.sha256}")
        with tarfile.open(tarball) as archive:
            files = {}
            for path, stored in package.files.items():
                member = archive.extractfile(f"package/{path}")
                assert member is not None, path
                files[stored] = member.read()
            return files


if __name__ == "__main__":
    sys.exit(main())
