"""``report.html``: one page for a run, a sweep or a comparison, which opens without a network."""

from fedprune.page.pages import NAME as NAME
from fedprune.page.pages import is_ours as is_ours
from fedprune.page.pages import write as write
from fedprune.page.runs import Run as Run
from fedprune.page.runs import RunError as RunError
from fedprune.page.runs import collect as collect
from fedprune.page.runs import read as read
