"""How a Modal sandbox is made: its image, limits and lease, and what it costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet_rlm.sandbox import confine, driver

HOME = "/opt/fleet"
BLOBS = "/blobs"
"""Folder of large inputs, by digest."""
CONTEXTS = "fleet-rlm-contexts"
"""Volume of contexts that several sandboxes read."""
SHARED = "shared"
"""Folder in it of what other sandboxes read as well."""
LAYOUT = ("knowledge", "memory", "cache", "output", "workspace")
"""Folders of a volume: documentation, the agent's notes, intermediate and final files, its desk."""
INSIDE = (driver.__file__, confine.__file__)
"""Files of ours that a sandbox holds."""

CPU_USD_S = 3.942e-5
"""Dollars a second for a physical core of a sandbox, as published in October 2026."""

MEMORY_USD_S = 6.72e-6
"""Dollars a second for a GiB of memory, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a sandbox is made."""

    image: Any = None
    """A `modal.Image`, or the name of a published one; a plain one with `pip_packages` when None.
    """
    app: Any = None
    """A `modal.App`; looked up by `app_name` when None."""
    app_name: str = "dspy-rlm-interpreter"
    python: str = "3.12"
    pip_packages: tuple[str, ...] = ("numpy", "pandas")
    timeout_s: int = 900
    """Seconds after which Modal ends it, whatever happens here."""
    idle_s: int = 60
    """Seconds after which Modal ends it when nothing runs in it."""
    cpu: tuple[float, float] = (0.25, 2.0)
    """Cores: requested, limit."""
    memory_mib: tuple[int, int] = (512, 2048)
    """MiB: requested, limit."""
    domains: tuple[str, ...] = ()
    """Domains that code may reach; none by default."""
    cidrs: tuple[str, ...] = ()
    """Address ranges that code may reach; none by default."""
    volume_name: str | None = None
    """A volume (version 2) that is mounted writable; made when missing."""
    volume_path: str = "/data"
    context: str | None = None
    """Digest of a context in the volume of contexts, which is mounted read-only."""
    creates_per_s: float = 4.0
    """Sandboxes asked for a second, by all processes of this user together; a Modal workspace
    takes 5 before it refuses."""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def usd_per_s(self) -> float:
        """Dollars a second for what is requested; use beyond that is billed and not foreseen."""
        return self.cpu[0] * CPU_USD_S + self.memory_mib[0] / 1024 * MEMORY_USD_S

    @property
    def image_name(self) -> str:
        """Name and digest under which its image is published."""
        files = [Path(file).read_bytes().hex() for file in INSIDE]
        content = json.dumps([self.python, sorted(self.pip_packages), files])
        return f"fleet-rlm-sandbox:{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def to_json(self) -> dict[str, Any]:
        """What a run stores: all that code in it could tell from outside."""
        return {
            "image": self.image if isinstance(self.image, str) else None,
            "python": self.python,
            "pip_packages": list(self.pip_packages),
            "cpu": list(self.cpu),
            "memory_mib": list(self.memory_mib),
            "domains": list(self.domains),
            "cidrs": list(self.cidrs),
        }


def make_image(recipe: Recipe) -> Any:
    """The `modal.Image` of a recipe, with the driver in it; nothing is built before it is used."""
    import modal

    image = recipe.image
    if isinstance(image, str):
        image = modal.Image.from_name(image)
    elif image is None:
        image = modal.Image.debian_slim(python_version=recipe.python)
        if recipe.pip_packages:
            image = image.pip_install(*recipe.pip_packages)
    for file in INSIDE:
        image = image.add_local_file(file, f"{HOME}/{Path(file).name}", copy=True)
    return image
