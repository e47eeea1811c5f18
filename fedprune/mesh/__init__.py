"""Devices: the mesh, the one ``shard_map``, and every reduction over clients.

A mesh has two axes. Arms (independent experiments of one program) are spread over ``arms`` and
never communicate. A round's cohort is spread over ``clients`` and meets once a round, in
``accumulate``.

Cohort positions 0..S-1 are dealt to *lanes*: lane l takes positions l, l + L, l + 2L, ... in order,
``chunk`` of them at a time (vmapped). What a lane accumulates stays on its device.

  fast    one lane per device; lanes meet in a ``psum``. The order of additions, and so the last
          bits, depend on the number of devices.
  strict  a fixed number of lanes (8 by default) that the devices share out; the lane sums are
          gathered and added as a tree. Bitwise the same on 1, 2, 4 and 8 devices.

Positions beyond S are skipped, so any cohort runs on any number of devices.
"""

from fedprune.mesh.layout import ARMS as ARMS
from fedprune.mesh.layout import CLIENTS as CLIENTS
from fedprune.mesh.layout import Layout as Layout
from fedprune.mesh.layout import make as make
from fedprune.mesh.layout import spec as spec
from fedprune.mesh.placement import Compiled as Compiled
from fedprune.mesh.placement import finished as finished
from fedprune.mesh.placement import placed as placed
from fedprune.mesh.placement import put as put
from fedprune.mesh.placement import spread as spread
from fedprune.mesh.placement import to_host as to_host
from fedprune.mesh.reduction import accumulate as accumulate
from fedprune.mesh.reduction import collect as collect
from fedprune.mesh.reduction import each as each
from fedprune.mesh.totals import identity as identity
from fedprune.mesh.totals import merge as merge
from fedprune.mesh.totals import reduce as reduce
