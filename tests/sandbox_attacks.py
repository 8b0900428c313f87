"""Attacks on the box, executed inside it as guest code by escape.py.

Every attack is a function; it returns what it got, or raises. `ALLOWED` in the report means that it
got something. Arguments are chosen so that an attack that is *permitted* still does no harm: it is
answered by another error than the one of a closed door, or it hits a canary made for it.

Nothing here runs without the word of the host that this process is confined, and unless the kernel
confirms it: no_new_privs is set and a seccomp filter is installed.
"""

# Guest code: plain os calls, and CFG comes from outside.
# ruff: noqa: F821, B018, BLE001, PTH101, PTH104, PTH108, PTH110, PTH116, PTH118, PTH120, PTH123, PTH208, PTH211

import ctypes
import errno
import os
import platform
import signal
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CLOSED = {errno.EPERM, errno.EACCES, errno.ENOSYS}
REPORT = {}
ATTACKS = {}
X86 = platform.machine() == "x86_64"

assert CFG["confined"], "attacks run in a confined session only"
assert libc.prctl(39, 0, 0, 0, 0) == 1, "no_new_privs is not set"
assert libc.prctl(21, 0, 0, 0, 0) == 2, "no seccomp filter is installed"


def family(name):
    CFG["family"] = name


def attack(function):
    ATTACKS[function.__name__] = (CFG["family"], function)
    return function


def syscall(number, *args):
    """Succeeds when the kernel let the call through its door, whatever it then thought of it."""
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args]) < 0:
        code = ctypes.get_errno()
        if code in CLOSED:
            raise PermissionError(code, os.strerror(code))
        return f"open door: {os.strerror(code)}"
    return "succeeded"


def read(path):
    with open(path, "rb") as file:
        return file.read(64) or "opened"


family("files")


@attack
def read_shadow():
    os.close(os.open("/etc/shadow", os.O_RDONLY))
    return "opened"


@attack
def read_passwd():
    return read("/etc/passwd")


@attack
def read_canary():
    return read(CFG["canary"])


@attack
def read_canary_through_symlink():
    os.symlink(CFG["canary"], "link")
    return read("link")


@attack
def read_canary_through_parent_folders():
    return read(os.path.relpath(CFG["canary"]))


@attack
def read_canary_through_dir_fd():
    folder = os.open("/", os.O_PATH)
    return os.open(CFG["canary"][1:], os.O_RDONLY, dir_fd=folder)


@attack
def hard_link_canary():
    os.link(CFG["canary"], "hard")
    return read("hard")


@attack
def rename_canary():
    os.rename(CFG["canary"], "renamed")
    return "moved"


@attack
def write_canary():
    with open(CFG["canary"], "a") as file:
        file.write("x")
    return "written"


@attack
def unlink_canary():
    os.unlink(CFG["canary"])
    return "removed"


family("chmod, truncate, xattr")


@attack
def truncate_canary():
    os.truncate(CFG["canary"], 0)
    return "truncated"


@attack
def truncate_readable_file():
    os.close(os.open(CFG["readable"], os.O_RDONLY | os.O_TRUNC))
    return "opened with O_TRUNC"


@attack
def truncate_with_access_mode_3():
    os.close(os.open(CFG["readable"], 3 | os.O_TRUNC))
    return "opened with O_TRUNC"


@attack
def chmod_canary():
    os.chmod(CFG["canary"], 0o777)
    if os.stat(CFG["canary"]).st_mode & 0o777 != 0o777:
        raise PermissionError("only pretended")
    return "changed"


@attack
def chown_canary():
    os.chown(CFG["canary"], -1, 12345)
    if os.stat(CFG["canary"]).st_gid != 12345:
        raise PermissionError("only pretended")
    return "changed"


@attack
def utime_canary():
    os.utime(CFG["canary"], (1, 1))
    if os.stat(CFG["canary"]).st_mtime != 1:
        raise PermissionError("only pretended")
    return "changed"


@attack
def setxattr_canary():
    os.setxattr(CFG["canary"], "user.x", b"1")
    return "changed"


@attack
def set_file_flags():
    file = os.open(CFG["readable"], os.O_RDONLY)
    import fcntl

    fcntl.ioctl(file, 0x40086602, struct.pack("l", 0x40))  # FS_IOC_SETFLAGS, no dump
    return "changed"


