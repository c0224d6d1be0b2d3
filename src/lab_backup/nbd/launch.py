"""Become another program that dies with the process that asked for it: `launch.py PARENT LISTENER PROGRAM [ARGUMENT]...`.

Run as a script by `lab_backup.nbd.child`, without the packages of this project. PARENT is the process id of whoever
asks; LISTENER is the number of an inherited listening socket, which the program gets the way systemd hands one over
(sd_listen_fds(3)), or -1.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)
FIRST_PASSED_SOCKET = 3  # sd_listen_fds(3)


def main() -> None:
    """Arrange the death signal and the socket, then run the program."""
    parent, listener, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise SystemExit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the signal was arranged
        raise SystemExit("the parent is gone")
    if listener >= 0:
        os.dup2(listener, FIRST_PASSED_SOCKET)
        if listener != FIRST_PASSED_SOCKET:
            os.close(listener)
        os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execvp(program[0], program)  # noqa: S606 - becoming the program is the purpose; there is no shell to avoid


if __name__ == "__main__":
    main()
