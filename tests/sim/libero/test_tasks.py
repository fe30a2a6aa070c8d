"""Test LIBERO's task catalogue: four suites of ten tasks, published files, task numbers and protocols."""

import hashlib

import pytest

from saccade.errors import InputError
from saccade.sim.libero import tasks
from saccade.sim.libero.protocols import LEROBOT, OPENVLA, find_protocol


def test_there_are_four_suites_of_ten_tasks():
    suites = tasks.suites()
    assert list(suites) == ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
    assert [len(suite) for suite in suites.values()] == [10] * 4
    assert all(task.number == place for suite in suites.values() for place, task in enumerate(suite))
    assert len({task.problem_sha256 for suite in suites.values() for task in suite}) == 40


def test_task_is_found_by_number_and_by_name():
    task = tasks.find_task("libero_spatial", "5")
    assert task.instruction == "pick up the black bowl on the ramekin and place it on the plate"
    assert tasks.find_task("libero_spatial", task.name) is task
    assert tasks.find_task("libero_long", "2").instruction == "turn on the stove and put the moka pot on it"


@pytest.mark.parametrize(
    ("suite", "name", "message"),
    [
        ("libero_spatal", "0", "Did you mean 'libero_spatial'"),
        ("libero_goal", "10", "task of libero_goal: got '10'"),
        ("libero_goal", "open_the_middle_drawer", "Did you mean 'open_the_middle_drawer_of_the_cabinet'"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(suite, name, message):
    with pytest.raises(InputError, match=message):
        tasks.find_task(suite, name)


def test_installed_files_match_the_catalogue(installed):
    for suite in tasks.suites().values():
        for task in suite:
            for folder, ending, expected in (
                ("bddl_files", "bddl", task.problem_sha256),
                ("init_files", "pruned_init", task.initial_states_sha256),
            ):
                path = installed / folder / task.suite / f"{task.name}.{ending}"
                assert hashlib.sha256(path.read_bytes()).hexdigest() == expected


def test_start_seed_depends_only_on_task_and_state():
    first, second = tasks.find_suite("libero_goal")[:2]
    seeds = [task.start_seed(state) for task in (first, second) for state in (0, 1, 1000)]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert first.start_seed(0) == seeds[0]


@pytest.mark.parametrize("state", [-1, 50, 999])
def test_states_between_benchmark_and_sampled_ones_are_refused(state):
    with pytest.raises(InputError, match=f"initial_state: got {state}, expected 0 to 49, or 1000 and more"):
        tasks.check_initial_state(state)
    assert [tasks.check_initial_state(state) for state in (0, 49, 1000)] == [0, 49, 1000]


def test_protocols_have_the_published_numbers():
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    assert [OPENVLA.steps(suite) for suite in suites] == [220, 280, 300, 520]
    assert [LEROBOT.steps(suite) for suite in suites] == [280, 280, 300, 520]
    assert (OPENVLA.settle_steps, OPENVLA.episodes) == (LEROBOT.settle_steps, LEROBOT.episodes) == (10, 50)
    assert OPENVLA.describe()["limits"]["libero_spatial"] == 220
    with pytest.raises(InputError, match="Did you mean 'openvla'"):
        find_protocol("open_vla")
