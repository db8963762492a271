"""Turns what JAX's coordination service writes when it ends a process into one line.

hosts.py starts it as a process and gives it its stderr: the service ends a process from C++, where
no Python code is called any more. It imports nothing but the standard library, to start at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TextIO

# The service's first line: it has heard of, or found, what ends the process.
SPEAKS = re.compile(r"[EF]\d{4} .*(coordination_service|the JAX distributed service)")
RESUME = "the same command, for all processes, resumes"


def main(lines: Iterable[str], out: TextIO) -> None:
    """Passes lines on until the service speaks; explains what it says when it has said all."""
    ending: list[str] = []
    for line in lines:
        if ending or SPEAKS.match(line):
            ending.append(line)
        else:
            out.write(line)
            out.flush()
    if ending:
        out.write(explain("".join(ending)))


def explain(words: str) -> str:
    """One line that says which process is gone, or the words if they are of something else."""
    dead = re.search(r"stopped sending heartbeats\):\s*([\d,\s]+)", words)
    if dead:
        numbers = sorted(re.findall(r"\d+", dead[1]), key=int)
        gone = (
            f"process {numbers[0]} is"
            if len(numbers) == 1
            else f"processes {', '.join(numbers)} are"
        )
        return f"error: {gone} gone; {RESUME}\n"
    if "Failed to send RPC to coordination service" in words:
        return (
            "error: process 0 is gone, or ended when it lost another (see its own last line); "
            f"{RESUME}\n"
        )
    if "CoordinationService/RegisterTask" in words:
        return "error: not all processes were there in time\n"
    return words


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
