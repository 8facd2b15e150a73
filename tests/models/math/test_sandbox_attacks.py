"""Code that wants out: to the network, files, the parent, its channel. It stays inside.

Where an attack could fail for other reasons than the sandbox, the same code is seen to succeed
without one.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_targets import Target, contained, marked, needs_bwrap, target

from models.math.sandbox import Limits, Sandbox

pytestmark = needs_bwrap

ROOT = Path(__file__).parents[3]


@pytest.fixture
def attacked() -> Iterator[Target]:
    yield from contained(target())


@pytest.fixture(scope="module")
def exposed() -> Iterator[Sandbox]:
    """A session without isolation, in which an attack must succeed."""
    with Sandbox(Limits(cell_seconds=60), "none") as session:
        yield session


# --- network -----------------------------------------------------------------------------------

NO_FAMILY = "OSError: [Errno 97] Address family not supported by protocol"


def test_no_connection_to_the_parent(attacked: Target, exposed: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).close()"
        assert exposed.run(code).status == "ok"
        server.accept()[0].close()
        outcome = attacked.run(code)
        assert outcome.status == "error"
        assert outcome.output.endswith(NO_FAMILY)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_connection_to_a_local_socket_of_the_parent(
    attacked: Target, exposed: Sandbox, tmp_path: Path,
) -> None:
    for address in (f"\0nmsat-{os.getpid()}", str(tmp_path / "socket")):
        code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen()
            assert exposed.run(code).status == "ok"
            assert attacked.run(code).output.splitlines()[-1].startswith(
                ("ConnectionRefusedError", "FileNotFoundError")), address


def test_no_names_are_looked_up(attacked: Target, exposed: Sandbox) -> None:
    code = "import socket\nsocket.getaddrinfo('localhost', 80)[0][4][1]"
    assert exposed.run(code).output == "80"
    outcome = attacked.run(code)
    assert (outcome.status, "gaierror" in outcome.output) == ("error", True)


def test_no_socket_but_local_ones(attacked: Target) -> None:
    for family in ("AF_INET", "AF_INET6", "AF_VSOCK", "AF_NETLINK", "AF_PACKET"):
        outcome = attacked.run(f"import socket\nsocket.socket(socket.{family}, 2)")
        assert outcome.output.endswith(NO_FAMILY), family
    assert attacked.run("len(socket.socketpair())").output == "2"


# --- files -------------------------------------------------------------------------------------

READS = {
    "open": "open(path).read()",
    "io": "__import__('io').FileIO(path).read().decode()",
    "posix": "__import__('posix').read(__import__('posix').open(path, 0), 99).decode()",
    "importlib": "__import__('importlib').import_module('pathlib').Path(path).read_text()",
    "subclasses": "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "
                  "'FileLoader'][0]('x', path).get_data(path).decode()",
    "libc": "(lambda c, b: (c.read(c.open(path.encode(), 0), b, 99), b.value.decode())[1])("
            "__import__('ctypes').CDLL(None), __import__('ctypes').create_string_buffer(99))",
    "interpreter": "__import__('subprocess').run([__import__('sys').executable, '-c', "
                   "f'print(open({path!r}).read())'], capture_output=True, text=True).stdout",
    "symlink": "(__import__('os').symlink(path, 'l' + str(id(path))), "
               "open('l' + str(id(path))).read())[1]",
    "dots": "open('/tmp/../../../..' + path).read()",
    "descriptor": "(lambda os: os.read(os.open(path[1:], 0, dir_fd=os.open('/', 0)), 99).decode())("
                  "__import__('os'))",
    "builtins": "__builtins__.open(path).read()",
    "exec": "eval(compile('open(path).read()', '', 'eval'))",
}


def test_no_file_of_the_parent_is_read(
    attacked: Target, exposed: Sandbox, tmp_path: Path,
) -> None:
    secret, text = tmp_path / "secret", secrets.token_hex(8)
    secret.write_text(text)
    secret.chmod(0o666)
    for how, attack in READS.items():
        code = f"path = {str(secret)!r}\n{attack}"
        assert text in exposed.run(code).output, f"{how} is no attack"
        outcome = attacked.run(code)
        assert text not in outcome.output, how
        assert outcome.status == "error" or how in ("libc", "interpreter"), how


def test_nothing_else_is_there_to_be_read(attacked: Target) -> None:
    interpreter = os.path.realpath(sys.executable)
    allowed = ("/dev/", "/usr/lib", "/usr/local/lib", "/etc/ld.so.cache", "/etc/alternatives/",
               "/usr/share/zoneinfo/", os.path.dirname(os.path.dirname(os.__file__)),
               interpreter, *(p for p in sys.path if p.endswith("-packages")))
    outcome = attacked.run(
        f"import os\nallowed, found = {allowed!r}, []\n"
        "for base, folders, names in os.walk('/'):\n    top = base.rstrip('/')\n"
        "    folders[:] = [n for n in folders if not f'{top}/{n}/'.startswith(allowed)]\n"
        "    found += [f'{top}/{n}' for n in names if not f'{top}/{n}'.startswith(allowed)]\nfound")
    assert outcome.output == "[]"
    assert attacked.run(f"os.path.exists({interpreter!r})").output == "True"
    paths = ["/etc/passwd", "/etc/shadow", "/etc/hosts", "/proc", "/sys", "/usr/bin/env", "/bin/sh",
             str(ROOT / "README.md"), str(ROOT / "models"), str(ROOT / ".git"),
             os.path.expanduser("~/.bashrc"), os.path.expanduser("~/.ssh"), "/var", "/run"]
    assert attacked.run(f"[p for p in {paths!r} if os.path.exists(p)]").output == "[]"


def test_no_file_outside_scratch_is_written(attacked: Target, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    name = f"nmsat-{os.getpid()}"
    library = os.path.dirname(os.__file__)
    folders = [str(tmp_path), "/", "/usr/lib", "/usr/local/lib", "/etc", "/dev", "/lib", "/var/tmp",
               os.path.expanduser("~"), str(ROOT), library, os.path.dirname(pytest.__file__)]
    # Where a checkout lies in /tmp, folders of that name are in the scratch folder too.
    scratch = [folder for folder in folders if Path(folder).is_relative_to("/tmp")]
    outcome = attacked.run(
        f"import os\ndone = []\nfor folder in {folders!r}:\n    for make in (lambda p: open(p, 'w')"
        f", os.mkdir, lambda p: os.symlink('/', p), lambda p: os.mkfifo(p)):\n        try:\n"
        f"            make(folder + '/{name}')\n        except OSError: continue\n"
        f"        done.append(folder)\n[folder for folder in done if folder not in {scratch!r}]")
    assert (outcome.status, outcome.output) == ("ok", "[]")
    assert not any(os.path.lexists(f"{folder}/{name}") for folder in folders)
    refused = attacked.run(f"os.chmod({os.__file__!r}, 0o777)")
    assert refused.output.endswith(f"Read-only file system: {os.__file__!r}")
    assert attacked.run(f"open('/tmp/{name}', 'w').write('x')").output == "1"
    assert not os.path.lexists(f"/tmp/{name}"), "scratch is not the machine's folder"


def test_symlinks_lead_nowhere(attacked: Target, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    outcome = attacked.run(
        f"import os\nos.symlink({str(tmp_path)!r}, 'out')\nos.symlink('../../..', 'up')\n"
        f"found = []\nfor path in ('out/victim', 'up{victim}', '/tmp/up/tmp/out/victim'):\n"
        f"    try: open(path, 'r+').write('broken')\n    except OSError: continue\n"
        f"    found.append(path)\ntry: os.link({str(victim)!r}, 'hard')\n"
        f"except OSError as error: found.append(type(error).__name__)\nfound")
    assert outcome.output == "['FileNotFoundError']"
    assert victim.read_text() == "whole"


# --- the parent --------------------------------------------------------------------------------

def test_signals_do_not_reach_the_parent(attacked: Target) -> None:
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        code = (
            "import os, signal\nassert os.getpid() < 10, 'in no process namespace'\nsent = []\n"
            f"for pid in [{os.getpid()}, {os.getppid()}, {victim.pid}, os.getppid(), -1, "
            f"-{victim.pid}, *range(100, 40000)]:\n    for number in (15, 2, 1, 10, 9):\n"
            "        try: os.kill(pid, number)\n        except OSError: continue\n"
            "        sent.append(pid)\nset(sent), os.getppid()")
        outcome = attacked.run(code)
        assert outcome.status == "ok"
        assert outcome.output in ("({1}, 1)", "({1, -1}, 1)"), "only the init of its own namespace"
        assert victim.poll() is None
        assert received == []
    finally:
        victim.kill()
        victim.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_process_has_no_privileges(attacked: Target) -> None:
    """As the kernel tells the parent; inside, the process is user and group 65534."""
    assert attacked.run("import os\nos.getresuid(), os.getresgid(), os.getgroups()").output in (
        "((65534, 65534, 65534), (65534, 65534, 65534), [])",
        "((65534, 65534, 65534), (65534, 65534, 65534), [65534])")
    command = os.path.realpath(sys.executable).encode()
    workers = [pid for pid in marked(attacked.mark)
               if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(command)]
    assert len(workers) == 1
    fields = dict(line.split(":\t", 1) for line in
                  Path(f"/proc/{workers[0]}/status").read_text().splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "0" not in fields["Uid"].split(), "limits on processes do not hold for root"


def test_no_descriptor_of_the_parent_is_inherited(attacked: Target, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with open(tmp_path / "secret") as file:
        os.set_inheritable(file.fileno(), True)
        with Sandbox() as late:
            for session in (attacked.session, late):
                outcome = session.run(
                    "import os\nopen_ = []\nfor n in range(1 << 16):\n    try: os.fstat(n)\n"
                    "    except OSError: continue\n    open_.append(n)\nopen_")
                assert outcome.output == "[0, 1, 2, 3, 4]", "streams and the channel"


def test_the_environment_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMSAT_API_KEY", "a-secret")
    code = "import os\n'a-secret' in str(os.environ)"
    for isolation in ("auto", "none"):
        for under in contained(target(isolation)):
            assert under.run(code).output == "False"
            assert under.run("sorted(os.environ)[:3]").output == (
                "['HOME', 'LANG', 'MKL_NUM_THREADS']")
            for pid in marked(under.mark):
                assert b"a-secret" not in Path(f"/proc/{pid}/environ").read_bytes()


PROGRAMS = (
    "__import__('os').system('touch /tmp/x') == 0",
    "__import__('ctypes').CDLL(None).system(b'touch /tmp/x') == 0",
    "__import__('subprocess').run(['sh', '-c', 'id'])",
    "__import__('subprocess').run('id', shell=True)",
    "__import__('os').execv('/bin/sh', ['sh'])",
)


def test_no_program_can_be_started(attacked: Target) -> None:
    for code in PROGRAMS:
        output = attacked.run(code).output
        assert output == "False" or "FileNotFoundError: [Errno 2]" in output, code
    assert attacked.run("import os\nos.path.exists('/tmp/x')").output == "False"


def test_our_own_modules_are_not_importable(attacked: Target) -> None:
    for name in ("models", "nmsat", "algorithms"):
        outcome = attacked.run(f"import importlib\nimportlib.import_module('{name}.x')")
        assert outcome.output.endswith(f"ModuleNotFoundError: No module named {name!r}")


# --- the channel -------------------------------------------------------------------------------

FORGED = {
    "another id": '{"id": "x", "status": "ok", "text": "forged"}',
    "no JSON": "gibberish",
    "not the form": '{"id": "x", "status": "fine", "text": 1, "more": []}',
    "deep": "[" * 20_000,
}


@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED)
def test_a_forged_reply_is_not_believed(attacked: Target, text: str) -> None:
    attacked.run("kept = 1")
    outcome = attacked.run(f"import os\ndata = {text!r}.encode()\n"
                           "_ = os.write(4, len(data).to_bytes(4) + data)")
    assert outcome.status == "killed"
    assert outcome.output.startswith("Killed: the process sent a ")
    assert attacked.run("kept").output == "1"


def test_a_long_reply_is_not_read(attacked: Target) -> None:
    outcome = attacked.run("import os\nos.write(4, b'\\xff' * 4)\nwhile True: os.write(4, b'x')")
    assert (outcome.status, outcome.output) == (
        "killed", "Killed: the process sent a reply that is too long")


def test_an_unasked_reply_is_not_taken_for_the_next(attacked: Target) -> None:
    attacked.run("import os, threading\nkept = 1")
    attacked.run("threading.Timer(0.05, lambda: os.write(4, b'\\0\\0\\0\\2{}')).start()")
    outcome = attacked.run("import time\ntime.sleep(0.2)\nkept")
    assert outcome.status == "killed"
    assert attacked.run("kept").output == "1"


@pytest.mark.parametrize("code", ["os.closerange(0, 99)", "os.close(4)", "os.dup2(0, 4)",
                                  "os._exit(0)", "os.abort()", "os.kill(os.getpid(), 9)"])
def test_a_cut_channel_has_a_verdict(attacked: Target, code: str) -> None:
    attacked.run("import os\nkept = 1")
    outcome = attacked.run(code)
    assert (outcome.status, outcome.output[:8]) == ("killed", "Killed: ")
    assert attacked.run("kept").output == "1"


def test_a_child_that_holds_the_channel_does_not_hide_the_end(attacked: Target) -> None:
    outcome = attacked.run("import os, time\nif os.fork() == 0: time.sleep(600)\nos._exit(5)")
    assert (outcome.status, outcome.output) == (
        "killed", "Killed: the process ended with exit code 5")
    assert outcome.seconds < 10


def test_forked_children_do_not_repeat_the_reply(attacked: Target) -> None:
    code = ("import os\npid = os.fork()\nif pid: _ = os.waitpid(pid, 0)\n"
            "print('mine' if pid else 'its')")
    for number in range(3):
        assert attacked.run(code).output == "its\nmine"
        assert attacked.run(f"{number}").output == str(number)


def test_replaced_builtins_do_no_harm(attacked: Target) -> None:
    broken = attacked.run(
        "import builtins, json, os, sys\nos.write = json.dumps = sys.exit = None\n"
        "for name in ('len', 'int', 'repr', 'print', 'isinstance', 'BaseException'):\n"
        "    setattr(builtins, name, None)")
    assert (broken.status, broken.output[:8]) == ("killed", "Killed: ")
