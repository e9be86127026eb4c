import pytest

from cbd_fast.preflight.bottlenecks import Findings, Suggestion, describe_bottlenecks, mixed_rate

MILLISECONDS = {"planning": 2.0, "reading": 8.0, "decoding": 80.0, "finishing": 10.0, "waiting": 500.0}


def findings(**changed):
    return Findings(
        **(
            {
                "loading_rates": {"teachers": 1000.0, "student": 1000.0},
                "training_rates": {"teachers": 4000.0, "student": 500.0},
                "batch_milliseconds": MILLISECONDS,
                "cold_reading_rate": 10_000.0,
                "suggestions": (),
            }
            | changed
        )
    )


def test_times_add_up_not_rates():
    assert mixed_rate(0, 1000, 9000) == pytest.approx(1000)
    assert mixed_rate(1, 1000, 9000) == pytest.approx(9000)
    assert mixed_rate(0.5, 1000, 9000) == pytest.approx(1800)  # 2 images in 1/1000 + 1/9000 s


def test_it_says_what_limits_each_stage():
    one, two, nothing = describe_bottlenecks(findings())
    assert one == (
        "teachers: loading is the limit. Training could take 4,000 images/s, loading gives 1,000: 75% of the time "
        "is spent waiting; decoding takes 80% of its time."
    )
    assert two.startswith("student: training is the limit. It takes 500 images/s, and loading could give 1,000, 2.0")
    assert nothing == "No setting that was tried would make it faster."


def test_suggestions_are_sorted_by_gain_and_no_gain_exceeds_training():
    suggestions = (
        Suggestion(change="decoder=dali", loading_rates={"teachers": 1200.0, "student": 1200.0}),
        Suggestion(change="decoder=torch", loading_rates={"teachers": 1010.0, "student": 900.0}),
        Suggestion(change="cache=0.2", loading_rates={"teachers": 1100.0, "student": 9000.0}),
        Suggestion(change="--short-side 256", loading_rates={"teachers": 8000.0, "student": 8000.0}),
    )
    _, _, *lines = describe_bottlenecks(findings(suggestions=suggestions))
    assert lines == [
        "--short-side 256: teachers 4.00 times as fast.",
        "decoder=dali: teachers 1.20 times as fast.",
        "cache=0.2: teachers 1.10 times as fast.",
    ]


def test_a_slow_disk_is_told_of():
    assert not any("disk" in line for line in describe_bottlenecks(findings(cold_reading_rate=1001.0)))
    slow = describe_bottlenecks(findings(cold_reading_rate=300.0))
    assert any("gives 300 images/s that are not in memory yet, of 1,000 that are wanted" in line for line in slow)


def test_without_training_it_speaks_of_loading_alone():
    suggestions = (Suggestion(change="cache=0.2", loading_rates={"loading": 3000.0}),)
    lines = describe_bottlenecks(
        findings(loading_rates={"loading": 1000.0}, training_rates={}, suggestions=suggestions)
    )
    assert lines == [
        "loading: loading gives 1,000 images/s; decoding takes 80% of its time.",
        "cache=0.2: loading 3.00 times as fast.",
    ]
