"""The process that model-written programs are forked from, and the codec both sides share. Standard library only.

`sandbox.py` starts this file with an empty environment, an empty folder and one socket as standard input. It gives up
root, imports the usual modules once, and then forks one child per program. It never sees a program or its result: each
child talks over a socket of its own, so nothing of one program is left in memory for the next.

In the child: a session of its own, rlimits, landlock (reads only what Python needs, writes nothing) and a seccomp
allow-list (no process, no file, no network, no signal to others); only then does it say READY and is given the program.
There is no scratch directory. The hash seed and `random`'s seed are fixed: a program gets the same verdict every time.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, cast

READY = b"R"
HEADER = struct.Struct("!I")  # length of the JSON that follows, bytes
FORK = struct.Struct("!II")  # address space beyond the interpreter's in MiB, CPU seconds
STATUS = struct.Struct("!i")  # what waitpid said
SENT = ("ok", "syntax_error", "runtime_error", "memory", "output_limit", "policy")  # the kinds a child may report

DEPTH = 64  # of nested containers
INTEGER_BITS = 14_284  # the longest integers that str() is certain to accept (4300 digits)
HASHED = 10_000  # elements of one set or dict: colliding hashes cost their square

PRELOAD = """
array asyncio bisect cmath collections collections.abc concurrent.futures copy csv dataclasses datetime
decimal enum fractions functools hashlib heapq io itertools json math numbers operator pprint queue random re secrets
statistics string textwrap threading time types typing unicodedata uuid
""".split()  # noqa: SIM905

MACHINE = os.uname().machine
# name:x86_64:aarch64. What an interpreter needs to compute, read its library and run threads, and nothing else.
SYSCALLS = """read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 lseek:8:62 close:3:57
close_range:436:436 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 stat:4:- lstat:6:- fstat:5:80
newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78
getdents64:217:61 getcwd:79:17 statfs:137:43 fstatfs:138:44 openat:257:56 poll:7:- ppoll:271:73 select:23:-
pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22
epoll_pwait2:441:441 eventfd2:290:19 mmap:9:222 mprotect:10:226 munmap:11:215 brk:12:214 mremap:25:216 madvise:28:233
membarrier:324:283 futex:202:98 set_robust_list:273:99 set_tid_address:218:96 rseq:334:293 arch_prctl:158:-
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137
rt_sigsuspend:130:133 sigaltstack:131:132 restart_syscall:219:128 pause:34:- alarm:37:- getitimer:36:102
setitimer:38:103 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114
gettimeofday:96:169 time:201:- times:100:153 getrusage:98:165 getpid:39:172 getppid:110:173 gettid:186:178
getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158
getpgrp:111:- getpgid:121:155 getsid:124:156 uname:63:160 sysinfo:99:179 getcpu:309:168 sched_yield:24:124
sched_getaffinity:204:123 sched_get_priority_max:146:125 sched_get_priority_min:147:126 getrandom:318:278 exit:60:93
exit_group:231:94 recvfrom:45:207 sendto:44:206 shutdown:48:210 getsockname:51:204 getpeername:52:205
getsockopt:55:209 clone:56:220 socketpair:53:199 fcntl:72:25 ioctl:16:29 prlimit64:302:261 tgkill:234:131
prctl:157:167"""
OURSELVES = 0xB0B0B0B0  # stands for the child's own pid in the prepared filter
ALL = 0xFFFFFFFF
# name: (argument, mask, allowed values of argument & mask), each of which must hold.
CONDITIONS: dict[str, tuple[tuple[int, int, tuple[int, ...]], ...]] = {
    "clone": ((0, 0x7E030000, (0x10000,)),),  # threads, no namespaces
    "socketpair": ((0, ALL, (socket.AF_UNIX,)), (1, 0xF, (socket.SOCK_STREAM,))),  # datagrams could be addressed
    "fcntl": ((1, ALL, (0, 1, 2, 3, 4, 1030)),),  # F_DUPFD, F_*FD, F_*FL: F_SETOWN would signal others
    "ioctl": ((1, ALL, (0x5401, 0x5421, 0x5450, 0x5451)),),  # TCGETS, FIONBIO, FIONCLEX, FIOCLEX
    "prlimit64": ((0, ALL, (0,)),),
    "tgkill": ((0, ALL, (OURSELVES,)),),
    "prctl": ((0, ALL, (15, 16)),),  # thread names
}
READ_ONLY = ((2, 0o20000003 | os.O_CREAT | os.O_TRUNC, (0,)),)  # openat where landlock does not judge; 0o2... is TMPFILE


class RefusedValue(ValueError):
    """A value that is not made of exact builtin types, or too deep or too long to compare."""


class OutputLimit(ValueError):
    """A value larger than the caller allows."""


def encode(value: Any, room: list[int], depth: int = 0) -> object:
    """`value` as JSON that `decode` turns back into equal values of the same types. `room` holds what may still be
    written, roughly in bytes. Raises RefusedValue and OutputLimit."""
    kind = cast("type[object]", type(value))
    room[0] -= len(value) if kind is str else 2
    if room[0] < 0:
        raise OutputLimit("the values are too large")
    if depth > DEPTH:
        raise RefusedValue(f"a value nested deeper than {DEPTH}")
    if value is None or kind is bool or kind is float:
        return value
    if kind is str:
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise RefusedValue("a lone surrogate, which no file could hold")
        return value
    if kind is int:
        if value.bit_length() > INTEGER_BITS:
            raise RefusedValue("an integer of more than 4300 digits")
        return value if value.bit_length() < 53 else {"int": hex(value)}
    if (kind is dict or kind is set or kind is frozenset) and len(value) > HASHED:
        raise OutputLimit(f"a set or dict of more than {HASHED} elements")
    if kind is dict:
        return {"dict": [[encode(key, room, depth + 1), encode(value[key], room, depth + 1)] for key in value]}
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        items = [encode(item, room, depth + 1) for item in value]
        return items if kind is list else {kind.__name__: items}
    raise RefusedValue(f"a value of type {kind.__name__}")


def decode(value: Any, depth: int = 0) -> object:
    """What `encode` wrote. `value` is JSON from hostile hands: the rest is a ValueError, TypeError or LookupError."""
    kind = cast("type[object]", type(value))
    if depth > DEPTH:
        raise ValueError("nested too deeply")
    if kind is str:
        value.encode()
    if kind is list:
        return [decode(item, depth + 1) for item in value]
    if kind is not dict:
        return value
    ((tag, items),) = value.items()
    if tag == "int":
        number = int(items, 16)
        if number.bit_length() > INTEGER_BITS:
            raise ValueError("too many digits")
        return number
    if tag == "tuple":
        return tuple(decode(item, depth + 1) for item in items)
    if len(items) > HASHED:
        raise ValueError("too many elements")
    if tag == "dict":
        return {decode(key, depth + 1): decode(item, depth + 1) for key, item in items}
    return {"set": set[object], "frozenset": frozenset[object]}[tag](decode(item, depth + 1) for item in items)


def say(channel: socket.socket, data: bytes) -> None:
    """Send `data` behind its length."""
    channel.sendall(HEADER.pack(len(data)) + data)


def receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises EOFError when the other side closes first."""
    data = bytearray()
    while len(data) < size:
        if not (more := channel.recv(min(size - len(data), 1 << 16))):
            raise EOFError("closed")
        data += more
    return bytes(data)


