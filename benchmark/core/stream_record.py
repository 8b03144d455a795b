"""The record of one stream: immutable, versioned, canonical JSON. Imports no torch.

What is measured of it follows from its windows, so that nothing in a file can contradict them.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.record import Environment, ItemUse, Part, Provenance, read_model

SCHEMA = "firstline.stream/1"
MOST = 2**53  # of what is counted: beyond, floats skip whole numbers


class Strict(Part):
    """Base of the parts: nothing is taken for a number or a truth that is none."""

    model_config = ConfigDict(strict=True)


class Shape(Strict):
    """A stream: inputs per window, honest windows before, attacked ones, the share of inputs attacked, the alarm's FPR.

    An evasion wave ends after `during` windows; a backdoored update stays, and triggers come to the end.
    """

    size: int = Field(default=25, ge=1, le=1_000_000)
    before: int = Field(default=6, ge=1)
    during: int = Field(default=8, ge=1)
    share: float = Field(default=0.5, ge=0, le=1)
    fpr: float = Field(default=0.01, ge=0, le=0.5)


class Window(Strict):
    """One window: was it attacked, its inputs, how many were answered as they should be, and was there an alarm?

    usual counts the same for the system that nobody attacked, on the same inputs, so that hard inputs are no loss.
    """

    attacked: bool
    inputs: int = Field(ge=1)
    right: int = Field(ge=0)
    usual: int = Field(ge=0)
    alarm: bool

    @model_validator(mode="after")
    def _counted(self) -> "Window":
        if max(self.right, self.usual) > self.inputs:
            raise ValueError(f"{self.right} and {self.usual} right answers to {self.inputs} inputs")
        return self


class StreamRecord(Strict):
    """The result of one stream: task × defense × attack × threat model × shape × seed.

    steps, samples and seconds are what the repairs took: optimiser steps, clean rows read, CPU seconds. relapse, and
    relapse_without_repair, are there for backdoors that were repaired.
    """

    format: Literal["firstline.stream/1"] = "firstline.stream/1"
    key: str = Field(pattern="^[0-9a-f]{64}$")
    preimage: dict[str, Any] = Field(description="everything that the key is the SHA-256 of")
    task: ItemUse
    defense: list[ItemUse] = Field(min_length=1, description="the layers of the stack, innermost first")
    attack: ItemUse
    threat: str = Field(pattern="^(evasion|poisoning)/")
    seed: int = Field(ge=0, le=MOST)
    shape: Shape
    windows: list[Window] = Field(min_length=2, max_length=100_000)
    steps: int = Field(default=0, ge=0, le=MOST)
    samples: int = Field(default=0, ge=0, le=MOST)
    seconds: float = Field(default=0.0, ge=0)
    relapse: float | None = Field(default=None, ge=-1, le=1)
    relapse_without_repair: float | None = Field(default=None, ge=-1, le=1)
    environment: Environment
    provenance: Provenance
    tags: list[str] = Field(default=[], description="tags of the defense's layers: control, broken, ...")

    @model_validator(mode="after")
    def _consistent(self) -> "StreamRecord":
        if hashlib.sha256(canonical(self.preimage).encode()).hexdigest() != self.key:
            raise ValueError("its key is not that of its preimage")
        first, wave = self.shape.before, self.threat.startswith("evasion/")
        last = first + self.shape.during if wave else len(self.windows)
        for number, window in enumerate(self.windows):
            if window.attacked != (first <= number < last) or window.inputs != self.shape.size:
                raise ValueError(f"window {number} is none of its shape")
        if first >= len(self.windows):
            raise ValueError("no window is attacked")
        return self

    @property
    def defense_text(self) -> str:
        """The text form of the stack."""
        return "+".join(layer.text for layer in self.defense)

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces, one line."""
        return canonical(self.model_dump(mode="json")) + "\n"


def read_stream(path: Path) -> StreamRecord:
    """Return the record in a file. Raises FirstlineError naming the file and what to do."""
    return read_model(path, StreamRecord, SCHEMA, "delete the file and run the stream again")
