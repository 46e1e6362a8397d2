"""Tasks that share moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from equipoise._checks import check_known


def grouped(tasks: tuple[str, ...], groups: int | Mapping[str, Iterable[str]] | None) -> dict[str, tuple[str, ...]]:
    """Group → its tasks; every task by itself if there are no groups."""
    if groups is None:
        return {task: (task,) for task in tasks}
    if isinstance(groups, int) and not isinstance(groups, bool):
        if not 1 <= groups <= len(tasks):
            raise ValueError(f"groups must lie between 1 and the number of tasks, {len(tasks)}; found {groups}.")
        return {f"group{index}": tasks[index::groups] for index in range(groups)}
    if not isinstance(groups, Mapping) or not all(
        isinstance(members, Iterable) and not isinstance(members, str) for members in groups.values()
    ):
        raise TypeError(f"groups must be a number of groups, or a mapping from group to its tasks, found {groups!r}.")
    members = {group: tuple(names) for group, names in groups.items()}
    named = [task for names in members.values() for task in names]
    check_known("groups", named, tasks)
    if sorted(named) != sorted(tasks):
        found = ", ".join(named) or "none"
        raise ValueError(f"groups must hold every task once, found {found}; the tasks are {', '.join(tasks)}.")
    empty = [group for group, names in members.items() if not names]
    if empty:
        raise ValueError(f"groups must not be empty, found no task in {', '.join(map(repr, empty))}.")
    return members


def of_groups(priorities: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Returns group → the priority of its tasks; nothing where there are none.

    Raises:
        ValueError: those of a group differ: its losses are summed, with one update.
    """
    found = {}
    for group, members in groups.items() if priorities else ():
        factors = {task: priorities[task] for task in members}
        if len(set(factors.values())) > 1:
            raise ValueError(
                f"priorities: the tasks of group {group!r} share an update and need the same priority, found {factors}."
            )
        found[group] = factors[members[0]]
    return found
