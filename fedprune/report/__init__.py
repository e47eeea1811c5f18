"""From rows to tables, verdicts, figures and pages; means and intervals over seeds, paired by seed.

The page of a run, ``report.page``, is imported by itself.
"""

from fedprune.report.claims import Rule as Rule
from fedprune.report.claims import Verdict as Verdict
from fedprune.report.claims import judge as judge
from fedprune.report.claims import over_seeds as over_seeds
from fedprune.report.claims import verdict as verdict
from fedprune.report.claims import verdict_table as verdict_table
from fedprune.report.claims import word as word
from fedprune.report.drawing import STYLE as STYLE
from fedprune.report.drawing import canvas as canvas
from fedprune.report.drawing import colour as colour
from fedprune.report.drawing import label_decades as label_decades
from fedprune.report.drawing import legend_above as legend_above
from fedprune.report.drawing import save as save
from fedprune.report.drawing import styled as styled
from fedprune.report.figures import cost_figure as cost_figure
from fedprune.report.figures import line_figure as line_figure
from fedprune.report.figures import partition_figure as partition_figure
from fedprune.report.figures import tradeoff_figure as tradeoff_figure
from fedprune.report.panels import Panel as Panel
from fedprune.report.panels import accuracy_figure as accuracy_figure
from fedprune.report.panels import beside as beside
from fedprune.report.statistics import NOT_NEGATIVE as NOT_NEGATIVE
from fedprune.report.statistics import PERCENT as PERCENT
from fedprune.report.statistics import Interval as Interval
from fedprune.report.statistics import arm_summary as arm_summary
from fedprune.report.statistics import band as band
from fedprune.report.statistics import curves as curves
from fedprune.report.statistics import differences as differences
from fedprune.report.statistics import final as final
from fedprune.report.statistics import interval as interval
from fedprune.report.statistics import late_change as late_change
from fedprune.report.statistics import spent as spent
from fedprune.report.summary import write_run as write_run
from fedprune.report.summary import write_summary as write_summary
from fedprune.report.tables import table as table
