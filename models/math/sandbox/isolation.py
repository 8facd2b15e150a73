"""How a session's process is started: in namespaces of its own, through bubblewrap.

The process sees the system's libraries, the interpreter and its packages, read-only, and one
folder of its own in memory. Neither /bin, /proc, /sys nor /etc is there; programs that lie among
the libraries are, and run within the same walls.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from algorithms import ParameterError
from models.math.sandbox.limits import Limits, SandboxUnavailable
from models.math.sandbox.seccomp import filter_program

__all__ = ["INSTALL", "ISOLATIONS", "SCRATCH", "Isolation", "Launch", "bubblewrap", "prepare"]

Isolation = Literal["auto", "bwrap", "none"]
ISOLATIONS = ("auto", "bwrap", "none")

INSTALL = "sudo apt-get install bubblewrap libseccomp2"
SCRATCH = "/tmp"
"""The scratch folder as isolated code sees it: its working and home folder."""

_NOBODY = 65534
_LIBRARIES = ("lib", "lib32", "lib64", "libx32")
_SHARED = ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_ENVIRONMENT = {
    "LANG": "C.UTF-8", "MPLBACKEND": "Agg", "NO_COLOR": "1", "TZ": "UTC", "USER": "sandbox",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
    # a thread's stack and buffers are address space
    "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}


class Launch(NamedTuple):
    """A command that starts an interpreter; Python's own arguments are appended to it."""

    command: list[str]
    environment: dict[str, str]
    packages: list[str]
    """Folders of site-packages; the interpreter starts without them."""
    scratch: str
    depth: int
    """How many process namespaces below the command the interpreter runs; 0 without isolation."""
    keep: tuple[int, ...]
    """Descriptors for the command, to be closed once it has started."""
    folder: tempfile.TemporaryDirectory[str] | None = None
    """The scratch folder on disk, where there is no isolation."""


class _Interpreter(NamedTuple):
    """The Python that runs this, without its virtual environment; real paths."""

    executable: str
    libraries: list[str]
    packages: list[str]


def _interpreter() -> _Interpreter:
    base = os.path.realpath(sys.base_exec_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = next(
        path for path in (f"{base}/bin/{version}", sys.executable) if os.path.exists(path))
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    packages = [os.path.realpath(path) for path in folders if path in sys.path]
    roots = {base, os.path.realpath(sys.base_prefix)}
    libraries = [f"{root}/{name}" for root in sorted(roots) for name in ("lib", "lib64")]
    return _Interpreter(os.path.realpath(executable), libraries, packages)


def bubblewrap() -> str:
    """Path of ``bwrap``.

    Raises
    ------
    SandboxUnavailable: it is not installed, or this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"code can only be isolated on Linux, not on {sys.platform}")
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable(
            f"bubblewrap (bwrap) is not installed, so code cannot be isolated; {INSTALL}")
    return os.path.realpath(found)


def _shown(paths: Sequence[str], there: Sequence[str] = ()) -> list[str]:
    """Arguments that show host paths read-only at the same place, where they exist.

    Folders of ``there`` need not be made. Missing parents are made first: bubblewrap's own
    are closed to all other users.
    """
    arguments: list[str] = []
    seen: list[str] = []
    made = {"/", *there}
    for path in sorted(set(paths)):
        inside = any(path == top or path.startswith(f"{top}/") for top in seen)
        if inside or not os.path.exists(path):
            continue
        for parent in reversed(Path(path).parents):
            if str(parent) not in made:
                arguments += ["--dir", str(parent)]
                made.add(str(parent))
        kind = "--dev-bind" if path in _DEVICES else "--ro-bind"
        arguments += [kind, path, path]
        seen.append(path)
    return arguments


def _system(folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths below /usr to show, and arguments for the links to them in the root folder."""
    paths = [f"/usr/{name}" for name in folders]
    links: list[str] = []
    for name in folders:
        if os.path.islink(f"/{name}"):
            links += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        else:
            paths.append(f"/{name}")
    return paths, links


def _as_nobody(bwrap: str, python: _Interpreter) -> list[str]:
    """What root puts before the command: give up root, yet keep sight of the interpreter.

    Root is exempt from limits on processes, in any namespace. Another user may not reach an
    interpreter below /root, so root first shows it, and what bubblewrap needs, in a view where all
    folders on the way are open. The view has a process namespace, since a process of root's without
    capabilities could not end one of nobody's when it dies.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailable("setpriv is not installed, so root cannot isolate code; "
                                 "sudo apt-get install util-linux")
    setpriv = os.path.realpath(setpriv)
    paths, links = _system([*_LIBRARIES, "bin", "sbin"])
    paths += ["/usr", bwrap, setpriv, python.executable, *python.libraries, *python.packages,
              *_SHARED, *_DEVICES]
    return [
        bwrap, *links, *_shown(paths), "--proc", "/proc", "--dir", SCRATCH, "--unshare-pid",
        "--die-with-parent", "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add",
        "CAP_SETGID", "--", setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups",
        "--inh-caps=-all", "--no-new-privs", "--",
    ]


def _isolated(limits: Limits) -> Launch:
    bwrap, python = bubblewrap(), _interpreter()
    try:
        program = filter_program()
    except (OSError, RuntimeError) as failure:
        raise SandboxUnavailable(
            f"libseccomp cannot filter system calls: {failure}; {INSTALL}") from None
    rules = os.memfd_create("seccomp")
    os.write(rules, program)
    os.lseek(rules, 0, os.SEEK_SET)
    paths, links = _system(_LIBRARIES)
    paths += ["/usr/local/lib", python.executable, *python.libraries, *python.packages, *_SHARED,
              *_DEVICES]
    command = [
        bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--uid", str(_NOBODY), "--gid", str(_NOBODY), "--hostname", "sandbox",
        "--seccomp", str(rules), *links, "--perms", "0700", "--size", str(limits.scratch_bytes),
        "--tmpfs", SCRATCH, *_shown(paths, [SCRATCH]), "--symlink", SCRATCH, "/dev/shm",
        "--chdir", SCRATCH, "--remount-ro", "/", "--",
    ]
    root = os.geteuid() == 0
    if root:
        command = [*_as_nobody(bwrap, python), *command]
    return Launch([*command, python.executable], _environment(SCRATCH), python.packages,
                  SCRATCH, 1 + root, (rules,))


def _environment(scratch: str) -> dict[str, str]:
    return {**_ENVIRONMENT, "HOME": scratch, "TMPDIR": scratch}


def prepare(isolation: Isolation, limits: Limits) -> Launch:
    """How to start an interpreter for one session.

    Raises
    ------
    ParameterError: an unknown ``isolation``.
    SandboxUnavailable: what isolates is not installed.
    """
    if isolation not in ISOLATIONS:
        raise ParameterError("isolation", isolation, f"must be one of {', '.join(ISOLATIONS)}")
    if isolation != "none":
        return _isolated(limits)
    folder = tempfile.TemporaryDirectory(prefix="nmsat-scratch-", ignore_cleanup_errors=True)
    python = _interpreter()
    return Launch([python.executable], _environment(folder.name), python.packages, folder.name,
                  0, (), folder)
