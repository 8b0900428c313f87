"""Stands in for Modal's filesystem tool: one JSON command as argument, data on stdin and stdout."""

# One file for any Python, which knows its paths as text.
# ruff: noqa: PTH102, PTH103, PTH107, PTH112, PTH114, PTH115, PTH118, PTH119, PTH120
# ruff: noqa: PTH123, PTH208
# ruff: noqa: PTH106

import json
import os
import shutil
import stat
import sys

ROOT = os.environ.get("MODAL_LOOPBACK_ROOT", "")
KINDS = {
    FileNotFoundError: "NotFound",
    IsADirectoryError: "IsDirectory",
    NotADirectoryError: "NotDirectory",
    PermissionError: "PermissionDenied",
    FileExistsError: "PathAlreadyExists",
}


def entry(path):
    found = os.lstat(ROOT + path)
    link, folder = stat.S_ISLNK(found.st_mode), stat.S_ISDIR(found.st_mode)
    return {
        "name": os.path.basename(path.rstrip("/")) or "/",
        "path": path,
        "type": "symlink" if link else "directory" if folder else "file",
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "permissions": stat.filemode(found.st_mode),
        "owner": str(found.st_uid),
        "group": str(found.st_gid),
        "modified_time": found.st_mtime,
        "symlink_target": os.readlink(ROOT + path) if link else None,
    }


def write_file(path, **_):
    os.makedirs(os.path.dirname(ROOT + path), exist_ok=True)
    with open(ROOT + path, "wb") as out:
        shutil.copyfileobj(sys.stdin.buffer, out, 1 << 20)


def read_file(path, **_):
    with open(ROOT + path, "rb") as data:
        shutil.copyfileobj(data, sys.stdout.buffer, 1 << 20)
    sys.stdout.buffer.flush()


def list_files(path, **_):
    names = sorted(os.listdir(ROOT + path))
    print(json.dumps([entry(os.path.join(path, name)) for name in names]))


def make_directory(path, parents=False, **_):
    (os.makedirs(ROOT + path, exist_ok=True) if parents else os.mkdir(ROOT + path))


def remove(path, recursive=False, **_):
    place = ROOT + path
    if not os.path.isdir(place) or os.path.islink(place):
        os.remove(place)
    elif recursive:
        shutil.rmtree(place)
    else:
        os.rmdir(place)


COMMANDS = {
    "WriteFile": write_file,
    "ReadFile": read_file,
    "ListFiles": list_files,
    "Stat": lambda path, **_: print(json.dumps(entry(path))),
    "MakeDirectory": make_directory,
    "Remove": remove,
}

if __name__ == "__main__":
    ((name, options),) = json.loads(sys.argv[1]).items()
    try:
        COMMANDS[name](**options)
    except OSError as error:
        kind = KINDS.get(type(error), "DirectoryNotEmpty" if error.errno == 39 else "Other")
        print(json.dumps({"error_kind": kind, "message": str(error)}), file=sys.stderr)
        sys.exit(1)