@attack
def lease_on_readable_file():
    import fcntl

    fcntl.fcntl(os.open(CFG["readable"], os.O_RDONLY), 1024, 0)
    return "leased"


family("files")


@attack
def list_root():
    return os.listdir("/")


@attack
def list_canary_folder():
    return os.listdir(os.path.dirname(CFG["canary"]))


@attack
def list_home_of_root():
    return os.listdir("/root")


@attack
def write_outside():
    open(os.path.join(os.path.dirname(CFG["canary"]), "pwned"), "w").close()
    return "written"


@attack
def write_shared_memory_folder():
    open(f"/dev/shm/pwned-{os.getpid()}", "w").close()
    return "written"


@attack
def write_into_packages():
    open(os.path.join(os.path.dirname(os.__file__), "pwned.py"), "w").close()
    return "written"


@attack
def write_the_driver():
    open(CFG["driver"], "a").close()
    return "opened for writing"


@attack
def make_device():
    os.mknod("device", 0o20666, os.makedev(1, 3))
    return "made"


@attack
def open_disk():
    return os.open("/dev/vda", os.O_RDONLY)


@attack
def open_kvm():
    return os.open("/dev/kvm", os.O_RDWR)


@attack
def open_terminal():
    return os.open("/dev/tty", os.O_RDWR)


family("other sessions")


@attack
def read_sibling_scratch():
    return os.listdir(CFG["sibling_scratch"])


@attack
def write_sibling_scratch():
    open(os.path.join(CFG["sibling_scratch"], "pwned"), "w").close()
    return "written"


@attack
def context_of_another_sample():
    frame, found = sys._getframe(), []
    while frame := frame.f_back:
        shared = getattr(frame.f_locals.get("shared"), "inputs", [])
        found += [given.fresh()[:20] for given in shared]
    if not found:
        raise PermissionError("none")
    return found


family("files")


@attack
def open_by_handle():
    return syscall(304 if X86 else 265, -1, 0, 0)


@attack
def openat2():
    return syscall(437, -100, 0, 0, 0)


family("environment")


@attack
def secret_in_own_environment():
    found = [name for name in os.environ if "CANARY" in name or "KEY" in name or "TOKEN" in name]
    if not found:
        raise PermissionError("clean")
    return found


family("/proc")


@attack
def environment_of_init():
    return read("/proc/1/environ")


@attack
def environment_of_self():
    return read("/proc/self/environ")


@attack
def environment_of_host():
    return read(f"/proc/{CFG['host_pid']}/environ")


@attack
def environment_of_supervisor():
    return read(f"/proc/{CFG['supervisor_pid']}/environ")


@attack
def memory_of_sibling():
    return read(f"/proc/{CFG['sibling_pid']}/mem")


@attack
def list_processes():
    return os.listdir("/proc")


family("signals")


@attack
def signal_parent():
    os.kill(os.getppid(), 0)
    return "can signal"


@attack
def signal_host():
    os.kill(CFG["host_pid"], 0)
    return "can signal"


@attack
def signal_sibling():
    os.kill(CFG["sibling_pid"], 0)
    return "can signal"


@attack
def signal_canary_process():
    os.kill(CFG["canary_pid"], signal.SIGTERM)
    return "signalled"


@attack
def signal_everyone():
    os.kill(-1, 0)
    return "can signal"


@attack
def signal_own_group():
    os.kill(0, 0)
    return "can signal"


@attack
def signal_thread_of_canary():
    return syscall(200 if X86 else 130, CFG["canary_pid"], 0)


@attack
def queue_signal():
    return syscall(129 if X86 else 138, CFG["canary_pid"], 0, 0)


@attack
def signal_through_async_io():
    import fcntl

    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, CFG["canary_pid"])
    fcntl.fcntl(ours, 10, signal.SIGKILL)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC)
    theirs.send(b"x")
    return "signalled"


@attack
def signal_through_ioctl():
    import fcntl

    ours, _ = socket.socketpair()
    fcntl.ioctl(ours, 0x8901, struct.pack("i", CFG["canary_pid"]))  # FIOSETOWN
    return "set"


