"""Tasks for worker processes. They do not import PyTorch, so that a worker starts quickly."""

import os
import signal
import time

from hf_deit.errors import DataError


def give(value):
    print("printed", value)
    os.system("echo printed by another program")
    return value


def refuse(message):
    raise DataError(message)


def fail():
    raise ZeroDivisionError("a bug")


def sleep(file):
    file.write_text(str(os.getpid()))
    time.sleep(60)


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)
