"""Watches a run and shows it on the terminal: notices, a progress bar, evaluations."""

from pefttool import hookimpl

pefttool_api_version = 2


@hookimpl
def on_event(event: object) -> None:
    from pefttool_report.console import reporter

    reporter.on_event(event)
