"""From rates measured on a machine to what limits a run there, in plain words, and which setting would change it."""

from collections.abc import Mapping
from dataclasses import dataclass

MIN_GAIN = 1.05  # a smaller one is noise
MIN_LOADING_LEAD = 1.02  # how much faster than training loading must be for training never to wait


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change of settings, and what loading would then give.

    Attributes:
        change: the change, as a user makes it.
        loading_rates: images per second by stage.
    """

    change: str
    loading_rates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured on a machine.

    Attributes:
        loading_rates: images per second by stage (``loading`` without a config), with the settings as they are and
            the shards in the page cache.
        training_rates: images per second by stage, on a batch that is already on the device; empty without a config.
        batch_milliseconds: time of a batch that is made from files, by part of the work; the sum over all threads.
        cold_reading_rate: images per second read from files outside the page cache; None where it cannot be measured.
        suggestions: changes that were tried.
    """

    loading_rates: Mapping[str, float]
    training_rates: Mapping[str, float]
    batch_milliseconds: Mapping[str, float]
    cold_reading_rate: float | None
    suggestions: tuple[Suggestion, ...]


def mixed_rate(cached_fraction: float, file_rate: float, cache_rate: float) -> float:
    """Images per second when some draws are served by the cache: times add up, not rates.

    Args:
        cached_fraction: fraction of the draws whose images are cached, 0 to 1.
        file_rate: images per second when all are decoded from files.
        cache_rate: images per second when all are cached and only cut and resized.
    """
    return 1 / ((1 - cached_fraction) / file_rate + cached_fraction / cache_rate)


def describe_bottlenecks(findings: Findings) -> list[str]:
    """What limits each stage, then the changes that are worth making, the greatest gain first; one line each."""
    lines = [_limit_line(stage, findings) for stage in findings.loading_rates]
    lines += _disk_lines(findings)
    best_first = sorted(findings.suggestions, key=lambda each: max(_gains(each, findings).values()), reverse=True)
    suggested = [line for each in best_first if (line := _suggestion_line(each, findings))]
    return [*lines, *(suggested or ["No setting that was tried would make it faster."])]


def _limit_line(stage: str, findings: Findings) -> str:
    parts = {name: value for name, value in findings.batch_milliseconds.items() if name != "waiting"}
    largest = max(parts, key=lambda name: parts[name])
    busy_with = f"{largest} takes {parts[largest] / sum(parts.values()):.0%} of its time"
    loading, training = findings.loading_rates[stage], findings.training_rates.get(stage)
    if training is None:
        return f"{stage}: loading gives {loading:,.0f} images/s; {busy_with}."
    if loading > MIN_LOADING_LEAD * training:
        return (
            f"{stage}: training is the limit. It takes {training:,.0f} images/s, and loading could give "
            f"{loading:,.0f}, {loading / training:.1f} times as many; a faster loader changes nothing."
        )
    return (
        f"{stage}: loading is the limit. Training could take {training:,.0f} images/s, loading gives {loading:,.0f}: "
        f"{1 - loading / training:.0%} of the time is spent waiting; {busy_with}."
    )


def _disk_lines(findings: Findings) -> list[str]:
    needed = max(_run_rate(stage, findings) for stage in findings.loading_rates)
    if findings.cold_reading_rate is None or findings.cold_reading_rate >= needed:
        return []
    return [
        f"The disk gives {findings.cold_reading_rate:,.0f} images/s that are not in memory yet, of {needed:,.0f} that "
        "are wanted: the first epoch, and each one if the shards do not fit into memory, goes at the disk's speed. Put "
        "the shards on a faster disk, or store smaller images."
    ]


def _run_rate(stage: str, findings: Findings) -> float:
    """Images per second of a stage with the settings as they are: the lower of loading and training."""
    return min(findings.loading_rates[stage], findings.training_rates.get(stage, float("inf")))


def _gains(suggestion: Suggestion, findings: Findings) -> dict[str, float]:
    """How many times as fast each stage would be; never faster than its training."""
    return {
        stage: min(rate, findings.training_rates.get(stage, rate)) / _run_rate(stage, findings)
        for stage, rate in suggestion.loading_rates.items()
    }


def _suggestion_line(suggestion: Suggestion, findings: Findings) -> str | None:
    gains = {stage: gain for stage, gain in _gains(suggestion, findings).items() if gain >= MIN_GAIN}
    if not gains:
        return None
    return f"{suggestion.change}: {', '.join(f'{stage} {gain:.2f} times as fast' for stage, gain in gains.items())}."
