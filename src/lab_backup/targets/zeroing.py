"""Making a range of an open file or device read as zeroes without writing them, where the kernel can."""

import ctypes
import errno
import os

_KEEP_SIZE = 1  # fallocate(2)
_PUNCH_HOLE = 2
_UNABLE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}  # EINVAL: not aligned to the device's blocks
_ZEROES = memoryview(bytes(1024 * 1024))  # written where nothing else works; large enough that the calls do not count

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


def zero_range(number: int, offset: int, length: int) -> None:
    """Make `length` bytes from `offset` of the open file or block device `number` read as zeroes; its size stays.

    A hole is punched where that is certain to read as zeroes (Linux promises it for files, and for a device only if it can zero by
    itself), so thin volumes stay thin; else zeroes are written. Raises OSError.
    """
    if length <= 0:
        return
    if _fallocate(number, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    code = ctypes.get_errno()
    if code not in _UNABLE:
        raise OSError(code, os.strerror(code))
    end = offset + length
    while offset < end:
        offset += os.pwrite(number, _ZEROES[: end - offset], offset)
