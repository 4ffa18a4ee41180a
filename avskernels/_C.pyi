# SPDX-License-Identifier: Apache-2.0
# The compiled module, csrc/module.cpp.

class Dtype:
    name: str

class Dimension:
    text: str
    factors: list[str]
    open: bool
    optional: bool

class Argument:
    type: str
    name: str
    dtype: Dtype
    position: int
    shape: list[Dimension]
    condition: str
    anywhere: bool

class Specification:
    name: str
    arguments: list[Argument]
    results: list[Argument]
    schema: str

def build_info() -> dict[str, str]: ...
def set_cpu_capability(name: str) -> None: ...
def specifications() -> list[Specification]: ...
def parse_specification(text: str) -> Specification: ...
