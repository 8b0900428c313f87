"""What `fleet-eval fetch` does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet_rlm.errors import Exit, UsageError, nearest
from fleet_rlm.project import find_content, list_content, project_dir
from fleet_rlm.suites.fetch import fetch
from fleet_rlm.suites.fetched import FetchedTask
from fleet_rlm.suites.manifest import Manifest, find_manifest
from fleet_rlm.suites.suite import load_suite


def fetch_command(start: Path, name: str, *, pin: bool, relock: bool, as_json: bool) -> int:
    """Read the datasets of a suite, or one dataset, onto this machine."""
    project = project_dir(start)
    found = []
    for manifest in _manifests(project, name):
        source = manifest.file.source
        print(f"{manifest.name}: reading {source.hub or source.path}", file=sys.stderr)
        lock = fetch(manifest, pin=pin, relock=relock).lock
        found.append(
            {
                "dataset": manifest.name,
                "licence": manifest.file.dataset.licence,
                "revision": lock.revision,
                "rows": lock.rows,
                "contexts": lock.contexts,
                "tokens": lock.tokens,
                "digest": lock.digest,
                "lock": str(manifest.lock_path),
            }
        )
        if not as_json:
            print(
                f"{manifest.name}: {lock.rows:,} questions on {lock.contexts:,} contexts,"
                f" {lock.tokens:,} tokens, licence {manifest.file.dataset.licence}"
            )
            print(f"  digest {lock.digest[:16]}, locked in {_shown(manifest.lock_path, project)}")
    if as_json:
        print(json.dumps(found))
    return Exit.OK


def _manifests(project: Path, name: str) -> list[Manifest]:
    """The manifests that a suite's or a dataset's name or path means.

    Raises:
        UsageError: neither is known, or the suite names no dataset.
    """
    suites = {content.name for content in list_content("evals", project)}
    datasets = {content.name for content in list_content("datasets", project)}
    is_path = name.endswith(".toml") or "/" in name
    if not is_path and name not in suites | datasets:
        hint = nearest(name, suites | datasets)
        raise UsageError(f"No suite or dataset {name!r}. {hint}", fix="fleet-eval list")
    if is_path or name in datasets:
        return [find_manifest(name, project)]
    suite = load_suite(find_content("evals", name, project).path, project)
    found = {t.manifest.name: t.manifest for t in suite.tasks if isinstance(t, FetchedTask)}
    if not found:
        raise UsageError(f"Suite {name!r} is generated: there is nothing to fetch.")
    return list(found.values())


def _shown(path: Path, project: Path) -> Path:
    return path.relative_to(project) if path.is_relative_to(project) else path
