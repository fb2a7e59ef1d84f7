"""What a process writes of tensors that are spread over several, read back and compared with what is in memory.

`torch.distributed.checkpoint` writes the file and tells all processes of an error that one of them raises here.

Read next: `run_folder.py`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from minillm.checkpoint.files import forget_cached, sync_file
from minillm.checkpoint.native import same_bits

OFFSETS = "DCP_SHARDING_INFO"  # key of a header: where in the whole tensors the parts of a file lie


class ShardWriter(HuggingFaceStorageWriter):
    """Writes this process's parts as one safetensors file, and believes the disk only what it gives back."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, empty and on a file system that all processes see."""
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the parts that `plan` gives this process.

        Raises:
            OSError: they cannot be written, or what is read back differs from them.

        Cost: the parts' size written, one flush, and the same size read.
        """
        written = super().write_data(plan, planner)
        items = {result.index: result.storage_data.relative_path for result in written.wait()}
        for name in sorted(set(items.values())):
            parts = [item for item in plan.items if items.get(item.index) == name]
            self._compare(self.folder / name, parts, planner)
        if len(items) != len(plan.items):
            raise OSError(errno.EIO, "parts were left out", str(self.folder))
        return written

    def _compare(self, path: Path, parts: Sequence[WriteItem], planner: SavePlanner) -> None:
        """Raise OSError unless a file holds these parts, bit for bit, and says rightly where they lie."""
        sync_file(path)
        forget_cached(path)
        try:
            with safe_open(path, framework="pt") as file:
                offsets = json.loads(file.metadata()[OFFSETS])
                for part in parts:
                    name, chunk = part.index.fqn, part.tensor_data and part.tensor_data.chunk
                    given = planner.resolve_data(part)
                    assert chunk is not None and isinstance(given, Tensor)  # an optimiser's slots are tensors
                    same = same_bits(file.get_tensor(name), given.cpu().contiguous())
                    if offsets[name]["saved_offsets"] != list(chunk.offsets) or not same:
                        raise OSError(errno.EIO, "what is on the disk differs from what was written", str(path))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:  # of a header that is none
            raise OSError(errno.EIO, "what is on the disk is no whole safetensors file", str(path)) from error
