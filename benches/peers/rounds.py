"""What comparisons share: contestants as processes, and rounds in which everybody has a turn."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

# Share of the processors that others may use in a round, beyond which it is played again. Ticks of time are as coarse.
QUIET = 0.1

Round = dict[str, Any]
"""What a round measured; `others` is the share of the processors that others used."""


class Failure(Exception):
    """Why a contestant could not."""


class Contestant:
    """A process that says `ready` and what it is, and answers lines."""

    def __init__(self, name: str, command: list, log: Path, threads: int, bind: bool = False):
        self.name, self.log = name, log
        settings = {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        if bind:
            settings["OMP_PROC_BIND"] = "true"
        settings |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(self.log, "w") as log_file:
            self.process = subprocess.Popen(
                command,
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
                bufsize=1,
            )
        self.description = self.answer().removeprefix("ready ")

    def answer(self) -> str:
        line = pipe(self.process.stdout).readline().strip()
        if not line:
            last = self.log.read_text().strip().rpartition("\n")[2]
            raise Failure(f"{self.name} ended with {self.process.wait()}: {last}")
        if line.startswith("error: "):
            raise Failure(f"{self.name}: {line}")
        return line

    def ask(self, *words: object) -> str:
        pipe(self.process.stdin).write(" ".join(map(str, words)) + "\n")
        return self.answer()

    def end(self) -> None:
        pipe(self.process.stdin).close()
        self.process.wait()


def pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None
    return end


def quiet_rounds(play: Callable[[list[Round]], Round], wanted: int, seconds: float) -> list[Round]:
    """The least disturbed of at most three times as many rounds as are wanted; after some time three are enough. `play` is given
    the rounds before."""
    rounds: list[Round] = []
    begun = time.monotonic()
    while sum(r["others"] <= QUIET for r in rounds) < wanted and len(rounds) < 3 * wanted:
        rounds.append(play(rounds))
        if len(rounds) >= 3 and time.monotonic() - begun > seconds:
            break
    return sorted(rounds, key=lambda r: r["others"])[:wanted]


class Watch:
    """From its making on, how busy the processors are, and with whom."""

    def __init__(self, contestants: Iterable[Contestant]):
        self.pids = [os.getpid(), *(c.process.pid for c in contestants)]
        self.begun, self.busy, self.ours = time.monotonic(), processors_busy(), self.used()

    def used(self) -> float:
        return sum(map(processor_time, self.pids))

    def others(self) -> float:
        """Share of the processors that went to others."""
        others = processors_busy() - self.busy - (self.used() - self.ours)
        available = (time.monotonic() - self.begun) * len(os.sched_getaffinity(0))
        return max(0.0, others / available)


def processors_busy() -> float:
    """Seconds for which the processors of this comparison have been busy, or taken away by a hypervisor."""
    names = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    with open("/proc/stat") as file:
        lines = [line.split() for line in file]
    # User, nice, system; after idle and waiting: interrupts, soft interrupts, stolen.
    ticks = sum(int(n) for name, *times in lines if name in names for n in times[:3] + times[5:8])
    return ticks / os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(threads: int) -> str:
    with open("/proc/cpuinfo") as file:
        lines = file.read().split("\n\n")[0].splitlines()
    info = {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines)}
    known = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"]
    has = [name for name in known if name in info.get("flags", "").split()]
    family = f"family {info.get('cpu family')} model {info.get('model')}"
    return f"{info.get('model name', platform.processor())}, {family} ({', '.join(has)}), {threads} threads"
