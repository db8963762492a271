"""Replaces the messages of JAX's coordination service by one line that says which process is lost.

The service ends a process from C++, without a return to Python. hosts.py therefore pipes stderr
through this script, which imports the standard library alone and so starts at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TextIO

# The first line that the service writes before it ends the process.
FIRST_LINE = re.compile(r"[EF]\d{4} .*(coordination_service|the JAX distributed service)")
RESUME = "the same command, for all processes, resumes"


def main(lines: Iterable[str], out: TextIO) -> None:
    """Copies lines until the first of the service, and explains those that follow at their end."""
    ending: list[str] = []
    for line in lines:
        if ending or FIRST_LINE.match(line):
            ending.append(line)
        else:
            out.write(line)
            out.flush()
    if ending:
        out.write(explain("".join(ending)))


def explain(words: str) -> str:
    """Returns a line that says which process is lost, or the words if they say something else."""
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
