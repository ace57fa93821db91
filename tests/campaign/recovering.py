"""``mapsave recover``: hit as a plan says, and then in peace."""

from tests.campaign import deeds, judge
from tests.campaign.plan import Blow
from tests.campaign.scene import Scene


def recover(scene: Scene, hit: tuple[Blow, ...]) -> None:
    """Recover, hit as the plan says, and then in peace: nothing may be left."""
    deeds.bring_back(scene)
    for blow in hit:
        scene.mapsave("recover", blow=blow)
    done = scene.mapsave("recover")
    if done.code != 0 and scene.plan.between != "journal damaged":
        scene.violate(f"recovery in peace: {done}: {str(done.told)[:900]}")
    judge.nothing_left(scene)
    if hit or scene.plan.blow.kills:
        again = scene.mapsave("recover")
        if again.code == 0 and (again.told["operations"] or again.told["swept"]):
            scene.violate(f"a second recovery found something to do: {again.told}")
