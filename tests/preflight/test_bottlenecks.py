import pytest

from cbd_fast.preflight.bottlenecks import Findings, Offer, advise, mixed_rate

MILLISECONDS = {"planning": 2.0, "reading": 8.0, "decoding": 80.0, "finishing": 10.0, "waiting": 500.0}


def findings(**changed):
    return Findings(
        **(
            {
                "loading": {"stage one": 1000.0, "stage two": 1000.0},
                "training": {"stage one": 4000.0, "stage two": 500.0},
                "milliseconds": MILLISECONDS,
                "cold_reading": 10_000.0,
                "offers": (),
            }
            | changed
        )
    )


def test_times_add_up_not_rates():
    assert mixed_rate(0, 1000, 9000) == pytest.approx(1000)
    assert mixed_rate(1, 1000, 9000) == pytest.approx(9000)
    assert mixed_rate(0.5, 1000, 9000) == pytest.approx(1800)  # 2 pictures in 1/1000 + 1/9000 s


def test_it_says_what_limits_each_stage():
    one, two, nothing = advise(findings())
    assert one == (
        "stage one: loading is the limit. Training could take 4,000 pictures/s, loading gives 1,000: 75% of the time "
        "is spent waiting; decoding takes 80% of its time."
    )
    assert two.startswith(
        "stage two: training is the limit. It takes 500 pictures/s, and loading could give 1,000, 2.0"
    )
    assert nothing == "No setting that was tried would make it faster."


def test_advice_is_sorted_by_gain_and_no_gain_exceeds_training():
    offers = (
        Offer(what="decoder=dali", rates={"stage one": 1200.0, "stage two": 1200.0}),
        Offer(what="decoder=torch", rates={"stage one": 1010.0, "stage two": 900.0}),
        Offer(what="resident=0.2", rates={"stage one": 1100.0, "stage two": 9000.0}),
        Offer(what="--short-side 256", rates={"stage one": 8000.0, "stage two": 8000.0}),
    )
    _, _, *advice = advise(findings(offers=offers))
    assert advice == [
        "--short-side 256: stage one 4.00 times as fast.",
        "decoder=dali: stage one 1.20 times as fast.",
        "resident=0.2: stage one 1.10 times as fast.",
    ]


def test_a_slow_disk_is_told_of():
    assert not any("disk" in line for line in advise(findings(cold_reading=1001.0)))
    slow = advise(findings(cold_reading=300.0))
    assert any("gives 300 pictures/s that are not in memory yet, of 1,000 that are wanted" in line for line in slow)


def test_without_training_it_speaks_of_loading_alone():
    offers = (Offer(what="resident=0.2", rates={"loading": 3000.0}),)
    lines = advise(findings(loading={"loading": 1000.0}, training={}, offers=offers))
    assert lines == [
        "loading: loading gives 1,000 pictures/s; decoding takes 80% of its time.",
        "resident=0.2: loading 3.00 times as fast.",
    ]