@attack
def pidfd_open():
    return syscall(434, CFG["canary_pid"], 0)


family("ptrace")


@attack
def ptrace():
    return syscall(101 if X86 else 117, 2, CFG["canary_pid"], 0, 0)


@attack
def process_vm_readv():
    return syscall(310 if X86 else 270, CFG["supervisor_pid"], 0, 0, 0, 0, 0)


@attack
def kcmp():
    return syscall(312 if X86 else 272, os.getpid(), CFG["supervisor_pid"], 0, 3, 3)


family("processes")


@attack
def limits_of_others():
    import resource

    return resource.prlimit(CFG["canary_pid"], resource.RLIMIT_CORE, (0, 0))


@attack
def raise_own_memory_limit():
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return "raised"


@attack
def priority_of_others():
    os.setpriority(os.PRIO_PROCESS, CFG["canary_pid"], 19)
    return "changed"


@attack
def affinity_of_others():
    os.sched_setaffinity(CFG["canary_pid"], {0})
    return "changed"


@attack
def become_dumpable():
    return syscall(157 if X86 else 167, 4, 1, 0, 0, 0)


@attack
def outlive_parent():
    return syscall(157 if X86 else 167, 1, 0, 0, 0, 0)


family("descriptors")


@attack
def leaked_descriptors():
    extra = []
    for fd in range(1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        extra.append(fd)
    # standard ones, channel, wake pipe; whatever the attacks themselves have open lies above
    leaked = [fd for fd in extra if fd in CFG["fds_before"] and fd > 6]
    if not leaked:
        raise PermissionError("none")
    return leaked


family("network")


def talk(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)
        return sock.recv(20)


@attack
def tcp_to_loopback():
    return talk(socket.AF_INET, ("127.0.0.1", CFG["tcp_port"]))


@attack
def tcp_listen():
    with socket.create_server(("127.0.0.1", 0)):
        return "listening"


@attack
def udp_send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"x", ("127.0.0.1", CFG["tcp_port"]))


@attack
def resolve_a_name():
    return socket.gethostbyname("example.org")


family("unix sockets")


@attack
def unix_socket_by_path():
    return talk(socket.AF_UNIX, CFG["unix_path"])


@attack
def unix_socket_abstract():
    return talk(socket.AF_UNIX, "\0" + CFG["unix_abstract"])


@attack
def datagram_to_unix_socket():
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return ours.sendto(b"x", CFG["unix_datagram"])


family("network")


@attack
def netlink():
    return socket.socket(16, socket.SOCK_RAW, 0)


@attack
def raw_packets():
    return socket.socket(17, socket.SOCK_RAW, 0)


@attack
def vsock():
    return socket.socket(40, socket.SOCK_STREAM)


family("fork")


@attack
def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


@attack
def vfork_and_exec():
    import subprocess

    return subprocess.run(["/bin/true"], check=False).returncode


@attack
def spawn():
    return os.posix_spawn("/bin/true", ["true"], {})


@attack
def system():
    if (code := os.system("exit 7")) != 7 << 8:
        raise PermissionError(code)
    return "ran"


@attack
def execute():
    os.execv(sys.executable, [sys.executable, "-c", "pass"])


@attack
def multiprocess():
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=print)
    process.start()
    return "started"


@attack
def clone_process():
    if (pid := libc.syscall(56 if X86 else 220, signal.SIGCHLD, 0, 0, 0, 0)) == 0:
        os._exit(0)
    if pid < 0:
        raise PermissionError(ctypes.get_errno())
    return "cloned"


@attack
def clone3():
    return syscall(435, 0, 0)


def knock(name, x86, aarch64, *args):
    def function():
        return syscall(x86 if X86 else aarch64, *args)

    function.__name__ = name
    attack(function)


