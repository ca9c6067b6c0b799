"""System-call filter of the sandbox, as a seccomp program (classic BPF).

The namespaces of the sandbox already isolate the program. The filter also removes system calls that kernels have been
exploited through, and the creation of processes, so that limits per process apply to the whole program. A refused call
fails with EPERM. All calls that are not listed are allowed.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import NamedTuple

# Numbers on x86_64 and aarch64 (Linux 6.12: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
# None: the architecture does not have the call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes; `clone` with CLONE_THREAD, which creates threads, is allowed below
    "fork": (57, None),
    "vfork": (58, None),
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # networks, including that of the sandbox
    "socket": (41, 198),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # memory that does not count towards the limits of a process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    # large and recent subsystems of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # administration of the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
}


class _Machine(NamedTuple):
    audit: int  # AUDIT_ARCH_* of linux/audit.h
    column: int  # of the numbers in REFUSED
    clone: int
    clone3: int


MACHINES = {
    "x86_64": _Machine(0xC000003E, 0, 56, 435),
    "aarch64": _Machine(0xC00000B7, 1, 220, 435),
}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # numbers of x86_64's second ABI begin here
_CLONE_THREAD = 0x00010000


def filter_for(machine: str = platform.machine()) -> bytes | None:
    """Return the filter in the format of `bwrap --seccomp`. None: the architecture is not supported."""
    if machine not in MACHINES:
        return None
    audit, column, clone, clone3 = MACHINES[machine]
    refuse = _step(_RETURN, _ERRNO | errno.EPERM)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, audit, if_not=0, if_so=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, if_not=1),
        refuse,
    ]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            steps += [_step(_EQUAL, number, if_not=1), refuse]
    # The flags of clone3 are in memory, which a filter cannot read. Without clone3 the C library uses `clone`.
    steps += [_step(_EQUAL, clone3, if_not=1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    steps += [
        _step(_EQUAL, clone, if_not=3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _CLONE_THREAD, if_so=1),
        refuse,
    ]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, *, if_so: int = 0, if_not: int = 0) -> bytes:
    """Encode one instruction. `if_so`, `if_not`: number of instructions to skip if the condition holds or fails."""
    return struct.pack("<HBBI", code, if_so, if_not, value)
