"""GPUs by NVML, without one: only `pynvml` itself is replaced, by a small machine whose GPUs and
memory the test sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from configs.errors import GpuBusy, LmflowsError, PreflightError, from_dict
from tasks.machine.gpus import (
    Gpu,
    choose,
    cuda_is_visible,
    description,
    free_bytes,
    require_free,
    visible,
)
from tests.support.nvml import GB, Board, Machine

Install = Callable[..., Machine]


def three() -> list[Board]:
    return [
        Board("GPU-aa11", used=70 * GB),
        Board("GPU-aa22", used=10 * GB),
        Board("GPU-bb33", used=10 * GB),
    ]


def test_a_gpu_is_told_whole(install: Install) -> None:
    machine = install(Board("GPU-aa11", used=30 * GB))
    assert visible() == [
        Gpu(
            index=0,
            uuid="GPU-aa11",
            name="NVIDIA H200",
            architecture="sm_90",
            total_bytes=80 * GB,
            free_bytes=50 * GB,
            driver="580.65",
        )
    ]
    assert free_bytes() == [50 * GB] and cuda_is_visible()
    assert description(visible()[0]) == {
        "name": "NVIDIA H200",
        "driver": "580.65",
        "architecture": "sm_90",
        "memory": "80.0 GB",
    }
    assert machine.sessions == 0


@pytest.mark.parametrize(
    ("mask", "indices"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-bb,GPU-aa11", [2, 0]),
        ("GPU-bb33,1", [2, 1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", [1]),
        ("0,-1,1", [0]),
        ("0,MIG-1234,1", [0]),
        ("GPU-aa11,GPU-zz,GPU-bb33", [0]),
        ("GPU-aa,2", []),  # two begin so
        ("1,1", []),
        ("1,2,GPU-aa22", []),
    ],
)
def test_the_mask_means_what_it_means_to_cuda(
    install: Install, mask: str | None, indices: list[int]
) -> None:
    install(*three(), mask=mask)
    assert [gpu.index for gpu in visible()] == indices


@pytest.mark.parametrize(
    "words", ["NVML Shared Library Not Found", "Driver/library version mismatch"]
)
def test_without_a_working_driver_there_is_no_gpu(install: Install, words: str) -> None:
    install(Board("GPU-aa11"), broken=words)
    assert (
        visible() == [] and free_bytes() == [] and not cuda_is_visible() and choose(None, 1) == []
    )
    with pytest.raises(
        PreflightError, match=f"GPU 0 is not here; visible: none .NVML says: {words}"
    ):
        choose((0,), 1)


def test_a_driver_without_a_gpu_is_no_gpu(install: Install) -> None:
    install()
    assert visible() == [] and choose(None, 2) == []


def test_a_lost_gpu_does_not_hide_the_others(install: Install) -> None:
    boards = three()
    boards[0].deaf = {"HandleByIndex"}
    boards[1].deaf = {"MemoryInfo"}
    machine = install(*boards)
    assert [gpu.index for gpu in visible()] == [2] and machine.sessions == 0


def test_what_a_board_does_not_tell_is_unknown(install: Install) -> None:
    install(Board("GPU-aa11", deaf={"Name", "CudaComputeCapability"}))
    assert (visible()[0].name, visible()[0].architecture) == ("unknown", "unknown")


def test_the_gpus_with_the_most_free_memory_are_chosen_and_the_first_of_equals(
    install: Install,
) -> None:
    install(*three())
    assert [gpu.index for gpu in choose(None, 1)] == [1]
    assert [gpu.index for gpu in choose(None, 3)] == [1, 2, 0]
    assert [gpu.index for gpu in choose((2, 0, 2), 1)] == [2]
    assert choose((0,), 0) == []


def test_positions_count_among_the_visible_gpus(install: Install) -> None:
    install(*three(), mask="2,0")
    assert [gpu.index for gpu in choose((0,), 1)] == [2]
    assert [gpu.index for gpu in choose((1,), 1)] == [0]
    with pytest.raises(
        PreflightError, match="GPU 2 is not here; visible: 0: NVIDIA H200, 1: NVIDIA H200"
    ):
        choose((0, 2), 1)


def test_too_few_gpus_are_an_error_that_counts(install: Install) -> None:
    install(*three())
    with pytest.raises(PreflightError, match="2 GPUs are needed, the run may use 1"):
        choose((1,), 2)
    with pytest.raises(PreflightError, match="4 GPUs are needed, the run may use 3"):
        choose(None, 4)


def test_a_hidden_gpu_cannot_be_named(install: Install) -> None:
    install(*three(), mask="")
    with pytest.raises(
        PreflightError,
        match=r"GPU 0 is not here; visible: none .NVML knows 3, CUDA_VISIBLE_DEVICES=",
    ):
        choose((0,), 1)


def test_memory_is_asked_again_before_a_step(install: Install) -> None:
    machine = install(Board("GPU-aa11"))
    chosen = choose(None, 1)
    require_free(chosen, 60 * GB, what="quantize")
    machine.boards[0].used = 75 * GB
    machine.boards[0].processes = [(4242, 5 * GB), (9999, None), (77, 70 * GB)]
    with pytest.raises(GpuBusy) as caught:
        require_free(chosen, 60 * GB, what="quantize")
    assert str(caught.value).startswith(
        "quantize: GPU 0 (NVIDIA H200) has 5.0 GB of 80.0 GB free, 60.0 GB are needed; held by pid"
        " 77 (python) with 70.0 GB, pid 4242 (python) with 5.0 GB, pid 9999 -> stop what uses it"
    )
    assert caught.value.retryable and machine.sessions == 0
    assert isinstance(from_dict(caught.value.to_dict()), GpuBusy)


def test_where_nvml_does_not_tell_who_holds_memory_the_error_says_so(install: Install) -> None:
    install(Board("GPU-aa11", used=79 * GB, deaf={"Processes"}), Board("GPU-bb22", used=79 * GB))
    with pytest.raises(
        GpuBusy, match=r"GPU 0 .* NVML does not tell who holds it; GPU 1 .* NVML does not tell"
    ):
        require_free(visible(), 2 * GB, what="serve")


def test_a_gpu_that_went_away_is_no_matter_of_waiting(install: Install) -> None:
    machine = install(Board("GPU-aa11"))
    chosen = choose(None, 1)
    machine.boards.clear()
    with pytest.raises(
        LmflowsError, match=r"NVML no longer tells of GPU 0 \(NVIDIA H200\): Not Found"
    ) as caught:
        require_free(chosen, 1, what="quantize")
    assert not caught.value.retryable and machine.sessions == 0


def test_without_gpus_nvml_is_not_asked(install: Install) -> None:
    machine = install(broken="not to be asked")
    require_free([], 1, what="quantize")
    assert machine.inits == 0
