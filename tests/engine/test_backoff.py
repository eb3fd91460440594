"""Pauses between tries."""

from engine.backoff import Backoff


def test_pauses_double_up_to_the_last_and_begin_anew():
    backoff = Backoff(0.5, 3)
    for longest in (0.5, 1, 2, 3, 3):
        assert longest / 2 <= backoff.pause_s() <= longest
    backoff.reset()
    assert backoff.pause_s() <= 0.5


def test_chance_shortens_pauses():
    backoff = Backoff(1, 1)
    pauses = {backoff.pause_s() for _ in range(100)}
    assert len(pauses) > 50
    assert min(pauses) < 0.7 < 0.8 < max(pauses)
