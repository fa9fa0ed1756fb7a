"""What ends a run early and well."""

import signal
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist


class StopSignal:
    """SIGTERM and the first Ctrl-C ask the run to finish its step, save and leave; a second Ctrl-C leaves at once.

    Args:
        timeout: how long `agreed` waits for the other processes; None: torch's half an hour.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.received: str | None = None
        several = dist.is_initialized() and dist.get_world_size() > 1
        # Over gloo, on the CPU: asking every step must not wait for the GPU.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if several else None

    def __enter__(self) -> "StopSignal":
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, out_of_data: bool = False, save_due: bool = False) -> tuple[bool, bool]:
        """Whether to leave (a process was asked to stop or has no next batch), and whether a save is due by the clock.

        Every process calls it at the same step and gets the same answer, whatever its own was.
        """
        asked = torch.tensor([out_of_data or self.received is not None, save_due], dtype=torch.float32)
        if self._group is not None:
            dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._group)
        leaving, saving = asked.tolist()
        return bool(leaving), bool(saving)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
