"""Whether a stream's state is of the data that it is to go on with."""

from typing import Any

from genesis_hf.errors import UserError

PLACE = ("tokenizer", "sequence_length", "packing", "shuffle_block", "shuffle_rows")
"""Without these a place in the data means nothing: they can't change on the way."""


def refuse_other_data(state: dict[str, Any], now: dict[str, Any], accept: bool) -> list[str]:
    """Compare a state's fingerprint with the data at hand.

    Returns:
        the differences that were accepted, a few words each.

    Raises:
        UserError: something the place depends on differs, or anything else does and `accept` is False.
    """
    then = state["fingerprint"]
    for key in PLACE:
        if then.get(key) != now[key]:
            raise UserError(
                f"the checkpoint's data stream had another {key} ({brief(then.get(key))} then, {brief(now[key])} now); "
                "restore it or start in a new output_dir"
            )
    for name, source in then["sources"].items():
        if name in now["sources"] and source["prepared"] != now["sources"][name]["prepared"]:
            was, is_ = ("token shards", "text") if source["prepared"] else ("text", "token shards")
            raise UserError(
                f"source {name}: the checkpoint's place is one in {was}, and the recipe names {is_}; restore it or "
                "start in a new output_dir"
            )
    undecided = state["begin"]["row"] + (state["index"] > 0)  # first row at which a block can still begin
    found = differences(then, now, undecided)
    if found and not accept:
        raise UserError(
            f"the checkpoint was trained on other data: {'; '.join(found)}. Restore that, declare new weights or a new "
            "seed under data_changes with their step, start in a new output_dir, or set accept_data_change: true"
        )
    return found


def same_documents(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two fingerprints are of the same documents, whatever their weights and order."""
    data = [{name: (s["data"], s["caps"]) for name, s in print_["sources"].items()} for print_ in (then, now)]
    return data[0] == data[1] and then["selection"] == now["selection"]


def without_open_block(state: dict[str, Any]) -> dict[str, Any]:
    """A state whose open block can't be made again, since its documents changed: what was taken of it comes again."""
    return {**state, "index": 0, "begin": {**state["begin"], "row": state["rows"]}}


def differences(then: dict[str, Any], now: dict[str, Any], undecided: int) -> list[str]:
    """What differs between two fingerprints; changes declared for `undecided` rows and later don't."""
    found = []
    old, new = then["sources"], now["sources"]
    found += [f"source {name} is gone" for name in old if name not in new]
    found += [f"source {name} is new" for name in new if name not in old]
    for name in old.keys() & new.keys():
        if old[name]["data"] != new[name]["data"]:
            found.append(f"source {name} has other files, or its files have other names, sizes or content")
        for key, words in (("weight", "weight"), ("caps", "max_documents, max_tokens, max_epochs")):
            if old[name][key] != new[name][key]:
                found.append(f"source {name}: {words} was {old[name][key]}, is {new[name][key]}")
    for key in ("seed", "when_dry"):
        if then[key] != now[key]:
            found.append(f"{key} was {then[key]}, is {now[key]}")
    if then["selection"] != now["selection"]:
        found.append("other documents are held out (held_out_share, eval_sources or exclude_documents)")
    past = [[change for change in print_["changes"] if change[0] < undecided] for print_ in (then, now)]
    if past[0] != past[1]:
        found.append(f"data_changes before row {undecided:,} were {past[0]}, are {past[1]}")
    return sorted(found)


def brief(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)
