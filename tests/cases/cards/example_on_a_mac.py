"""The example's own quantizer, on a machine whose device it refuses."""

from __future__ import annotations

from case_bench import Bench

from pefttool.setup import devices
from pefttool_text.chat import Chat

TURNS = [{"role": "user", "content": "good film"}, {"role": "assistant", "content": "a gem"}]


def check(bench: Bench) -> None:
    data = bench.write("chats.jsonl", *({"messages": TURNS} for _ in range(8)))
    example = {"model": str(bench.model("chatml")), "quantize": "nf4", "data": {"train": str(data)}}
    bench.monkeypatch.setattr(Chat, "example", example)
    bench.monkeypatch.setattr(devices, "report", lambda: devices.DeviceFacts(mps=True))

    answer = bench.pefttool("plan", "--adapter", "lora")
    assert answer.code == 0, answer.text
    said = " ".join(answer.text.split())
    assert "the example's own is left out, its weights stay as they are: 'nf4' is untested on MPS" in said
    assert said.count("nf4") == 1, "its weights are planned as float32"

    answer = bench.pefttool("plan", "--adapter", "lora", "--quantize", "nf4")
    assert answer.code == 2 and "quantize: 'nf4' is untested on MPS" in answer.text
