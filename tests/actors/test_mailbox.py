"""A mailbox that keeps the latest of each key."""

from actors.mailbox import ConflatingMailbox


def test_what_is_put_back_gives_way_to_what_is_newer():
    mailbox = ConflatingMailbox()
    mailbox.put("a", 1)
    mailbox.put("b", 1)
    taken = mailbox.take_all()
    mailbox.put("b", 2)
    mailbox.put_back(taken)
    assert mailbox.take_all() == {"a": 1, "b": 2}


def test_some_are_taken_oldest_first_and_past_its_capacity_the_oldest_goes():
    mailbox = ConflatingMailbox(3)
    for key in "abcd":
        mailbox.put(key, key)
    mailbox.put("b", "new")
    assert mailbox.take(2) == {"b": "new", "c": "c"}
    assert mailbox.take(2) == {"d": "d"}
    assert mailbox.take(2) == {}


async def test_who_waits_is_woken_by_what_is_put_back(autojump_clock):
    mailbox = ConflatingMailbox()
    mailbox.put("a", 1)
    mailbox.put_back(mailbox.take_all())
    await mailbox.wait_filled()