path = ctypes.create_string_buffer(b"/nonexistent")
nowhere = ctypes.addressof(path)
family("namespaces")
knock("unshare_user", 272, 97, 0x10000000)
knock("unshare_mount", 272, 97, 0x00020000)
knock("unshare_network", 272, 97, 0x40000000)
knock("setns", 308, 268, -1, 0)
family("mounts")
knock("mount", 165, 40, nowhere, nowhere, nowhere, 0, 0)
knock("umount", 166, 39, nowhere, 0)
knock("pivot_root", 155, 41, nowhere, nowhere)
knock("chroot", 161, 51, nowhere)
knock("open_tree", 428, 428, -1, nowhere, 0)
knock("fsopen", 430, 430, nowhere, 0)
family("kernel")
knock("bpf", 321, 280, -1, 0, 0)
family("io_uring")
knock("io_uring", 425, 425, 0, 0)
knock("use_up_async_io", 206, 0, 0, 0)
family("kernel")
knock("perf_event", 298, 241, 0, 0, -1, -1, 0)
knock("userfaultfd", 323, 282, -1)
knock("keyctl", 250, 219, 0, -3, 0)
knock("add_key", 248, 217, 0, 0, 0, 0, -2)
knock("init_module", 175, 105, 0, 0, nowhere)
knock("finit_module", 313, 273, -1, nowhere, 0)
knock("kexec", 246, 104, 0, 0, 0, 0)
knock("reboot", 169, 142, 0, 0, 0, 0)
knock("swapon", 167, 224, nowhere, 0)
knock("acct", 163, 89, nowhere)
knock("syslog", 103, 116, 10, 0, 0)
knock("sethostname", 170, 161, nowhere, -1)
knock("clock_settime", 227, 112, -1, 0)
knock("adjtimex", 159, 171, 0)
knock("personality", 135, 92, -1)
family("memfd")
knock("memfd", 319, 279, nowhere, 0)
knock("memfd_secret", 447, 447, 0)
family("kernel")
knock("shmget", 29, 194, 0, 4096, 0o1666)
knock("msgget", 68, 186, 0, 0o1666)
knock("mq_open", 240, 180, nowhere, 0, 0, 0)
knock("fanotify", 300, 262, 0, 0)
knock("inotify", 254, 27, -1, nowhere, 1)
knock("move_pages", 279, 239, CFG["canary_pid"], 0, 0, 0, 0, 0)
knock("quotactl", 179, 60, -1, 0, 0, 0)
knock("vmsplice", 278, 75, -1, 0, 0, 0)
knock("listmount", 458, 458, 0, 0, 0, 0)
knock("a_call_to_come", 600, 600)
if X86:
    knock("x32_getpid", 0x40000000 + 39, 0)
    knock("iopl", 172, 0, 0)
    knock("modify_ldt", 154, 0, 0, 0, 0)


family("privileges")


@attack
def set_uid():
    before = os.getuid()
    os.setuid(before + 1)
    return "changed"


@attack
def capabilities_left():
    data = ctypes.create_string_buffer(24)
    libc.capget(struct.pack("=Ii", 0x20080522, 0), data)
    if not any(data.raw):
        raise PermissionError("none")
    return data.raw.hex()


@attack
def inject_into_terminal():
    import fcntl

    fcntl.ioctl(0, 0x5412, b"x")  # TIOCSTI
    return "typed"


family("memory")


@attack
def memory_bomb():
    hold = []
    try:
        while len(hold) < 64:
            hold.append(b"x" * (64 << 20))
    except MemoryError:
        hold.clear()
        raise PermissionError("stopped") from None
    hold.clear()
    return "4 GB"


family("disk")


@attack
def large_file():
    try:
        with open("large", "wb") as file:
            file.truncate(CFG["file_bytes"] + 1)
    finally:
        os.path.exists("large") and os.unlink("large")
    return "written"


family("descriptors")


@attack
def descriptor_bomb():
    hold = []
    try:
        while len(hold) < 2000:
            hold.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for fd in hold:
            os.close(fd)
    return "2000 open"


family("fork")


@attack
def fork_bomb():
    for _ in range(100):
        if os.fork() == 0:
            os._exit(0)
    return "100 processes"


CFG["fds_before"] = set()
for fd in range(1024):
    try:
        os.fstat(fd)
    except OSError:
        continue
    CFG["fds_before"].add(fd)
for name, (kind, function) in ATTACKS.items():
    try:
        REPORT[name] = [kind, "ALLOWED", repr(function())[:80]]
    except BaseException as error:
        REPORT[name] = [kind, "BLOCKED", f"{type(error).__name__}: {error}"[:80]]
REPORT
