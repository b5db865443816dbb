"""The choice of device and arithmetic, for machines that this one is not."""

import pytest

from pefttool.api.errors import UsageError
from pefttool.setup.devices import CudaDevice, DeviceFacts, choose, cpu_bfloat16, report

GIB = 2**30
T4 = CudaDevice("Tesla T4", (7, 5), 15 * GIB)
A10 = CudaDevice("NVIDIA A10", (8, 6), 22 * GIB)
ADA = CudaDevice("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9), 8 * GIB)
BLACKWELL = CudaDevice("NVIDIA GeForce RTX 5090", (12, 0), 32 * GIB)
NEW_CPU = DeviceFacts(cpu_bfloat16="AVX512-BF16")
OLD_CPU = DeviceFacts()
MAC = DeviceFacts(mps=True, mps_bfloat16=True)
OLD_MAC = DeviceFacts(mps=True)


def cuda(*devices, **others):
    return DeviceFacts(build="cuda", cuda=devices, **others)


AUTOMATIC = {
    "sm_75": (cuda(T4), "cuda", "float16", "float16", True),
    "sm_70": (cuda(CudaDevice("V100", (7, 0), 16 * GIB)), "cuda", "float16", "float16", True),
    "sm_80": (cuda(CudaDevice("A100", (8, 0), 40 * GIB)), "cuda", "bfloat16", "bfloat16", False),
    "sm_86": (cuda(A10), "cuda", "bfloat16", "bfloat16", False),
    "sm_89": (cuda(ADA), "cuda", "bfloat16", "bfloat16", False),
    "sm_120": (cuda(BLACKWELL), "cuda", "bfloat16", "bfloat16", False),
    "cuda before mps": (cuda(A10, mps=True, mps_bfloat16=True), "cuda", "bfloat16", "bfloat16", False),
    "the first device decides": (cuda(T4, A10), "cuda", "float16", "float16", True),
    "mps": (MAC, "mps", "float32", None, False),
    "mps, old": (OLD_MAC, "mps", "float32", None, False),
    "cpu with bf16": (NEW_CPU, "cpu", "bfloat16", "bfloat16", False),
    "cpu without": (OLD_CPU, "cpu", "float32", None, False),
    "cuda build, no device": (cuda(), "cpu", "float32", None, False),
    "sm_75's cpu has bf16": (cuda(T4, cpu_bfloat16="AMX-BF16"), "cuda", "float16", "float16", True),
    "rocm": (DeviceFacts(build="rocm", cpu_bfloat16="AVX512-BF16"), "cpu", "bfloat16", "bfloat16", False),
}


@pytest.mark.parametrize(("facts", "device", "dtype", "autocast", "scaler"), AUTOMATIC.values(), ids=AUTOMATIC)
def test_automatic(facts, device, dtype, autocast, scaler):
    choice = choose(facts)
    assert (choice.device, choice.dtype, choice.autocast, choice.grad_scaler) == (device, dtype, autocast, scaler)
    assert choice.reason.startswith(f"{device}: ") and f"; {dtype}: " in choice.reason and "\n" not in choice.reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (NEW_CPU, "cpu: no CUDA or MPS device; bfloat16: this CPU has AVX512-BF16"),
        (OLD_CPU, "cpu: no CUDA or MPS device; float32: this CPU has no bfloat16 instructions"),
        (cuda(T4), "cuda: Tesla T4, 15 GiB; float16: sm_75 has no native bfloat16; gradients are scaled"),
        (cuda(BLACKWELL), "cuda: NVIDIA GeForce RTX 5090, 32 GiB; bfloat16: native on sm_120"),
    ],
)
def test_reasons(facts, reason):
    assert choose(facts).reason == reason


EXPLICIT = {
    "cpu beside a GPU": (cuda(A10), "cpu", "auto", "cpu", "float32", False),
    "cuda": (cuda(T4, A10), "cuda", "auto", "cuda", "float16", True),
    "cuda:1 decides its dtype": (cuda(T4, A10), "cuda:1", "auto", "cuda:1", "bfloat16", False),
    "cuda:01 is cuda:1": (cuda(T4, A10), "cuda:01", "auto", "cuda:1", "bfloat16", False),
    "float32 on a GPU": (cuda(A10), "auto", "float32", "cuda", "float32", False),
    "float16 on a new GPU": (cuda(A10), "auto", "float16", "cuda", "float16", True),
    "float32 on sm_75": (cuda(T4), "auto", "float32", "cuda", "float32", False),
    "float32 on a new CPU": (NEW_CPU, "auto", "float32", "cpu", "float32", False),
    "bfloat16 on a new CPU": (NEW_CPU, "cpu", "bfloat16", "cpu", "bfloat16", False),
    "bfloat16 on a new Mac": (MAC, "mps", "bfloat16", "mps", "bfloat16", False),
}


