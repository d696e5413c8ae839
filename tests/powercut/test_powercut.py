"""What was acknowledged survives the loss of power at any moment, and the node starts by itself.

As many cuts as wanted, from any seed: `make powercut CUTS=1000`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import corpus
from harness.box import Box
from powercut import check, disk, load
from powercut.campaign import MIXTURE, Campaign, Kind, Result
from powercut.crew import Crew
from powercut.disk import Disk
from powercut.load import Key
from powercut.node import Node
from powercut.pressing import PRESSES, Press, Pressing

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module", autouse=True)
def _power(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where no power can be cut."""
    if reason := disk.unavailable(tmp_path_factory.mktemp("power")):
        pytest.skip(reason)


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


def _cut(campaign: Campaign, kinds: tuple[Kind, ...], cuts: int) -> Result:
    for _ in campaign.run(kinds, cuts):
        pass
    return campaign.result


def test_nothing_acknowledged_is_lost(tmp_path: Path, template: Box, crew: Crew) -> None:
    cuts = corpus.count(30, 1000)
    with Campaign(tmp_path, template, crew, seed=corpus.SEED, mib=4096 + 16 * cuts) as campaign:
        result = _cut(campaign, MIXTURE, cuts)
    print(result.summary())
    assert result.sound, result.report()
    assert result.kinds.keys() == set(Kind)
    assert len(result.acknowledged) > 10 * cuts, result.summary()
    assert result.forwarded, result.summary()


_CONTROLS = {
    "objects not synced": ["--unsynced", "/objects/"],
    "keystore not synced": ["--unsynced", "/keystore"],
    "synchronous=NORMAL": ["--synchronous", "normal"],
}
_CONTROL_CUTS = 12  # at most; the first or second loses something


@pytest.mark.parametrize("spoilt", _CONTROLS.values(), ids=_CONTROLS)
def test_a_node_that_does_not_sync_loses_instances(
    tmp_path: Path, template: Box, crew: Crew, spoilt: list[str]
) -> None:
    """The controls: were nothing lost here, the cuts would prove nothing."""
    with Campaign(tmp_path, template, crew, seed=corpus.SEED, spoilt=spoilt) as campaign:
        for result in campaign.run((Kind.MOMENT,), _CONTROL_CUTS):
            if not result.sound:
                break
    print(result.summary())
    found = result.found
    assert found.lost or found.remade or result.failed_starts, result.summary()


def test_compression_loses_nothing_and_leaves_nothing(
    tmp_path: Path, template: Box, crew: Crew
) -> None:
    """Every kind of cut once; fifty of them in the soak, and by `make powercut-compression`."""
    kinds = PRESSES if corpus.soak() else tuple(Press)
    with Pressing(tmp_path, template, crew, seed=corpus.SEED) as campaign:
        for _ in campaign.run(kinds, corpus.count(len(kinds), 50)):
            pass
    result = campaign.result
    print(result.summary())
    assert result.sound, result.report()
    assert result.kinds.keys() == set(Press)


def test_workers_that_do_not_sync_lose_instances(tmp_path: Path, template: Box, crew: Crew) -> None:
    """The control: were nothing lost here, the cuts above would prove nothing."""
    spoilt, kinds = ("--unsynced-in-workers", "/objects/"), (Press.REMOVING,)
    with Pressing(tmp_path, template, crew, seed=corpus.SEED, spoilt=spoilt) as campaign:
        for result in campaign.run(kinds, _CONTROL_CUTS):
            if not result.sound:
                break
    assert result.found.lost or result.failed_starts, result.summary()


def test_a_node_just_made_is_there_after_a_cut(tmp_path: Path) -> None:
    with ExitStack() as stack:
        power = stack.enter_context(Disk(tmp_path, mib=256))
        box = Box.made(power.at / "node")
        box.log, box.temporary = tmp_path / "node.log", tmp_path
        power.cut()
        power.replay()
        node = Node(box)
        stack.callback(node.kill)
        node.start("scp")


def test_what_was_waiting_arrives_after_the_cuts(tmp_path: Path, template: Box, crew: Crew) -> None:
    kinds = (Kind.CLAIMED, Kind.SENT)
    with Campaign(tmp_path, template, crew, seed=corpus.SEED) as campaign:
        result = _cut(campaign, kinds, corpus.count(2, 50))
        campaign.deliver(seconds=60.0 + len(result.acknowledged) / 20)
    assert result.sound, result.report()
    assert result.forwarded >= len(result.acknowledged)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _stray(path: Path) -> None:
    path.with_name(path.name[:2] + 30 * "0").write_bytes(b"stray")


@pytest.mark.parametrize("damage", [Path.unlink, _cut_short, _stray])
def test_the_comparison_sees_damage(
    new_box: Callable[[], Box], crew: Crew, damage: Callable[[Path], None]
) -> None:
    box, keys = new_box(), [Key(1, 1, 0, number) for number in range(3)]
    box.send_to("central", ae="NOBODY", port=box.http_port)
    crew.checker.ask(load.fill, box.config, keys)
    found = [crew.checker.ask(check.compare, box.config, keys, 0)]
    found.append(crew.checker.ask(check.survey, box.config, keys, 0.0))
    assert not any(one.lost or one.altered or one.others for one in found)
    damage(box.objects()[0])
    found = [crew.checker.ask(check.compare, box.config, keys, 0)]
    found.append(crew.checker.ask(check.survey, box.config, keys, 0.0))
    assert any(one.lost or one.others for one in found)
    absent = Key(1, 1, 0, 3)
    assert absent in crew.checker.ask(check.survey, box.config, [absent], 0.0).lost
    assert absent in crew.checker.ask(check.compare, box.config, [absent], 0).lost