def seccomp_filter(landlock: bool) -> bytes:
    """The allow-list as a BPF program in which OURSELVES is still to be replaced; empty for an unknown machine."""
    column, arch = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}.get(MACHINE, (0, 0))
    if not column or sys.platform != "linux":
        return b""

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    load, mask, equal, give = 0x20, 0x54, 0x15, 0x06
    allow, refuse, missing, kill = step(give, 0x7FFF0000), step(give, 0x50001), step(give, 0x50026), step(give, 1 << 31)
    numbers = {row[0]: int(row[column]) for row in (name.split(":") for name in SYSCALLS.split()) if row[column] != "-"}
    conditions = CONDITIONS if landlock else CONDITIONS | {"openat": READ_ONLY}
    program = step(load, 4) + step(equal, arch, 1, 0) + kill + step(load, 0)
    for name, number in numbers.items():
        block = b""
        for argument, bits, values in conditions.get(name, ()):
            block += step(load, 16 + 8 * argument) + step(mask, bits)
            block += b"".join(step(equal, value, len(values) - i) for i, value in enumerate(values)) + refuse
        program += step(equal, number, 0, len(block) // 8 + 1) + block + allow
    return program + step(equal, 435, 0, 1) + missing + refuse  # clone3 hides its flags: "missing" selects clone


LIBC: Any = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: int | bytes | None) -> int:
    """A system call by number; -1 on failure."""
    return LIBC.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)))


def prctl(option: int, value: int = 0, pointer: bytes | None = None) -> int:
    """Linux's prctl; -1 on failure."""
    return LIBC.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0))


def landlock_rules(library: str) -> int | None:
    """A ruleset that allows reading `library` and the system's libraries, or None where the kernel has no landlock."""
    if sys.platform != "linux" or (abi := system_call(444, None, 0, 1)) < 1:
        return None
    handled = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1  # every right this kernel knows
    attributes = struct.pack("=QQQ", handled, 3, 3)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = system_call(444, attributes, len(attributes), 0)
    write, read, listing = 2, 4, 8
    reading = dict.fromkeys((library, "/usr/lib", "/lib", "/usr/lib64", "/lib64"), read | listing)
    reading |= {"/usr/share/zoneinfo": read | listing, "/etc/ld.so.cache": read, "/dev/urandom": read}
    for path, rights in (reading | {"/dev/null": read | write}).items():
        with suppress(FileNotFoundError):
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if system_call(445, rules, 1, struct.pack("=Qi", rights, folder), 0):
                raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
            os.close(folder)
    return rules


