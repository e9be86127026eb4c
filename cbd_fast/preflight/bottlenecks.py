"""From what was measured on a machine to what limits a run, in plain words, and which setting would change it."""

from collections.abc import Mapping
from dataclasses import dataclass

WORTH_SAYING = 1.05  # below which a gain is noise
ENOUGH = 1.02  # how much faster than training loading must be for training never to wait


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A setting that could be changed, and what loading would then give.

    Attributes:
        what: the change, as a user makes it.
        rates: images per second by stage.
    """

    what: str
    rates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured; rates in images per second.

    Attributes:
        loading: by stage (or what else stands in its place), with the settings as they are, files in the page cache.
        training: by stage, on a batch that is on the device already; empty without a config.
        milliseconds: of a batch that is made from files, by what they went to; of all threads together.
        cold_reading: images read from files that are not in the page cache; None where that cannot be measured.
        suggestions: what could be changed.
    """

    loading: Mapping[str, float]
    training: Mapping[str, float]
    milliseconds: Mapping[str, float]
    cold_reading: float | None
    suggestions: tuple[Suggestion, ...]


def mixed_rate(served: float, files: float, cache: float) -> float:
    """Images per second if a fraction of the draws is served from memory: times add up, not rates.

    Args:
        served: fraction of the draws whose images are cached, 0 to 1.
        files: images per second that are decoded.
        cache: images per second that are only cut and resized.
    """
    return 1 / ((1 - served) / files + served / cache)


def advise(findings: Findings) -> list[str]:
    """What limits each stage, and the changes that are worth making, the greatest gain first; one line each."""
    lines = []
    for stage, loading in findings.loading.items():
        lines.append(_limit(stage, loading, findings))
    lines += _about_the_disk(findings)
    offered = sorted(findings.suggestions, key=lambda offer: max(_gains(offer, findings).values()), reverse=True)
    advice = [line for offer in offered if (line := _described(offer, findings))]
    return [*lines, *(advice or ["No setting that was tried would make it faster."])]


def _limit(stage: str, loading: float, findings: Findings) -> str:
    parts = {name: value for name, value in findings.milliseconds.items() if name != "waiting"}
    largest = max(parts, key=lambda name: parts[name])
    busy_with = f"{largest} takes {parts[largest] / sum(parts.values()):.0%} of its time"
    training = findings.training.get(stage)
    if training is None:
        return f"{stage}: loading gives {loading:,.0f} images/s; {busy_with}."
    if loading > ENOUGH * training:
        return (
            f"{stage}: training is the limit. It takes {training:,.0f} images/s, and loading could give "
            f"{loading:,.0f}, {loading / training:.1f} times as many; a faster loader changes nothing."
        )
    return (
        f"{stage}: loading is the limit. Training could take {training:,.0f} images/s, loading gives {loading:,.0f}: "
        f"{1 - loading / training:.0%} of the time is spent waiting; {busy_with}."
    )


def _about_the_disk(findings: Findings) -> list[str]:
    needed = max(_needed(stage, findings) for stage in findings.loading)
    if findings.cold_reading is None or findings.cold_reading >= needed:
        return []
    return [
        f"The disk gives {findings.cold_reading:,.0f} images/s that are not in memory yet, of {needed:,.0f} that are "
        "wanted: the first epoch, and each one if the shards do not fit into memory, goes at the disk's speed. Put the "
        "shards on a faster disk, or store smaller images."
    ]


def _needed(stage: str, findings: Findings) -> float:
    return min(findings.loading[stage], findings.training.get(stage, float("inf")))


def _gains(offer: Suggestion, findings: Findings) -> dict[str, float]:
    """How many times as fast each stage would be: no faster than it trains."""
    return {
        stage: min(rate, findings.training.get(stage, rate)) / _needed(stage, findings)
        for stage, rate in offer.rates.items()
    }


def _described(offer: Suggestion, findings: Findings) -> str | None:
    gains = {stage: gain for stage, gain in _gains(offer, findings).items() if gain >= WORTH_SAYING}
    if not gains:
        return None
    words = ", ".join(f"{stage} {gain:.2f} times as fast" for stage, gain in gains.items())
    return f"{offer.what}: {words}."
