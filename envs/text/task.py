from typing import Protocol, runtime_checkable
@runtime_checkable
class TextTask(Protocol):
    name: str
    def prompt(self, index: int) -> str: ...
