"""How far the tree is."""

from genesis_hf.errors import UserError
from genesis_hf.stages import Stages


def status_table(stages: Stages) -> str:
    """A line a stage: finished, and in how many minutes; refused, and why; or to do."""
    width = max(map(len, stages.all))
    return "\n".join(f"{name:{width}}  {words(stages, name)}" for name in stages.all)


def words(stages: Stages, name: str) -> str:
    try:
        record = stages.record(stages.all[name])
    except UserError as error:
        return f"stale: {error}"
    if record is None:
        return "to do"
    seconds = record.get("seconds")
    minutes = f" in {seconds / 60:.1f} min" if isinstance(seconds, (int, float)) else ""
    return f"finished{minutes}"
