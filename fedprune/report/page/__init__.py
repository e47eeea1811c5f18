"""``report.html``: one page for a run, a sweep or a comparison, which opens without a network."""

from fedprune.report.page.collection import Run as Run
from fedprune.report.page.collection import RunError as RunError
from fedprune.report.page.collection import collect as collect
from fedprune.report.page.collection import read as read
from fedprune.report.page.pages import NAME as NAME
from fedprune.report.page.pages import is_ours as is_ours
from fedprune.report.page.pages import write as write
