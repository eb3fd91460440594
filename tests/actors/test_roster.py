"""The roster is a mapping of (class, user), and knows who shares a class."""

from types import SimpleNamespace

import hypothesis
from hypothesis import strategies as st

from actors.roster import Roster

keys = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


@hypothesis.given(played=st.lists(st.tuples(st.booleans(), keys)))
def test_it_holds_what_a_dict_would(played):
    roster, wanted = Roster(), {}
    for comes, key in played:
        if comes:
            roster[key] = wanted[key] = SimpleNamespace()
        else:
            assert roster.pop(key, None) is wanted.pop(key, None)
        assert dict(roster) == wanted
        assert len(roster) == len(wanted)
        assert sorted(map(id, roster.actors())) == sorted(map(id, wanted.values()))
        for class_id in "ab":
            mates = [actor for (of, _), actor in wanted.items() if of == class_id]
            assert sorted(map(id, roster.mates(class_id))) == sorted(map(id, mates))
        assert roster.classes.keys() == {class_id for class_id, _ in wanted}, "a class that is empty stays"
