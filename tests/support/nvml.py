"""A machine of GPUs for tests, as `pynvml` shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar

GB = 10**9
T = TypeVar("T")


class NVMLError(Exception):
    pass


@dataclass
class Board:
    """A GPU of the machine. `deaf` holds the names of the functions that it does not support."""

    uuid: str
    used: int = 0
    total: int = 80 * GB
    name: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    deaf: set[str] = field(default_factory=set)


class Machine:
    """What `pynvml` offers of it; it also counts sessions, so that a leak is seen."""

    NVMLError = NVMLError

    def __init__(self, *boards: Board, broken: str = "") -> None:
        self.boards, self.broken, self.sessions, self.inits = list(boards), broken, 0, 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)
        self.sessions += 1
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Board:
        return self._ask(self.boards[index], "HandleByIndex", self.boards[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Board:
        for board in self.boards:
            if board.uuid == uuid:
                return board
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, board: Board) -> str:
        return self._ask(board, "UUID", board.uuid)

    def nvmlDeviceGetName(self, board: Board) -> str:
        return self._ask(board, "Name", board.name)

    def nvmlDeviceGetCudaComputeCapability(self, board: Board) -> tuple[int, int]:
        return self._ask(board, "CudaComputeCapability", board.capability)

    def nvmlDeviceGetMemoryInfo(self, board: Board) -> SimpleNamespace:
        return self._ask(
            board,
            "MemoryInfo",
            SimpleNamespace(total=board.total, used=board.used, free=board.total - board.used),
        )

    def nvmlDeviceGetComputeRunningProcesses(self, board: Board) -> list[SimpleNamespace]:
        return self._ask(
            board,
            "Processes",
            [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in board.processes],
        )

    def nvmlDeviceGetGraphicsRunningProcesses(self, board: Board) -> list[SimpleNamespace]:
        raise NVMLError("Not Supported")

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        if pid > 9000:
            raise NVMLError("Not Found")
        return "/usr/bin/python -m something --long"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def _ask(self, board: Board, question: str, answer: T) -> T:
        if not self.sessions:
            raise NVMLError("Uninitialized")
        if question in board.deaf:
            raise NVMLError("Not Supported")
        return answer
