"""Configurations: sections of fields, the kinds that their names stand for, and their rules.

Nothing here loads JAX, so a bad value is refused before a device is touched. A section's file has
its fields, a table for each choice, of which every line is one kind, and the rules of ``check``.
What a kind builds loads JAX when it is called. A field marked ``traced`` is numeric and may differ
between the arms of one compiled program; all others are part of the program's shape.
"""

from fedprune.config.data import OWN_FILES as OWN_FILES
from fedprune.config.data import PARTITIONS as PARTITIONS
from fedprune.config.data import Data as Data
from fedprune.config.downlink import DOWNLINKS as DOWNLINKS
from fedprune.config.downlink import Downlink as Downlink
from fedprune.config.edges import CLOUDS as CLOUDS
from fedprune.config.edges import Edges as Edges
from fedprune.config.fields import ConfigError as ConfigError
from fedprune.config.fields import Kind as Kind
from fedprune.config.fields import describe as describe
from fedprune.config.fields import element_type as element_type
from fedprune.config.fields import explain as explain
from fedprune.config.fields import fields as fields
from fedprune.config.fields import free as free
from fedprune.config.fields import from_json as from_json
from fedprune.config.fields import one_value as one_value
from fedprune.config.fields import override as override
from fedprune.config.fields import own_fields as own_fields
from fedprune.config.fields import part as part
from fedprune.config.fields import resumable as resumable
from fedprune.config.fields import section as section
from fedprune.config.fields import spec as spec
from fedprune.config.fields import suggestion as suggestion
from fedprune.config.fields import to_json as to_json
from fedprune.config.fields import traced_paths as traced_paths
from fedprune.config.fields import with_tuples as with_tuples
from fedprune.config.machine import PLACES as PLACES
from fedprune.config.machine import WHOLE as WHOLE
from fedprune.config.machine import Mesh as Mesh
from fedprune.config.machine import Run as Run
from fedprune.config.model import NETWORKS as NETWORKS
from fedprune.config.model import OWN as OWN
from fedprune.config.model import Model as Model
from fedprune.config.model import Network as Network
from fedprune.config.pruning import IMPORTANCES as IMPORTANCES
from fedprune.config.pruning import METHODS as METHODS
from fedprune.config.pruning import PRUNABLE as PRUNABLE
from fedprune.config.pruning import SCHEDULES as SCHEDULES
from fedprune.config.pruning import Pruning as Pruning
from fedprune.config.server import SERVERS as SERVERS
from fedprune.config.server import Server as Server
from fedprune.config.training import DECAYS as DECAYS
from fedprune.config.training import OPTIMIZERS as OPTIMIZERS
from fedprune.config.training import SELECTIONS as SELECTIONS
from fedprune.config.training import Cohort as Cohort
from fedprune.config.training import Local as Local
from fedprune.config.training import Personal as Personal
from fedprune.config.uplink import FADINGS as FADINGS
from fedprune.config.uplink import UPLINKS as UPLINKS
from fedprune.config.uplink import Uplink as Uplink
from fedprune.config.whole import Arm as Arm
from fedprune.config.whole import Config as Config
from fedprune.config.whole import program_groups as program_groups
from fedprune.config.whole import validate as validate
from fedprune.config.whole import validate_arms as validate_arms
