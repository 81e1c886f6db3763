"""What methods share that merge a model from its first layers to its last.

What an owner sends for a layer is measured in the model merged so far. How far that is is the
option `rounds`, since every step of it is one sum over the owners:

- `group`: layers with a common input at a time, and with them those whose input does not depend
  on theirs. All that comes before is merged.
- `layer`: a whole transformer layer at a time, a quarter of the sums in a BERT. Within the layer
  the inputs are those that the owner's own sublayers make of the merged hidden states.
"""

from typing import ClassVar, Literal

from blindmerge.errors import ConfigInvalid
from blindmerge.manifest import Block, Group, Manifest
from blindmerge.merge.least_squares import LeastSquares

__all__ = ["ForwardOrder"]


class ForwardOrder(LeastSquares):
    """rounds: what is merged in one sum, beside the options of every least squares method."""

    progressive: ClassVar[bool] = True
    rounds: Literal["group", "layer"] = "group"

    def check(self, manifest: Manifest) -> None:
        """Refuses layers that run again after layers that depend on them, as ALBERT's do."""
        super().check(manifest)
        if manifest.repeated:
            raise ConfigInvalid(
                f"'{min(manifest.repeated)}' runs several times in one pass, so a "
                f"{manifest.architecture} has no order in which to merge its layers",
                hint='use a method that needs one sum, such as "regmean"',
            )

    def blocks_of(self, manifest: Manifest) -> tuple[Block, ...]:
        """One block per sum.

        What is averaged depends on nothing, and comes with the first group of its layer.
        """
        if self.rounds == "layer":
            return manifest.blocks
        return tuple(part for block in manifest.blocks for part in _by_group(block))


def _by_group(block: Block) -> tuple[Block, ...]:
    steps: list[list[Group]] = []
    for group in block.groups:
        if group.parallel and steps:
            steps[-1].append(group)
        else:
            steps.append([group])
    if len(steps) < 2:
        return (block,)
    return tuple(
        Block(
            name=step[0].name,
            module=block.module,
            groups=tuple(step),
            means=() if number else block.means,
        )
        for number, step in enumerate(steps)
    )
