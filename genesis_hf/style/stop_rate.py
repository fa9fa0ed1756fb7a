"""Whether answers end by themselves."""

from genesis_hf.style.metric import Figure, StyleMetric


class StopRate(StyleMetric):
    """Share of answers that ended with the stop token before they were cut."""

    description = (
        "Share of answers that ended with the stop token, by themselves, before `max_new_tokens`. `stopped` (list of "
        "bool) says which."
    )
    figures = (Figure("stop_rate", "answers that end by themselves", "share"),)
    inputs = {"stopped": "bool"}

    def measure(self, answer: str, stopped: bool | None = None) -> dict[str, float | None]:
        """`stop_rate`: 1 if it stopped; None where that is not known."""
        return {"stop_rate": None if stopped is None else float(stopped)}
