"""The entries of this package's parts. Their modules are imported when they are chosen."""

from pipeline.config.parts import Entry

CAUCHY_WALK = Entry("own_parts.kernel:CauchyWalk", "own_parts.kernel:kernel")
PLAIN_PCD = Entry("own_parts.objective:PlainPCD", "own_parts.objective:make")
HEXAGON = Entry("own_parts.data:Hexagon", "own_parts.data:hexagon")
