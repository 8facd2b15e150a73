"""System calls that sandboxed code has no use for, as a filter program for bubblewrap.

Namespaces leave three gaps. Sockets of some families (AF_VSOCK, to the hypervisor) are not
separated by network namespaces. Memory of memfd_create, System V and POSIX queues belongs to no
process, so no limit of a process counts it. And seldom used calls are where kernels break.
"""

from __future__ import annotations

import errno
import socket
import tempfile
from functools import cache

__all__ = ["filter_program"]

_DENIED = (
    # namespaces and mounts, which hand out capabilities inside them
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree",
    "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
    # memory that belongs to no process
    "memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "semget", "mq_open",
    # other processes' memory and descriptors
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
    # large or seldom used parts of the kernel
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "add_key", "request_key", "keyctl", "syslog", "acct", "quotactl",
    "quotactl_fd", "kexec_load", "init_module", "finit_module", "delete_module", "swapon",
    "swapoff", "reboot", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
    "name_to_handle_at", "open_by_handle_at", "fanotify_init", "personality", "vhangup",
)
_NEW_NAMESPACES = (
    0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000,
)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of ``linux/sched.h``."""


@cache
def filter_program() -> bytes:
    """The filter for this machine's architecture, in the kernel's form (``struct sock_filter``).

    Calls of another architecture's table end the process. Needs libseccomp.

    Raises
    ------
    RuntimeError, OSError: libseccomp is not installed, or does not know a call of the list.
    """
    import pyseccomp  # looks for libseccomp when imported

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in _DENIED:
        rules.add_rule(refuse, name)
    for flag in _NEW_NAMESPACES:
        rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    # Its flags lie behind a pointer; libraries fall back to clone.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(pyseccomp.ERRNO(errno.EAFNOSUPPORT), "socket",
                   pyseccomp.Arg(0, pyseccomp.NE, int(socket.AF_UNIX)))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