@pytest.mark.parametrize(("facts", "device", "dtype", "on", "in_", "scaler"), EXPLICIT.values(), ids=EXPLICIT)
def test_what_is_asked_for_is_done(facts, device, dtype, on, in_, scaler):
    choice = choose(facts, device, dtype)
    assert (choice.device, choice.dtype, choice.grad_scaler) == (on, in_, scaler)
    assert choice.autocast == (None if in_ == "float32" else in_)
    assert "as asked" in choice.reason


REFUSED = {
    "no cuda in this torch": (NEW_CPU, "cuda", "auto", ["'cuda'", "built for the CPU only", "use device auto or cpu"]),
    "no device": (cuda(), "cuda:0", "auto", ["'cuda:0'", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
    "rocm": (DeviceFacts(build="rocm"), "cuda", "auto", ["ROCm", "untested"]),
    "cuda:3 of 1": (cuda(A10), "cuda:3", "auto", ["'cuda:3'", "no such device", "cuda:0 (NVIDIA A10)"]),
    "cuda:1 of 1": (cuda(A10), "cuda:1", "auto", ["'cuda:1'", "no such device"]),
    "no mps": (NEW_CPU, "mps", "auto", ["'mps'", "use device auto or cpu"]),
    "misspelt device": (NEW_CPU, "cdua", "auto", ["unknown 'cdua'", "did you mean 'cuda'?", "allowed: auto, cpu"]),
    "no number": (cuda(A10), "cuda:", "auto", ["unknown 'cuda:'"]),
    "negative": (cuda(A10), "cuda:-1", "auto", ["unknown 'cuda:-1'"]),
    "not a digit of ours": (cuda(A10), "cuda:²", "auto", ["unknown 'cuda:²'"]),
    "trailing newline": (NEW_CPU, "cpu\n", "auto", ["unknown 'cpu\\n'"]),
    "empty device": (NEW_CPU, "", "auto", ["unknown ''"]),
    "misspelt dtype": (NEW_CPU, "auto", "bflot16", ["unknown 'bflot16'", "did you mean 'bfloat16'?"]),
    "bfloat16 on sm_75": (cuda(T4), "auto", "bfloat16", ["'bfloat16'", "Tesla T4 (sm_75)", "emulate", "float16"]),
    "bfloat16 on an old CPU": (OLD_CPU, "auto", "bfloat16", ["'bfloat16'", "AVX512-BF16", "emulate", "float32"]),
    "bfloat16 on an old Mac": (OLD_MAC, "auto", "bfloat16", ["'bfloat16'", "macOS 14", "float32"]),
    "float16 on a CPU": (NEW_CPU, "cpu", "float16", ["'float16'", "underflow", "bfloat16"]),
    "float16 on a Mac": (MAC, "auto", "float16", ["'float16'", "MPS", "float32"]),
}


@pytest.mark.parametrize(("facts", "device", "dtype", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_line(facts, device, dtype, words):
    with pytest.raises(UsageError) as raised:
        choose(facts, device, dtype)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(("device: ", "dtype: "))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("capabilities", "onednn", "name"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, True, "AVX512-BF16"),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": True}, True, "AMX-BF16"),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, True, None),
        ({"architecture": "x86_64", "avx512_bf16": True}, False, None),
        ({"architecture": "aarch64", "bf16": True}, True, "Arm BF16"),
        ({"architecture": "arm64", "bf16": True}, False, None),  # a Mac: torch has no oneDNN there
        ({}, True, None),
    ],
)
def test_cpu_instructions(capabilities, onednn, name):
    assert cpu_bfloat16(capabilities, onednn) == name


def test_report_of_this_machine_agrees_with_torch():
    import torch

    facts = report()
    assert len(facts.cuda) == torch.cuda.device_count()
    assert facts.mps == torch.backends.mps.is_available()
    if torch.version.cuda is None and torch.version.hip is None:
        assert facts.build == "cpu"
    x86 = torch.cpu._is_avx512_bf16_supported()
    if x86:
        assert facts.cpu_bfloat16 in ("AVX512-BF16", "AMX-BF16")
    choice = choose(facts)
    torch.zeros(1, dtype=getattr(torch, choice.dtype), device=choice.device)


def test_torch_still_reports_the_instructions_under_these_names():
    """An unknown name would silently mean float32, several times slower."""
    import torch

    documented = torch.cpu.get_capabilities.__doc__
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        assert name in documented
    capabilities = torch.cpu.get_capabilities()
    if capabilities["architecture"] == "x86_64":
        assert bool(capabilities.get("avx512_bf16")) == torch.cpu._is_avx512_bf16_supported()
