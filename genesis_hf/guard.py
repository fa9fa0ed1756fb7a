"""What ends a run early and well."""

import signal
from types import FrameType

import torch
import torch.distributed as dist


class StopSignal:
    """SIGTERM and the first Ctrl-C ask the run to finish its step, save and leave; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        # Over gloo, on the CPU: asking every step must not wait for the GPU.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None

    def __enter__(self) -> "StopSignal":
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, out_of_data: bool = False) -> bool:
        """Whether any process was asked to stop or has no next batch.

        Every process calls it at the same step and gets the same answer.
        """
        leaving = out_of_data or self.received is not None
        if self._group is None:
            return leaving
        asked = torch.tensor(float(leaving))
        dist.all_reduce(asked, group=self._group)
        return bool(asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
