"""Arguments that several benchmarks take: words between commas."""

from collections.abc import Collection

from cbd_fast.errors import InputError


def names(option: str, text: str, allowed: Collection[str]) -> list[str]:
    """Names such as ``resnet50,resnet18``.

    Raises:
        InputError: one of them is none of the allowed.
    """
    given = text.split(",")
    if unknown := set(given) - set(allowed):
        raise InputError(f"{option} {', '.join(sorted(unknown))}: must be among {', '.join(allowed)}")
    return given


def teacher_counts(text: str) -> list[int]:
    """Numbers of teachers such as ``0,1,4``.

    Raises:
        InputError: they are not whole numbers of at least 0.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise InputError(f"--teachers {text}: must be numbers such as 0,1,4")
    return [int(word) for word in words]