def run(code: str, inputs: list[Any], room: int) -> tuple[str, object]:
    """What the program makes of each input: ("ok", encoded values), or another of SENT and one line of detail."""
    solution = ModuleType("solution")  # dataclasses and pickle look their module up by name
    sys.modules["solution"], names = solution, solution.__dict__
    function: Callable[..., object] | None = None

    def evaluate(x: object) -> object:
        names["x"] = x
        return eval(expression, names)

    try:
        try:
            expression = compile(code.strip(), "<program>", "eval", dont_inherit=True)
        except SyntaxError:
            program = compile(code, "<program>", "exec", dont_inherit=True)
        else:
            function, program = evaluate, compile("", "<program>", "exec")
    except MemoryError:
        return "memory", "out of memory while compiling"
    except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
        return "syntax_error", describe(error)
    try:
        with suppress(SystemExit):  # after the definitions, as scripts do
            exec(program, names)
        function = function or names.get("f")
        if not callable(function):
            return "runtime_error", "the program defines no function f"
        left = [room]
        return "ok", [encode(function(*arguments), left) for arguments in inputs]
    except MemoryError:
        return "memory", "out of memory"
    except OutputLimit as error:
        return "output_limit", str(error)
    except RefusedValue as error:
        return "runtime_error", f"f returned {error}"
    except PermissionError as error:
        return "policy", describe(error)
    except BaseException as error:
        return "runtime_error", describe(error)


def describe(error: BaseException) -> str:
    """Class and message of an exception whose `__str__` may be hostile too."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an exception that cannot be shown"


def child(channel: socket.socket, supervisor: int, memory: int, seconds: int, rules: int | None, bpf: bytes) -> None:
    """Confine this process, say so, run one program and send what came of it. `memory` is in bytes of address space."""
    os.setsid()
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":
        prctl(1, signal.SIGKILL)  # die with the zygote
    if os.getppid() != supervisor:
        return
    if rules is not None:
        if system_call(446, rules, 0):
            return
        os.close(rules)
    random.seed(0)
    if bpf:
        bpf = bpf.replace(struct.pack("=I", OURSELVES), struct.pack("=I", os.getpid()))
        instructions = ctypes.create_string_buffer(bpf, len(bpf))
        program = struct.pack("HP", len(bpf) // 8, ctypes.addressof(instructions))
        if prctl(22, 2, program):
            return
    channel.sendall(READY)
    request = json.loads(receive(channel, *HEADER.unpack(receive(channel, HEADER.size))))
    limit = request["output_bytes"]
    kind, result = run(request["code"], [decode(i) for i in request["inputs"]], limit)
    payload = json.dumps([kind, result]).encode()
    if len(payload) > limit:
        payload = json.dumps(["output_limit", "the values are too large"]).encode()
    say(channel, payload)


def confine() -> tuple[str, int | None, bytes]:
    """Give up root and set what holds for all children. Returns the level, the landlock rules and the seccomp filter.
    Raises OSError where root cannot be given up: model code never runs as root."""
    library = os.path.dirname(os.path.dirname(os.__file__))
    folder = os.open(library, os.O_RDONLY)
    rules = landlock_rules(library)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    if sys.platform == "linux":
        prctl(38, 1)  # no new privileges
        prctl(4, 0)  # no core, and nobody looks into this process
    bpf = seccomp_filter(rules is not None) if sys.platform == "linux" and prctl(21) >= 0 else b""
    if os.access(library, os.R_OK | os.X_OK):
        os.close(folder)
    else:  # the interpreter lies in the home of the user given up: reach it by descriptor
        alias = f"/proc/self/fd/{folder}"
        sys.path[:] = [path.replace(library, alias) for path in sys.path]
        for module in list(sys.modules.values()):
            if hasattr(module, "__path__"):
                module.__path__ = [path.replace(library, alias) for path in module.__path__]
    level = "+".join(name for name, there in (("landlock", rules is not None), ("seccomp", bpf)) if there)
    return level or "rlimits", rules, bpf


def main() -> None:
    """Serve the socket at descriptor 0 until it closes: one program at a time, killed when the other side says so."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.clear()
    sys.argv[:] = ["solution"]
    try:
        level, rules, bpf = confine()
    except OSError as error:
        say(control, f"!{error}".encode())
        return
    for name in PRELOAD:
        importlib.import_module(name)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # what the site module would give
    base = 0
    with suppress(OSError), open("/proc/self/statm") as sizes:
        base = int(sizes.read().split()[0]) * resource.getpagesize()
    gc.collect()
    gc.freeze()
    say(control, level.encode())
    supervisor = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, FORK.size, 1)
        if not message:
            return
        memory, seconds = FORK.unpack(message)
        channel = socket.socket(fileno=descriptors[0])
        if not (pid := os.fork()):
            try:
                control.close()
                child(channel, supervisor, base and base + (memory << 20), seconds, rules, bpf)
            finally:
                os._exit(0)
        channel.close()
        go_on = control.recv(1)
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not go_on:
            return
        control.sendall(STATUS.pack(status))


if __name__ == "__main__":
    main()
